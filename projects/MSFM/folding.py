"""A group norm folded into the 1x1 convolution before it, exactly, in training as well.

u = W y + b is linear in the few channels of y, so each image's group statistics of u follow from the mean and the
covariance of y over the cells. With rows w_c of W, mu and Sigma of y, groups g of channels c:

    mean_c = w_c mu + b_c        var_c = w_c Sigma w_c'
    m_g = mean of mean_c         v_g = mean of var_c + variance of mean_c, over the group
    norm(u)_c = s_c (w_c (y - mu) + mean_c - m_g) + beta_c,   s_c = gamma_c / sqrt(v_g + eps)

One matrix product per image, on top of the map that it is added to: u itself is neither written nor kept for backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared.precision import no_autocast


def fold(y: Tensor, weight: Tensor, bias: Tensor, norm: nn.GroupNorm) -> tuple[Tensor, Tensor]:
    """Matrix and rows whose product is norm(W y + b).

    y: (N, t, P); weight: (C, t); bias: (C,). Returns (N, C, t + 1) and (N, t + 1, P): the centred y and a row of ones,
    for the shift. In the dtype of y.
    """
    mean = y.mean(dim=2, keepdim=True)
    centred = y - mean
    covariance = centred @ centred.mT / y.shape[2]  # of the centred values: E[yy'] - mu mu' would cancel
    per_group = (norm.num_groups, -1)
    # rounding can push a variance of nearly collinear channels below 0
    variance = ((weight @ covariance) * weight).sum(dim=2).clamp(min=0).unflatten(1, per_group)
    means = (mean.squeeze(2) @ weight.mT + bias).unflatten(1, per_group)
    offset = means - means.mean(dim=2, keepdim=True)
    deviation = (variance + offset.square()).mean(dim=2, keepdim=True).add(norm.eps).sqrt()
    scale = norm.weight.to(y.dtype).unflatten(0, per_group) / deviation  # (N, G, C / G)
    shift = (scale * offset).flatten(1) + norm.bias
    # channels last in memory: strides of C and P cells whatever t + 1 is, which half-precision products want
    matrix = torch.cat([weight.mT * scale.flatten(1).unsqueeze(1), shift.unsqueeze(1)], dim=1).mT
    return matrix, torch.cat([centred, y.new_ones(y.shape[0], 1, y.shape[2])], dim=1)


def add_folded(x: Tensor, y: Tensor, conv: nn.Conv2d) -> Tensor:
    """x + conv(y), where conv is 1x1 with a bias and a group norm, and maybe a ReLU behind it.

    x: (N, C, H, W); y: (N, t, H, W). Returns the shape and dtype of x. Statistics are in float32 or wider, also under
    autocast; the product is in the dtype of x.
    """
    dtype = torch.promote_types(y.dtype, torch.float32)
    with no_autocast(x):
        weight, bias = conv.weight.flatten(1).to(dtype), conv.bias.to(dtype)
        matrix, rows = (m.to(x.dtype) for m in fold(y.flatten(2).to(dtype), weight, bias, conv.norm))
        if conv.activation is None:
            return torch.baddbmm(x.flatten(2), matrix, rows).view(x.shape)
        return x + F.relu_(torch.bmm(matrix, rows)).view(x.shape)
