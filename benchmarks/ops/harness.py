"""Times one op against named alternatives: agreement first, then medians in turns, peak memory and bandwidth."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch._functorch.config
from torch import Tensor

torch._functorch.config.donated_buffer = False


@dataclass
class Case:
    """One op at one real shape.

    `variants`: name to function of `inputs`, "eager" (the reference) and "ours" among them; each returns one tensor.
    `inputs` that require a gradient get one. `bytes_moved`: the fewest bytes of a fused (forward, backward): every
    input read once, every output written once. `differs`: names whose result is another one on purpose, with why.
    """

    op: str
    title: str
    inputs: list[Tensor]
    variants: dict[str, Callable]
    bytes_moved: tuple[int, int]
    tolerance: float = 1e-4
    differs: dict[str, str] = field(default_factory=dict)
    target: float | None = None  # eager / ours, forward + backward, that the project aims at


@dataclass
class Row:
    """Medians in ms with half the interquartile range; memory in bytes; share of the copy bandwidth."""

    variant: str
    forward: float
    forward_spread: float
    backward: float
    backward_spread: float
    total: float
    peak: int
    outputs: int
    bandwidth: float = 0.0


def _sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _leaves(case: Case) -> list[Tensor]:
    return [x for x in case.inputs if x.requires_grad]


def run_once(case: Case, function: Callable, weight: Tensor | None) -> tuple[Tensor, list[Tensor], float, float]:
    """One forward and one backward pass: (output, gradients, seconds, seconds)."""
    device = case.inputs[0].device
    _sync(device)
    start = time.perf_counter()
    out = function(*case.inputs)
    _sync(device)
    middle = time.perf_counter()
    leaves = _leaves(case)
    grads = list(torch.autograd.grad(out, leaves, torch.ones_like(out) if weight is None else weight)) if leaves else []
    _sync(device)
    return out.detach(), grads, middle - start, time.perf_counter() - middle


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm().clamp(min=1e-30))


def assert_agree(case: Case) -> None:
    """Every variant gives the eager result and its gradients, for a random gradient from above."""
    out, _, _, _ = run_once(case, case.variants["eager"], None)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    weight = weight.to(out) if out.dim() else None
    expected = run_once(case, case.variants["eager"], weight)
    for name, function in case.variants.items():
        if name == "eager" or name in case.differs:
            continue
        got = run_once(case, function, weight)
        for what, a, b in [("output", got[0], expected[0])] + [
            (f"gradient {i}", a, b) for i, (a, b) in enumerate(zip(got[1], expected[1]))
        ]:
            error = relative_error(a, b)
            assert error <= case.tolerance, f"{case.op} {case.title}: {what} of {name} is off by {error:.2e}"


def peak_of(device: torch.device, function: Callable, *args) -> tuple[object, int]:
    """Call `function`; returns its result and the bytes allocated at the worst moment, over what lay there before."""
    if device.type == "cuda":
        _sync(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = function(*args)
        return result, torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as prof:
        result = function(*args)
    peak = total = 0
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return result, peak


def peak_memory(case: Case, function: Callable) -> tuple[int, int]:
    """Peak of a forward and backward pass, the gradient from above not counted, and bytes of its results."""
    weight = torch.ones_like(run_once(case, function, None)[0])
    (out, grads, _, _), peak = peak_of(case.inputs[0].device, run_once, case, function, weight)
    return peak, sum(t.numel() * t.element_size() for t in [out, *grads])


def copy_bandwidth(device: torch.device, size: int = 256 << 20) -> float:
    """Bytes read plus bytes written per second of a large copy."""
    source = torch.empty(size, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    times = []
    for _ in range(10):
        _sync(device)
        start = time.perf_counter()
        target.copy_(source)
        _sync(device)
        times.append(time.perf_counter() - start)
    return 2 * size / statistics.median(times)


def _median(values: list[float]) -> tuple[float, float]:
    if len(values) < 3:
        return statistics.median(values) * 1e3, 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return statistics.median(values) * 1e3, (high - low) / 2 * 1e3


def measure(case: Case, bandwidth: float, seconds: float = 8.0) -> list[Row]:
    """Check, warm up, then run the variants in turns for about `seconds` in all."""
    assert_agree(case)
    for function in case.variants.values():
        for _ in range(2):
            run_once(case, function, None)
    times = {name: ([], []) for name in case.variants}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["ours"][0]) < 5:
        for name, function in case.variants.items():
            _, _, forward, backward = run_once(case, function, None)
            times[name][0].append(forward)
            times[name][1].append(backward)
    rows = []
    for name, (forward, backward) in times.items():
        total = statistics.median([f + b for f, b in zip(forward, backward)])
        row = Row(name, *_median(forward), *_median(backward), total * 1e3, *peak_memory(case, case.variants[name]))
        moved = sum(case.bytes_moved) if _leaves(case) else case.bytes_moved[0]
        row.bandwidth = moved / total / bandwidth
        rows.append(row)
    return rows


def table(case: Case, rows: list[Row]) -> str:
    """Markdown: one line a variant, ratios to eager of forward plus backward."""
    eager = next(r for r in rows if r.variant == "eager").total
    lines = [
        f"### {case.op}: {case.title}",
        "",
        "| variant | forward ms | backward ms | eager / this | peak MB | results MB | of copy bandwidth |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r.variant} | {r.forward:.3f} ± {r.forward_spread:.3f} | {r.backward:.3f} ± {r.backward_spread:.3f} "
            f"| {eager / r.total:.2f} | {r.peak / 1e6:.2f} | {r.outputs / 1e6:.2f} | {r.bandwidth:.0%} |"
        )
    lines += [f"\n`{name}`: {why}." for name, why in case.differs.items()]
    if case.target:
        ours = eager / next(r for r in rows if r.variant == "ours").total
        lines.append(f"\nTarget {case.target:g}x eager: {'met' if ours >= case.target else 'missed'} ({ours:.2f}x).")
    return "\n".join(lines)
