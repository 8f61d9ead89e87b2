"""The Sinkhorn loss at the shapes of the feature intertwiner: C = 256, eps 0.1, 10 iterations, images x level pairs.

eager: `sinkhorn_reference`, batched matrix-vector products and autograd through them. torch.compile: that, compiled.
POT: `ot.solve_batch` of the transposed cost with tol 0, which is the same loop; unroll with grad="autodiff".
GeomLoss: `SamplesLoss`, tensorized, in the log domain, eps annealed from 2 to 0.1 in about as many steps, gradient by
the envelope. Both only where they are installed. ours: `sinkhorn`, `sinkhorn_divergence`.
"""

from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from benchmarks.ops.harness import Case
from shared.ops import cosine_cost, sinkhorn, sinkhorn_divergence, sinkhorn_divergence_reference, sinkhorn_reference

try:
    import ot
except ImportError:
    ot = None
try:
    from geomloss import SamplesLoss
except ImportError:
    SamplesLoss = None

EPS, ITERS = 0.1, 10
DIFFERS = {"GeomLoss": "it anneals eps, averages both updates and returns the dual value with the envelope's gradient"}


def pot(cost: Tensor, grad: str) -> Tensor:
    """POT updates the rows' factor first, `sinkhorn` the columns': of the transposed cost it is the same loop."""
    mode = "autodiff" if grad == "unroll" else "envelope"
    with cost.device:  # POT starts from vectors on the default device
        result = ot.solve_batch(cost.mT, EPS, max_iter=ITERS, tol=0, method="sinkhorn", grad=mode)
    return result.value_linear


def geomloss(cost: Tensor) -> Tensor:
    """GeomLoss asks for the cost both ways, of points that it never looks at otherwise."""
    ways = cycle([cost, cost.transpose(-1, -2)])
    points = [torch.zeros(len(cost), n, 1, device=cost.device) for n in cost.shape[-2:]]
    loss = SamplesLoss(
        p=1, blur=EPS, diameter=2, scaling=0.74, cost=lambda x, y: next(ways), debias=False, backend="tensorized"
    )
    return loss(*points)


def libraries(grad: str) -> dict:
    """Name to function of one cost, of the libraries that are here."""
    found = {} if ot is None else {"POT": partial(pot, grad=grad)}
    return found if SamplesLoss is None else found | {"GeomLoss": geomloss}


def cost_case(device: torch.device, problems: int, channels: int, grad: str, target: float | None) -> Case:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(problems, channels, 1024, generator=rng) for _ in range(2))
    cost = cosine_cost(x, y).to(device).requires_grad_()
    variants = {
        "eager": partial(sinkhorn_reference, grad=grad),
        "torch.compile": partial(torch.compile(sinkhorn_reference, dynamic=False), grad=grad),
        **libraries(grad),
        "ours": partial(sinkhorn, grad=grad),
    }
    matrix, vectors = cost.numel() * 4, problems * 2 * channels * (ITERS if grad == "unroll" else 1) * 4
    return Case(
        op="sinkhorn",
        title=f"{problems} problems, C = {channels}, {grad}, float32",
        inputs=[cost],
        variants=variants,
        bytes_moved=(matrix + vectors, 2 * matrix + vectors),
        differs={k: v for k, v in DIFFERS.items() if k in variants},
        target=target,
    )


def feature_case(device: torch.device, images: int, channels: int) -> Case:
    """From the outputs of the critic H at three level pairs of images of 512 x 512 pixels."""
    rng = torch.Generator().manual_seed(0)
    sizes = (4096, 1024, 256)
    inputs = [torch.randn(images, channels, k, generator=rng).to(device).requires_grad_() for k in sizes * 2]

    def split(function):
        return lambda *t: function(t[:3], t[3:])

    def of_costs(function):
        return split(lambda xs, ys: torch.stack([function(cosine_cost(x, y)) for x, y in zip(xs, ys)]))

    variants = {
        "eager": split(sinkhorn_divergence_reference),
        "torch.compile": split(torch.compile(sinkhorn_divergence_reference, dynamic=False)),
        **{name: of_costs(function) for name, function in libraries("unroll").items()},
        "ours": split(sinkhorn_divergence),
    }
    features, grams = sum(t.numel() for t in inputs) * 4, 3 * images * channels**2 * 4
    return Case(
        op="sinkhorn",
        title=f"{3 * images} problems from features, C = {channels}, k = {', '.join(map(str, sizes))}, unroll, float32",
        inputs=inputs,
        variants=variants,
        bytes_moved=(features + 2 * grams, 2 * features + 4 * grams),
        differs={k: v for k, v in DIFFERS.items() if k in variants},
    )


def cases(device: torch.device) -> list[Case]:
    return [
        cost_case(device, 16, 256, "unroll", target=4 if device.type == "cpu" else 10),
        cost_case(device, 16, 256, "envelope", target=None),
        cost_case(device, 256, 64, "unroll", target=None),
        feature_case(device, 8, 256),
    ]
