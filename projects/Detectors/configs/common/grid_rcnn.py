"""Grid R-CNN with a ResNet-50-FPN (arXiv:1811.12030) and the settings of Grid R-CNN Plus (arXiv:1906.05688)."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from projects.Detectors.grid_head import GridHead
from projects.Detectors.grid_rcnn import ClassificationOutputLayers, GridROIHeads

from .faster_rcnn import model

model.proposal_generator.post_nms_topk = (2000, 1000)
model.roi_heads.update(
    _target_=GridROIHeads,
    box_predictor=L(ClassificationOutputLayers)(
        input_shape=ShapeSpec(channels=1024),
        num_classes="${..num_classes}",
        test_score_thresh=0.03,
        test_nms_thresh=0.3,
        test_topk_per_image=100,
    ),
    grid_pooler=L(ROIPooler)(
        output_size=14, scales=(1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32), sampling_ratio=0, pooler_type="ROIAlignV2"
    ),
    grid_head=L(GridHead)(
        input_shape=ShapeSpec(channels=256, height=14, width=14),
        num_points=9,
        num_convs=8,
        point_channels=64,
        norm_groups=36,
        pos_radius=1,
        loss_weight=15.0,
    ),
    jitter=0.15,
    max_samples=192,
)
