"""Arms of a comparison: configs, each with its host, and what train_net.py is called with for them."""

import dataclasses
import hashlib
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from detectron2.config import CfgNode, instantiate
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.utils.registry import locate
from shared.config import config_text, load_config
from shared.errors import UserError, nearest
from shared.training import setup
from shared.training.run import Run
from train_net import checked_run

ROOT = Path(__file__).resolve().parents[2]
AVERAGE_PRECISION = ("AP", "AP50", "AP75", "APs", "APm", "APl")  # of COCO's evaluation


class Keys(NamedTuple):
    """Where a kind of config has what a comparison sets."""

    output_dir: str
    seed: str
    max_iter: str
    eval_period: str
    device: str


LAZY_KEYS = Keys("train.output_dir", "train.seed", "train.max_iter", "train.eval_period", "train.device")
YAML_KEYS = Keys("OUTPUT_DIR", "SEED", "SOLVER.MAX_ITER", "TEST.EVAL_PERIOD", "MODEL.DEVICE")


def shown(argument: str | Path) -> str:
    """An argument without the folders of this machine."""
    path = Path(argument)
    if not path.is_absolute():
        return str(argument)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def keys_of(config: Path) -> Keys:
    return YAML_KEYS if isinstance(load_config(str(config)), CfgNode) else LAZY_KEYS


@dataclasses.dataclass(frozen=True)
class Arm:
    """A config with overrides of its own. host: the arm that it is compared with; None: it is a host alone."""

    name: str
    config: Path
    overrides: tuple[str, ...] = ()
    host: str | None = None

    @cached_property
    def keys(self) -> Keys:
        return keys_of(self.config)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A comparison. common: arguments of train_net.py for all arms; None leaves what the configs say. hashes: of what
    the configs resolve to, by arm and seed; `check` fills them in."""

    arms: dict[str, Arm]
    seeds: tuple[int, ...]
    runs: Path
    common: tuple[str, ...] = ()
    iterations: int | None = None
    eval_period: int | None = None
    hashes: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.runs / arm.name / str(seed)

    def arguments(self, arm: Arm, seed: int) -> list[str]:
        """train_net.py's, all but the folder and the seed."""
        arguments = ["--config-file", str(arm.config), *arm.overrides, *self.common]
        for key, value in ((arm.keys.max_iter, self.iterations), (arm.keys.eval_period, self.eval_period)):
            arguments += [] if value is None else [f"{key}={value}"]
        return [argument.replace("{seed}", str(seed)) for argument in arguments]

    def recorded(self, arm: Arm, seed: int) -> list[str]:
        """`arguments` as a run's record has them: the same in every copy of the repository."""
        return ["--config-file", shown(arm.config), *self.arguments(arm, seed)[2:]]

    def groups(self) -> dict[str, list[str]]:
        """{host: the arms compared with it}, in the arms' order."""
        found: dict[str, list[str]] = {name: [] for name in self.arms}
        for arm in self.arms.values():
            if arm.host is not None:
                found[arm.host].append(arm.name)
        return {host: methods for host, methods in found.items() if methods}


def parse_arm(text: str) -> Arm:
    """ "name@host=config,a.b=1,--with=msfm,lip" -> Arm. A path is looked for here, then in the repository."""
    left, equals, right = text.partition("=")
    name, at, host = left.partition("@")
    config, *overrides = re.split(r",(?=--|\+?[\w.-]+=)", right)  # no comma within a value: sizes=(8,16)
    if not equals or not name or not config or (at and not host):
        raise UserError(f"--arm {text!r}: write NAME=CONFIG or NAME@HOST=CONFIG, then overrides: ,key=value.")
    if not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        raise UserError(f"--arm {text!r}: a name is a folder's name, of letters, digits and _ . + - only.")
    if name.startswith(("report.", "compare.")):
        raise UserError(f"--arm {text!r}: names beginning with report. and compare. are of the tool's own files.")
    files = [Path(config), ROOT / config]
    file = next((f.resolve() for f in files if f.is_file()), None)
    if file is None:
        beside = next((f.parent.iterdir() for f in files if f.parent.is_dir()), ())
        hint = nearest(Path(config).name, (f.name for f in beside))
        raise UserError(f"--arm {text!r}: config file {config!r} does not exist{hint or '.'}")
    return Arm(name, file, tuple(word for text in overrides for word in _words(text)), host or None)


def _words(override: str) -> list[str]:
    """ "--with=a,b" -> "--with=a", "--with=b"; anything else is one word."""
    flag, equals, names = override.partition("=")
    return [f"{flag}={name}" for name in names.split(",")] if flag == "--with" and equals else [override]


def with_hosts(arms: list[Arm]) -> dict[str, Arm]:
    """By name. An arm without a host gets the first such arm as its host, unless it is another one's host itself."""
    names = [arm.name for arm in arms]
    if twice := next((n for n in names if names.count(n) > 1), None):
        raise UserError(f"--arm {twice} is given twice: every arm needs a name of its own.")
    for arm in arms:
        if arm.host is not None and arm.host not in names:
            hint = nearest(arm.host, names)
            raise UserError(f"--arm {arm.name}@{arm.host}: there is no arm {arm.host!r}{hint or ', add it.'}")
        if arm.host == arm.name:
            raise UserError(f"--arm {arm.name}@{arm.host}: an arm cannot be its own host.")
    hosts = {arm.host for arm in arms}
    first = next((arm.name for arm in arms if arm.host is None), None)
    alone = [arm.name for arm in arms if arm.host is None and arm.name not in hosts and arm.name != first]
    return {arm.name: dataclasses.replace(arm, host=first) if arm.name in alone else arm for arm in arms}


# ---------------------------------------------------------------- before anything is trained
def check(plan: Plan, task: str = "", metrics: Sequence[str] = ()) -> Plan:
    """The plan with its hashes. UserError, naming the arm, where train_net.py would not start, the evaluation lacks
    `metrics`, or arms are evaluated on different sets."""
    sets: dict[str, list[str]] = {}
    hashes: dict[tuple[str, int], str] = {}
    for arm in plan.arms.values():
        try:
            sets[arm.name], found = _check_arm(plan, arm, task, metrics)
        except UserError as e:
            raise UserError(f"Arm {arm.name}: {e}") from e
        hashes |= {(arm.name, seed): value for seed, value in found.items()}
    first, *others = sets
    for name in others:
        if sets[name] != sets[first]:
            raise UserError(
                f"Arm {name} is evaluated on {sets[name][0]}, arm {first} on {sets[first][0]}: "
                f"give all arms one set, by --val-json and --val-images or by an override after --."
            )
    return dataclasses.replace(plan, hashes=hashes)


def _check_arm(plan: Plan, arm: Arm, task: str, metrics: Sequence[str]) -> tuple[list[str], dict[int, str]]:
    """The names of its test sets and, by seed, a hash of what its config resolves to."""
    _check_overrides(plan, arm)
    tested, hashes = [], {}
    for seed in plan.seeds:
        arguments = tuple(plan.arguments(arm, seed))
        if arguments not in hashes:  # they differ by {seed} alone
            run = _checked_run(arm, arguments)
            tested = tested or _check_evaluation(run, task, metrics)
            hashes[arguments] = _hash(run)
    return tested, {seed: hashes[tuple(plan.arguments(arm, seed))] for seed in plan.seeds}


def _check_overrides(plan: Plan, arm: Arm) -> None:
    """UserError for what the comparison sets itself."""
    keys = arm.keys
    ours = {keys.output_dir: "--runs", keys.seed: "--seeds"}
    ours |= {keys.max_iter: "--iterations"} if plan.iterations is not None else {}
    ours |= {keys.eval_period: "--eval-period"} if plan.eval_period is not None else {}
    for override in (*arm.overrides, *plan.common):
        if flag := ours.get(override.partition("=")[0]):
            raise UserError(f"{override} is set by {flag}: leave it out.")


def _checked_run(arm: Arm, arguments: Sequence[str]) -> Run:
    """As train_net.py would make it, but for the folder and the seed, which are the same for all runs."""
    args = setup.parse_arguments([*arguments, f"{arm.keys.output_dir}=.", f"{arm.keys.seed}=0"])
    for flag in ("eval_only", "dry_run", "resume"):
        if getattr(args, flag):
            raise UserError(f"--{flag.replace('_', '-')} is not for a comparison: leave it out.")
    return checked_run(args)


def _hash(run: Run) -> str:
    """Of the config.yaml that the run would have; the same in every copy of the repository."""
    text = config_text(run.cfg).replace(f"{ROOT}{os.sep}", "")
    if isinstance(run.cfg, CfgNode) and run.cfg.DATASETS.OWN.TRAIN_JSON:
        for names in data_sets(run):  # made of the paths that stand beside them
            text = text.replace(names[0], "own")
    return hashlib.sha256(text.encode()).hexdigest()


def _check_evaluation(run: Run, task: str, metrics: Sequence[str]) -> list[str]:
    """The names of the test sets: one. UserError for metrics that COCO's evaluator lacks; of others only their results
    tell."""
    tested = data_sets(run)[1]
    if len(tested) != 1:
        raise UserError(f"It is evaluated on {len(tested)} sets ({', '.join(tested)}): compare on one.")
    meta = MetadataCatalog.get(tested[0])
    if _is_coco(run, meta) and task in ("", "bbox", "segm"):
        known = [*AVERAGE_PRECISION, *(f"AP-{name}" for name in meta.get("thing_classes", []))]
        if odd := [name for name in metrics if name not in known]:
            others = f": there are {', '.join(AVERAGE_PRECISION)} and AP-<class>."
            raise UserError(f"--metrics {' '.join(odd)}: its evaluation has none{nearest(odd[0], known) or others}")
    return tested


def _is_coco(run: Run, meta) -> bool:
    if isinstance(run.cfg, CfgNode):
        return meta.get("evaluator_type") == "coco"
    target = run.cfg.dataloader.evaluator._target_
    return (locate(target) if isinstance(target, str) else target) is COCOEvaluator


def data_sets(run: Run) -> tuple[list[str], list[str]]:
    """Names of the sets of training and test."""
    cfg = run.cfg
    if isinstance(cfg, CfgNode):
        return list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TEST)
    train, test = (instantiate(part.dataset.names) for part in (cfg.dataloader.train, cfg.dataloader.test))
    return [train] if isinstance(train, str) else list(train), [test] if isinstance(test, str) else list(test)
