"""MODEL.INTERNET: the keys of InterNet's YAML form and the paper's settings ("Feature Intertwiner for Object
Detection", ICLR 2019, arXiv:1903.11851)."""

from detectron2.config import CfgNode
from shared.config import register_project_config


@register_project_config
def add_internet_config(cfg: CfgNode) -> None:
    """Add the node with its defaults: Table 2's default row, source (b)."""
    node = cfg.MODEL.INTERNET = CfgNode()
    node.ENABLED = True  # False: the baseline, with ASSIGN and ROI_SIZE in force
    node.BASELINE_MAKEUP = False  # the units without the intertwiner: a control of equal size
    node.NUM_LEVELS = 4
    # Pooled side for make-up and critic; ROI_BOX_HEAD.POOLER_RESOLUTION is what the first fc layer sees
    node.ROI_SIZE = 14
    node.ASSIGN = CfgNode({"RULE": "eq6", "BASE": 224.0, "ROUNDING": "round"})  # or roi_size; floor
    node.MAKEUP_ON = "roi"  # or map: before pooling, a cost that does not grow with the RoIs
    node.MAKEUP_PER_LEVEL = False
    node.MASK_USES_MAKEUP = False
    node.NORM = "BN"  # of make-up, critic and generators: BN, SyncBN, GN, affine or ""
    node.CRITIC_VARIANT = "paper"  # or light: for ROI_SIZE 7, a third of the cost
    node.CRITIC_HIDDEN = 512
    node.CRITIC_DIM = 1024
    node.CRITIC_EXTRA_1X1 = False
    node.FUSION = "linear"  # or separate, add
    node.FUSION_WEIGHT = 0.5  # the critic's share

    node.LOSS = "l2"  # or l1, kl
    node.LOSS_WEIGHT = 1.0
    node.REDUCTION = "instance_mean"  # or class_mean, instance_sum_dims
    node.LAST_LEVEL_LOSS = True
    node.START_ITER = 0  # of the loss; the buffer fills from the first iteration on
    node.BIG_SUPERVISE = False

    node.BUFFER = CfgNode()
    node.BUFFER.MODE = "all"  # or decay, partial
    node.BUFFER.WINDOW = 2000  # iterations; one epoch of COCO at batch 8 is 14658
    node.BUFFER.DECAY = 0.999  # per iteration
    node.BUFFER.PER_LEVEL = False
    node.BUFFER.DETACH = True
    node.BUFFER.SAVE_WINDOW = True  # in checkpoints: about 40 KB an iteration of the window

    node.LARGE_SOURCE = "b"  # or a, c_bilinear, c_neural, d (Table 1)
    node.LARGE_PAIRS = "all"  # or nearest
    node.OT = CfgNode()  # ScaleOT; LOSS and what it needs apply to source d
    node.OT.LOSS = "ot"  # or none, l2, kl, ot_debiased
    node.OT.WEIGHT = 1.0
    node.OT.EPS = 0.1
    node.OT.ITERS = 10
    node.OT.PAIRS = "adjacent"  # or all
    node.OT.GENERATOR = "conv_up_conv"  # or deconv
    node.OT.CRITIC_MODE = "trained"  # or frozen, avgpool
    node.OT.BACKPROP_PLAN = False
    node.OT.LOG_DOMAIN = False
