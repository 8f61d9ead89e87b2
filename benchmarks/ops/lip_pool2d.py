"""lip_pool2d at the poolings of LIP-ResNet and LIP-DenseNet.

- eager: the usual form, avg_pool2d(x * exp(l)) / avg_pool2d(exp(l)), which is safe for bounded logits only (here they
  are gated, so within 0 and 12).
- torch.compile: the same, through inductor.
- avg_pool2d alone: two plain average poolings, of x and of l. Another result: it is the traffic of the two inputs.
- ours, gate inside: takes its input as the raw map z and forms 12 * sigmoid(z) itself, work that the others are not
  charged for. Another result, as all are given the same maps.
"""

import torch
import torch.nn.functional as F

from benchmarks.ops.harness import Case
from shared.ops import lip_pool2d

SHAPES = (  # title, shape, (kernel_size, stride, padding), channels_last, target
    ("LIP-ResNet stem", (8, 64, 112, 112), (3, 2, 1), False, 4.0),
    ("detection stem, 800 x 1344", (2, 64, 400, 672), (3, 2, 1), False, None),
    ("layer2 shortcut, 800 x 1344", (2, 256, 200, 336), (3, 2, 1), False, None),
    ("layer4", (8, 512, 14, 14), (3, 2, 1), False, None),
    ("LIP-DenseNet transition", (8, 128, 56, 56), (2, 2, 0), False, None),
    ("LIP-ResNet stem, channels_last", (8, 64, 112, 112), (3, 2, 1), True, None),
)


def _average(x, logit, window):
    importance = logit.exp()
    return F.avg_pool2d(x * importance, *window) / F.avg_pool2d(importance, *window)


def _case(title, shape, window, channels_last, target, device) -> Case:
    if device.type == "cpu" and shape[0] * shape[1] * shape[2] * shape[3] > 30_000_000:
        shape = (1, *shape[1:])  # one image: eager holds seven maps of this size
    rng = torch.Generator().manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(shape, generator=rng)
    logit = 12 * torch.sigmoid(2.5 * torch.randn(shape, generator=rng))
    x, logit = [t.to(device).to(memory_format=layout).requires_grad_() for t in (x, logit)]
    kernel_size, stride, padding = window
    outputs = x.numel() // (stride * stride)
    size = x.element_size()
    compiled = torch.compile(lambda x, logit: _average(x, logit, window))
    return Case(
        op="lip_pool2d",
        title=f"{title}, {'x'.join(map(str, shape))}, {kernel_size}/{stride}/{padding}, float32",
        inputs=[x, logit],
        variants={
            "eager": lambda x, logit: _average(x, logit, window),
            "torch.compile": compiled,
            "avg_pool2d alone": lambda x, logit: F.avg_pool2d(x, *window) + F.avg_pool2d(logit, *window),
            "ours, gate inside": lambda x, logit: lip_pool2d(x, logit, *window, gate=12.0),
            "ours": lambda x, logit: lip_pool2d(x, logit, *window),
        },
        # forward: x, logit, y and the statistic; backward: these, the gradient of y and the two gradients
        bytes_moved=((2 * x.numel() + 2 * outputs) * size, (4 * x.numel() + 3 * outputs) * size),
        differs={
            "avg_pool2d alone": "two average poolings and their sum, the traffic of both inputs without the weights",
            "ours, gate inside": "also forms 12 sigmoid(z), taking the same map as z",
        },
        target=target,
    )


def cases(device: torch.device) -> list[Case]:
    """What each variant is: see the module."""
    return [_case(*row, device) for row in SHAPES]
