"""MSFM by its definition, one image at a time, in plain sums: no group norm, resizing or 1x1 convolution of torch."""

import math
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.MSFM import MSFM


def resizing_matrix(n: int, m: int, align_corners: bool) -> Tensor:
    """(m, n): weights of linear interpolation from n to m samples."""
    matrix = torch.zeros(m, n, dtype=torch.float64)
    for i in range(m):
        if align_corners:
            source = i * (n - 1) / (m - 1) if m > 1 else 0.0
        else:
            source = max((i + 0.5) * n / m - 0.5, 0.0)
        left = min(int(source), n - 1)
        right = min(left + 1, n - 1)
        matrix[i, left] += 1 - (source - left)
        matrix[i, right] += source - left
    return matrix


def resize(x: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """(C, H, W) -> (C, *size)."""
    rows, columns = (resizing_matrix(n, m, align_corners) for n, m in zip(x.shape[1:], size))
    return torch.einsum("ih,chw,jw->cij", rows, x, columns)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor) -> Tensor:
    """(C, H, W), normed over runs of C / groups channels."""
    out = []
    for part in x.chunk(groups):
        deviation = part - part.sum() / part.numel()
        out.append(deviation / (deviation.square().sum() / part.numel() + 1e-5).sqrt())
    return torch.cat(out) * weight[:, None, None] + bias[:, None, None]


def unit(x: Tensor, params: dict[str, Tensor], name: str, groups: int, relu: bool) -> Tensor:
    weight, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    if weight.shape[2] == 1:
        x = torch.einsum("oc,chw->ohw", weight[:, :, 0, 0], x)
        x = x if bias is None else x + bias[:, None, None]
    else:
        x = F.conv2d(x[None], weight, bias, padding=1)[0]
    if f"{name}.norm.weight" in params:
        x = group_norm(x, groups, params[f"{name}.norm.weight"], params[f"{name}.norm.bias"])
    return x.clamp(min=0) if relu else x


def msfm_reference(module: MSFM, x: Tensor) -> Tensor:
    """(N, C, H, W) -> the same, in float64. Scales are taken as the decimals that one writes."""
    params = dict(module.named_parameters())
    groups, spec = module.unsqueeze.norm.num_groups, module.spec
    outs = []
    for image in x:
        thin = unit(image, params, "squeeze", groups, relu=True)
        maps = []
        for i, scale in enumerate(spec.scales):
            size = tuple(max(1, math.floor(side * Fraction(str(scale)))) for side in thin.shape[1:])
            y = resize(thin, size, spec.align_corners)
            for j in range(2 if scale > 1 else spec.conv_num_small or spec.conv_num):
                y = unit(y, params, f"branches.{i}.{j}", groups, relu=True)
            maps.append(resize(y, thin.shape[1:], spec.align_corners))
        fused = torch.cat(maps) if spec.fusion == "cat" else sum(maps)
        outs.append(image + unit(fused, params, "unsqueeze", groups, relu=spec.out_relu))
    return torch.stack(outs)
