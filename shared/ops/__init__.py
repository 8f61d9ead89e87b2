"""The papers' own operators, native, each beside the equation in plain PyTorch. Needs torch alone; see library.py."""

from .label_maps import dense_label_maps, render_label_maps, render_label_maps_reference
from .lip_pool2d import lip_pool2d, lip_pool2d_reference
from .ln_mse import ln_mse, ln_mse_reference
from .sinkhorn import cosine_cost, sinkhorn, sinkhorn_divergence, sinkhorn_divergence_reference, sinkhorn_reference
from .soft_roi_pool import soft_roi_pool, soft_roi_pool_reference
