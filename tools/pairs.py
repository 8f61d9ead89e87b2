#!/usr/bin/env python3
"""Which methods of the collection go together: trains and evaluates every pair for a step, and writes a table.

tools/pairs.py --output docs/combinations.md

Narrow models on the CPU, synthetic images, minutes. The table says what came out, nothing else.
"""

import argparse
import math
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from omegaconf import DictConfig, ListConfig, OmegaConf  # noqa: E402
from torch import nn  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import LazyConfig, instantiate  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from detectron2.utils.events import EventStorage  # noqa: E402
from projects.combine import METHODS, combine  # noqa: E402
from shared import engine  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402

HOSTS = {  # a narrow ResNet of bottleneck blocks below both
    "Faster R-CNN": "configs/quickstart_bottleneck.py",
    "RetinaNet": "projects/MSFM/configs/retinanet_quick.py",
}
# What makes these backbones as small as the hosts' own
KNOBS = {
    "fishnet": {"depth": 99, "width": 16},
    "depla_fishnet": {"depth": 99, "width": 16},
    "lip_densenet": {"growth": 8, "blocks": [1, 1, 1, 1], "stem_channels": 16, "pooling": {"width": 8}},
}
TRIPLES = {
    "Faster R-CNN": (
        ("lip", "msfm", "internet"),
        ("depla", "depla_fpn", "internet_ot"),
        ("depla_fishnet", "depla_fpn", "labelenc"),
        ("lip", "msfm", "depla", "se_resnet", "depla_fpn", "dynamic", "grid", "internet", "labelenc"),
    ),
    "RetinaNet": (
        ("msfm", "musu", "labelenc"),
        ("lip", "depla_fpn", "reppoints"),
        ("lip", "msfm", "depla", "se_resnet", "depla_fpn", "musu", "labelenc"),
    ),
}
MAX_ITER, ITERATION = 4, 2  # of the training that the step is a part of: LabelEnc's warm-up is over by then
SIZE = (64, 96)  # height and width of the images


def load_host(name: str) -> DictConfig:
    """The model of one of HOSTS, that looks at few RoIs."""
    model = LazyConfig.load(str(ROOT / HOSTS[name])).model
    if "roi_heads" in model:
        model.roi_heads.update(batch_size_per_image=16, positive_fraction=0.5)  # objects among them in every step
        model.proposal_generator.update(pre_nms_topk=(100, 50), post_nms_topk=(50, 20))
    else:
        model.test_score_thresh = 0.0
    return model


def combined(host: DictConfig, names: Sequence[str]) -> DictConfig:
    """The host with the methods in a config of which its model is a part, accepting every detection.

    UserError: they do not go together.
    """
    model = combine(host, *names, **{name: KNOBS[name] for name in names if name in KNOBS})
    cfg = OmegaConf.create({"train": {"max_iter": MAX_ITER}}, flags={"allow_objects": True})
    cfg.model = model
    _accept_all(cfg.model)
    return cfg.model


def _accept_all(node: DictConfig | ListConfig) -> None:
    children = node.values() if isinstance(node, DictConfig) else list(node)
    if isinstance(node, DictConfig) and "test_score_thresh" in node:
        node.test_score_thresh = 0.0
    for child in children:
        if OmegaConf.is_config(child):
            _accept_all(child)


def make_batch(num_classes: int, size: tuple[int, int] = SIZE) -> list[dict]:
    """Two images of noise, one with three objects and one without any. size: height, width."""
    rng = torch.Generator().manual_seed(0)
    height, width = size
    boxes = torch.tensor([[0.1, 0.1, 0.4, 0.6], [0.2, 0.05, 0.9, 0.95], [0.6, 0.5, 0.7, 0.7]])
    boxes = boxes * torch.tensor([width, height, width, height])
    classes = torch.tensor([0, 0, 1])  # a large and a small one alike: InterNet compares them
    batch = []
    for number in (3, 0):
        target = Instances(size, gt_boxes=Boxes(boxes[:number]), gt_classes=classes[:number] % num_classes)
        image = torch.randint(0, 256, (3, *size), generator=rng, dtype=torch.uint8)
        batch.append({"image": image, "instances": target, "height": height, "width": width})
    return batch


@dataclass
class Outcome:
    """Of one combination. refusal: the sentence, "" where it trains. The others then hold what happened."""

    names: tuple[str, ...]
    refusal: str = ""
    losses: dict[str, float] = field(default_factory=dict)
    gradients: dict[str, bool] = field(default_factory=dict)  # by parameter that trains: whether any is not 0
    detections: int = 0


def run(host: DictConfig, names: Sequence[str]) -> Outcome:
    """One training step and one evaluation step of the combination, or its refusal.

    RuntimeError: a loss, a gradient or a detection that is not finite, a parameter without a gradient.
    """
    try:
        node = combined(host, names)
    except UserError as e:
        return Outcome(tuple(names), refusal=str(e))
    torch.manual_seed(0)
    model = instantiate(node)
    batch = make_batch(getattr(model, "roi_heads", model).num_classes)
    with EventStorage(ITERATION):
        losses = _train_step(model, batch)
    gradients = {n: bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters() if p.requires_grad}
    model.eval()
    with torch.no_grad():
        found = [output["instances"] for output in model(batch)]
    if not all(torch.isfinite(x.pred_boxes.tensor).all() and torch.isfinite(x.scores).all() for x in found):
        raise RuntimeError(f"{' + '.join(names)}: detections are not finite.")
    return Outcome(tuple(names), losses=losses, gradients=gradients, detections=sum(map(len, found)))


def _train_step(model: nn.Module, batch: list[dict]) -> dict[str, float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    losses = model(batch)
    sum(losses.values()).backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    broken = [n for n, p in model.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    if missing or broken:
        raise RuntimeError(f"Gradients are missing of {missing[:3]} or not finite of {broken[:3]}.")
    optimizer.step()
    values = {name: loss.item() for name, loss in losses.items()}
    if not all(map(math.isfinite, values.values())):
        raise RuntimeError(f"Losses are not finite: {values}.")
    return values


# ---------------------------------------------------------------- the table
def run_all(host_name: str) -> Iterator[Outcome]:
    """Every method alone, every pair, and the host's TRIPLES."""
    host = load_host(host_name)
    for names in (*((name,) for name in METHODS), *combinations(METHODS, 2), *TRIPLES[host_name]):
        yield run(host, names)


def table(host_name: str, outcomes: Sequence[Outcome]) -> str:
    """Markdown: who goes with whom, on the diagonal the method alone; a number is that of a reason below."""
    cells, reasons = {}, {}
    for outcome in outcomes:
        if len(outcome.names) <= 2:
            number = reasons.setdefault(outcome.refusal, len(reasons) + 1) if outcome.refusal else None
            cells[frozenset(outcome.names)] = f"[{number}]" if number else "trains"
    names = list(METHODS)
    rows = [f"| {host_name} | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for i, name in enumerate(names):
        row = [cells[frozenset((name, other))] for other in names[: i + 1]]
        rows.append(f"| {name} | " + " | ".join([*row, *[""] * (len(names) - len(row))]) + " |")
    rows.append("")
    rows += [f"{number}. {reason}" for reason, number in reasons.items()]
    more = [outcome for outcome in outcomes if len(outcome.names) > 2]
    rows += ["", f"Three and more on the {host_name}:", ""]
    rows += [f"- {' + '.join(o.names)}: {o.refusal or 'trains'}" for o in more]
    return "\n".join(rows)


def document() -> str:
    """The whole file, after running everything."""
    name, version = engine.describe().splitlines()[0].partition(" (")[0].split(maxsplit=1)[1], torch.__version__
    parts = [
        "# Which methods go together",
        f"Generated by `tools/pairs.py` on {date.today().isoformat()} with {name} and PyTorch "
        f"{version.partition('+')[0]}; do not edit. Each cell is one training and one evaluation step of a narrow "
        f"model on the CPU, with finite losses, a gradient for every parameter and finite detections (trains), or the "
        f"number of the reason why the two are refused. The diagonal is the method alone. Nothing is said of accuracy.",
        '`combine(model, "msfm", "depla_fpn")` in a config, or `train_net.py --config-file HOST.py --with msfm '
        "depla_fpn`: any order will do. `python -m projects.combine` says what each name is.",
    ]
    for name in HOSTS:
        outcomes = []
        for outcome in run_all(name):
            print(f"{name}: {' + '.join(outcome.names)}: {outcome.refusal or 'trains'}", flush=True)
            outcomes.append(outcome)
        parts += [f"## {name}", table(name, outcomes)]
    parts[1:3] = [textwrap.fill(part, 120, break_long_words=False) for part in parts[1:3]]
    return "\n\n".join(parts) + "\n"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, metavar="FILE", help="a table of an earlier run is replaced")
    file = Path(parser.parse_args(argv).output)
    if file.exists() and "Generated by `tools/pairs.py`" not in file.read_text():
        raise UserError(f"--output {file} exists and is no table of this tool: name another file.")
    torch.set_num_threads(1)  # maps are small
    text = document()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


if __name__ == "__main__":
    main()
