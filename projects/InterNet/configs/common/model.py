"""Parts of InterNet on a Faster R-CNN, R-50-FPN, every knob at the paper's setting ("ours" where it gives none).

`model` has all three units; the baselines and the control take units away.
"""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from projects.InterNet import (
    ClassBuffer,
    Critic,
    FeatureIntertwiner,
    InterNetConvFCHead,
    InterNetROIHeads,
    InterNetROIPooler,
    LevelAssigner,
    MakeUp,
)

from .....configs.common.models.faster_rcnn_fpn import model

model.backbone.bottom_up.freeze_at = 2  # stem and res2
model.proposal_generator.update(pre_nms_topk=(6000, 6000), post_nms_topk=(2000, 1000))  # the authors' code

model.roi_heads.update(
    _target_=InterNetROIHeads,
    batch_size_per_image=200,  # Table 3
    positive_fraction=0.33,  # the authors' code
    box_pooler=L(InterNetROIPooler)(
        output_size=14,  # Table 6
        scales=(1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32),
        sampling_ratio=0,
        pooler_type="ROIAlignV2",
        assigner=L(LevelAssigner)(rule="eq6", base=224, rounding="round", roi_size=14, num_levels=4),  # Eq. (6)
    ),
    makeup=L(MakeUp)(channels="${...backbone.out_channels}", norm="BN", num_units=1),  # Table 6
    critic=L(Critic)(  # Table 7
        channels="${...backbone.out_channels}",
        roi_size="${..box_pooler.output_size}",
        hidden=512,
        dim=1024,
        norm="${..makeup.norm}",
        variant="paper",
        activation="sigmoid",
        extra_1x1=False,
    ),
    intertwiner=L(FeatureIntertwiner)(
        buffer=L(ClassBuffer)(
            num_classes="${...num_classes}",
            dim="${...critic.dim}",
            mode="all",  # Table 2d
            window=2000,
            decay=0.999,  # ours
            per_level=False,  # Table 2e
            num_levels=4,
            save_window=True,
        ),
        loss="l2",  # Table 2b
        loss_weight=1.0,
        reduction="instance_mean",  # ours: Eq. (3) is a plain sum
        last_level_loss=True,
        start_iter=0,
        detach=True,  # Table 2e
        large_source="b",  # Table 1
        large_pairs="all",
        transport=None,
        big_supervise=False,
    ),
    makeup_on="roi",
    mask_uses_makeup=False,
    box_head=L(InterNetConvFCHead)(
        input_shape=ShapeSpec(channels=256, height=14, width=14),
        fc_dims=[1024, 1024],
        pool=2,
        fusion="linear",  # Table 2c
        fusion_weight=0.5,
    ),
)
model.roi_heads.box_predictor.test_nms_thresh = 0.3
