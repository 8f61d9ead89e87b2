"""Size of a network counted on the meta device, where nothing is computed."""

from collections.abc import Callable
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def cost(make: Callable[[], nn.Module], *sizes: tuple[int, ...]) -> tuple[int, float]:
    """Parameters, and G multiply-adds for inputs of these sizes.

    Convolutions, linear layers, matrix products and soft RoI poolings. As fvcore does, a batch norm counts two for each
    of its values, a mean over cells one.
    """
    others = []

    def pool(scores, values, temperature, mask, return_maps, impl):
        n, groups, maps, h, w = scores.shape
        others.append(n * groups * maps * values.shape[1] * h * w)
        pooled = scores.new_empty(n, groups, values.shape[1])
        return (pooled, scores) if return_maps else pooled

    with torch.device("meta"), torch.no_grad(), mock.patch("projects.DEPLA.depla.pool", pool):
        net = make().eval()
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.register_forward_hook(lambda _, inputs, output: others.append(2 * output.numel()))
        mean = {torch.ops.aten.mean: lambda x, *_, **__: 2 * torch.Size(x).numel()}
        with FlopCounterMode(display=False, custom_mapping=mean) as counter:
            net(*(torch.zeros(size) for size in sizes))
    return sum(p.numel() for p in net.parameters()), (counter.get_total_flops() / 2 + sum(others)) / 1e9
