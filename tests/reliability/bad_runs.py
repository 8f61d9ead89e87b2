"""The corpus' configs, checkpoints, overrides and command lines."""

import io
import pickle

import torch

from tests.reliability.corpus import (
    EVAL,
    LAZY,
    PREDICT,
    TRAIN,
    WITH_DATA,
    YAML,
    Case,
    Sandbox,
    arguments,
    config_file,
    save_config,
)
from tests.reliability.payload import malicious_pkl, malicious_pth, truncated_zip, zip_without_data

BOTH = (LAZY, YAML)


def derived(*lines: str):
    """A .py config that changes the tiny one; it lies beside a copy of its folder's `configs`."""
    text = "from detectron2.config import LazyConfig\n"
    names = ("dataloader", "lr_multiplier", "model", "optimizer", "train")
    text += f"{', '.join(names)} = LazyConfig.load('{{tiny}}/faster_rcnn.py', {names})\n"
    return config_file("broken.py", text + "\n".join(lines) + "\n")


def saved(change):
    """A run's config.yaml, with its text changed."""

    def damage(box: Sandbox) -> None:
        file = box.folder / "config.yaml"
        file.write_text(change(save_config(LAZY, file)))
        box.config = str(file)

    return damage


def cfgnode(text: str):
    return config_file("broken.yaml", text)


LAUGHS = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
CONFIGS = [
    ("syntax error", config_file("broken.py", "model = {\n"), ("broken.py", "SyntaxError")),
    ("null bytes", config_file("broken.py", b"a = 1\0\n"), ("broken.py",)),
    ("no Python", config_file("broken.py", b"\xff\xfe"), ("broken.py",)),
    (
        "program that fails",
        config_file("broken.py", "a = 1\nb = a / 0\n"),
        ("broken.py", "ZeroDivisionError", "line 2"),
    ),
    ("missing import", config_file("broken.py", "import no_such_module\n"), ("broken.py", "'no_such_module'")),
    ("imports itself", config_file("broken.py", "from .broken import model\n"), ("broken.py", "RecursionError")),
    ("imports nothing", config_file("broken.py", "from .absent import model\n"), ("broken.py", "absent")),
    ("no parts", config_file("broken.py", "model = dict(a=1)\n"), ("defines no train, dataloader, optimizer",)),
    ("model is a number", derived("model = 3"), ("broken.py", "defines no model")),
    ("train lacks a key", derived("train.pop('log_period')"), ("train.log_period", "a whole number")),
    ("no schedule", derived("del lr_multiplier"), ("broken.py", "no lr_multiplier")),
    ("unknown target", derived("model._target_ = 'shared.nothing.Model'"), ("model._target_", "shared.nothing.Model")),
    ("target is a module", derived("model._target_ = 'shared.solver'"), ("model._target_", "no class or function")),
    ("unknown argument", derived("model.backbone.out_chanels = 8"), ("backbone.out_chanels", "out_channels")),
    ("missing argument", derived("del model.backbone"), ("model", "backbone")),
    (
        "circular reference",
        derived("train.log_period = '${train.seed}'", "train.seed = '${train.log_period}'"),
        ("train.", "cannot be resolved"),
    ),
    ("dangling reference", derived("optimizer.lr = '${train.no_such_key}'"), ("optimizer.lr", "train.no_such_key")),
    (
        "value that its class refuses",
        derived("model.backbone.fuse_type = 'product'"),
        ("Config key model", "AssertionError"),
    ),
    ("unknown depth", derived("model.backbone.bottom_up.stages.depth = 17"), ("Config key model", "17")),
    (
        "pickled proposals",
        derived("dataloader.train.dataset.proposal_files = ['a.pkl']"),
        ("proposal_files", "could run any code"),
    ),
    ("unknown suffix", config_file("broken.txt", "a: 1"), ("broken.txt", "must end in .py, .yaml or .yml")),
    ("a folder", lambda box: setattr(box, "config", str(box.folder)), ("{folder}", "does not exist")),
    ("yaml list", cfgnode("- 1\n- 2\n"), ("broken.yaml", "holds no keys")),
    ("yaml text", cfgnode("hello"), ("broken.yaml", "holds no keys")),
    ("empty yaml", cfgnode(""), ("broken.yaml", "holds no keys")),
    ("yaml syntax", cfgnode("MODEL: [\n"), ("broken.yaml", "not valid YAML")),
    ("yaml not UTF-8", config_file("broken.yaml", b"MODEL: gr\xfcn\n"), ("broken.yaml", "cannot be read")),
    ("yaml that contains itself", cfgnode("MODEL: &a\n  A: *a\n"), ("broken.yaml", "aliases repeat each other")),
    ("yaml that multiplies", cfgnode(LAUGHS), ("broken.yaml", "aliases repeat each other")),
    ("yaml nested without end", cfgnode("[" * 5000), ("broken.yaml",)),
    (
        "yaml that makes an object",
        cfgnode("VERSION: 2\nSEED: !!python/object/apply:os.getcwd []\n"),
        ("broken.yaml", "python/object"),
    ),
    ("unknown key", cfgnode("SOLVER:\n  MAX_ITRE: 3\n"), ("SOLVER.MAX_ITRE", "did you mean SOLVER.MAX_ITER")),
    ("value of another type", cfgnode("VERSION: 2\nSOLVER:\n  MAX_ITER: many\n"), ("broken.yaml", "many")),
    ("group is a number", cfgnode("MODEL: 3\n"), ("broken.yaml",)),
    ("base is missing", cfgnode("_BASE_: absent.yaml\n"), ("absent.yaml",)),
    ("base of itself", cfgnode("_BASE_: broken.yaml\n"), ("broken.yaml", "leads back to itself")),
    ("base is a list", cfgnode("_BASE_: [1]\n"), ("broken.yaml",)),
    (
        "unknown architecture",
        cfgnode("VERSION: 2\nMODEL:\n  DEVICE: cpu\n  META_ARCHITECTURE: Nothing\n"),
        ("Nothing",),
    ),
    (
        "yaml proposals",
        cfgnode("VERSION: 2\nMODEL:\n  DEVICE: cpu\n  LOAD_PROPOSALS: True\n"),
        ("MODEL.LOAD_PROPOSALS", "could run any code"),
    ),
    ("run's yaml, cut", saved(lambda text: text[: text.index("optimizer")]), ("config.yaml", "defines no")),
    (
        "run's yaml, key twice nested",
        saved(lambda text: text.replace("\ntrain:", "\ntrain: 3\nold:")),
        ("config.yaml", "defines no train"),
    ),
]
OVERRIDES = [  # of a LazyConfig, of a CfgNode, the sentence
    ("train.max_iter", "SOLVER.MAX_ITER", "has no value"),
    ("train.max_itre=3", "SOLVER.MAX_ITRE=3", "did you mean"),
    ("train.max_iter=many", "SOLVER.MAX_ITER=many", "many"),
    ("train.max_iter=[1", "SOLVER.STEPS=(1", "(1|[1"),
    ("train.max_iter=0", "SOLVER.MAX_ITER=0", "must be a whole number of at least 1, got '0'"),
    ("train.max_iter=2.5", "SOLVER.MAX_ITER=2.5", "2.5"),
    ("train.log_period=0", "SOLVER.CHECKPOINT_PERIOD=0", "must be a whole number of at least 1"),
    ("train.checkpointer.period=-1", "SOLVER.CHECKPOINT_PERIOD=-1", "must be a whole number of at least 1"),
    ("train.eval_period=-1", "TEST.EVAL_PERIOD=-1", "must be a whole number of at least 0"),
    ("dataloader.train.total_batch_size=-2", "SOLVER.IMS_PER_BATCH=-2", "must be a whole number of at least 1"),
    ("dataloader.train.num_workers=-1", "DATALOADER.NUM_WORKERS=-1", "must be a whole number of at least 0"),
    ("optimizer.lr=-0.1", "SOLVER.BASE_LR=-0.1", "must be a number of at least 0"),
    ("optimizer.lr=nan", "SOLVER.MOMENTUM=-1.0", "must be a number of at least 0"),
    ("train.seed=99999999999", "SEED=99999999999", "must be a whole number below"),
    ("train.device=gpu", "MODEL.DEVICE=gpu", "must be a device such as cpu"),
    ("train.device=meta", "MODEL.DEVICE=meta", "must be a device such as cpu"),
    ("train.device=mps", "MODEL.DEVICE=mps", "must be a device such as cpu"),
    ("model=null", "MODEL=None", "model must be a group of keys, got null|MODEL=None"),
    ("train.seed=null", "SEED=None", "must be a whole number below 2147483648 (below 0: a random one), got null"),
    ("dataloader.train.total_batch_size=null", "SOLVER.IMS_PER_BATCH=None", "a whole number of at least 1, got null"),
    ("dataloader.test.num_workers=null", "DATALOADER.NUM_WORKERS=None", "a whole number of at least 0, got null"),
    ("optimizer.lr=null", "SOLVER.BASE_LR=None", "must be a number of at least 0, got null"),
    ("train.max_iter=null", "SOLVER.MAX_ITER=None", "must be a whole number of at least 1, got null"),
    ("train.output_dir=''", "OUTPUT_DIR=''", "the name of a folder"),
    ("model.backbone.nothing=1", "MODEL.BACKBONE.NOTHING=1", "Unknown config key"),
    ("train.float32_precision=low", "FLOAT32_PRECISION=low", "must be highest, high, medium"),
    ("train.clip_grad_norm=-1", "SOLVER.CLIP_GRADIENTS.GLOBAL_NORM=-1.0", "must be a number of at least 0"),
    ("train=3", "SOLVER=3", "SOLVER|train"),
    ("train.ema.decay=1", "SOLVER.MAX_ITER.X=1", "must be a number in [0, 1)|Unknown config key"),
]


def weights(name: str, content):
    """Weights of this name; `content` of bytes, or what torch.save writes of it."""

    def damage(box: Sandbox) -> None:
        made = content(box) if callable(content) else content
        if not isinstance(made, bytes):
            buffer = io.BytesIO()
            torch.save(made, buffer)
            made = buffer.getvalue()
        box.weights = str(box.write(name, made))

    return damage


def _wrong_shape(box: Sandbox) -> dict:
    state = torch.load(box.weights, weights_only=True)["model"]
    key = next(k for k in state if k.endswith("cls_score.weight"))
    return {"model": {**state, key: torch.zeros(1, 1)}}


def _nan(box: Sandbox) -> dict:
    state = torch.load(box.weights, weights_only=True)["model"]
    key = next(k for k in state if k.endswith("cls_score.weight"))
    return {"model": {**state, key: torch.full_like(state[key], torch.nan)}}


def _marker(box: Sandbox):
    return box.folder / "marker"


CHECKPOINTS = [
    ("text", weights("w.pth", b"hello"), ("w.pth", "is not a checkpoint")),
    ("empty", weights("w.pth", b""), ("w.pth", "is not a checkpoint")),
    (
        "truncated",
        weights("w.pth", lambda _: truncated_zip({"model": {"w": torch.zeros(99)}})),
        ("w.pth", "is not a checkpoint"),
    ),
    ("zip of something else", weights("w.pth", lambda _: zip_without_data()), ("w.pth", "is not a checkpoint")),
    ("malicious", weights("w.pth", lambda box: malicious_pth(_marker(box))), ("w.pth", "is not a checkpoint")),
    (
        "malicious, legacy format",
        weights("w.pth", lambda box: malicious_pth(_marker(box), True)),
        ("w.pth", "is not a checkpoint"),
    ),
    (
        "malicious pkl",
        weights("w.pkl", lambda box: malicious_pkl(_marker(box))),
        ("w.pkl", "open when loaded: refused"),
    ),
    (
        "malicious pkl, protocol 0",
        weights("w.pkl", lambda box: malicious_pkl(_marker(box), 0)),
        ("w.pkl", "open when loaded: refused"),
    ),
    (
        "malicious pkl called pth",
        weights("w.pth", lambda box: malicious_pkl(_marker(box))),
        ("w.pth", "is not a checkpoint"),
    ),
    ("truncated pkl", weights("w.pkl", pickle.dumps({"model": {}})[:-3]), ("w.pkl", "is not a pickle of arrays")),
    ("pkl of a list", weights("w.pkl", pickle.dumps([1, 2])), ("w.pkl", "holds no state dict but list")),
    ("tensor alone", weights("w.pth", torch.zeros(3)), ("w.pth", "holds no state dict but Tensor")),
    ("list", weights("w.pth", [1, 2]), ("w.pth", "holds no state dict but list")),
    ("model is a number", weights("w.pth", {"model": 3}), ("w.pth", "holds no weights")),
    ("values are text", weights("w.pth", {"model": {"a": "b"}}), ("w.pth", "'a' is no tensor")),
    ("keys are numbers", weights("w.pth", {"model": {1: torch.zeros(1)}}), ("w.pth", "'1' is no tensor")),
    ("no entry", weights("w.pth", {"model": {}}), ("w.pth", "holds no weights")),
    (
        "another architecture",
        weights("w.pth", {"model": {"fc.weight": torch.zeros(1)}}),
        ("w.pth", "of another architecture"),
    ),
    ("missing", lambda box: setattr(box, "weights", str(box.folder / "no.pth")), ("no.pth", "does not exist")),
    ("a folder", lambda box: setattr(box, "weights", str(box.folder)), ("{folder}", "does not exist")),
    ("unknown address", lambda box: setattr(box, "weights", "nowhere://w.pth"), ("nowhere://w.pth",)),
]


def no_flags(*extra: str, config: str | None = None):
    def damage(box: Sandbox) -> None:
        box.flags, box.extra = [], list(extra)
        if config is not None:
            box.config = config

    return damage


def _file_as_output(box: Sandbox, below: str = "") -> None:
    box.output = box.write("taken", "keep me") / below


def _input(name: str, content: bytes | None = None):
    """Predict on a file of this content, or on a folder with one such file; None: an empty folder."""

    def damage(box: Sandbox) -> None:
        box.input = box.folder / "input"
        box.input.mkdir()
        if content is not None:
            (box.input / name).write_bytes(content)

    return damage


def _run_there(box: Sandbox) -> None:
    box.output.mkdir()
    (box.output / "metrics.json").write_text("keep me")


COMMAND_LINES = [
    ("no config", no_flags(config=""), (), (TRAIN, PREDICT)),
    ("missing config", no_flags(config="no/such.py"), ("no/such.py' does not exist",), (TRAIN, PREDICT)),
    (
        "some of the four flags",
        lambda box: setattr(box, "flags", box.flags[:4]),
        ("missing: --val-json, --val-images",),
        (TRAIN, EVAL),
    ),
    ("no data", no_flags(), ("add dataloader.test.dataset.names.image_root=VALUE",), (TRAIN, EVAL)),
    (
        "skip without own data",
        lambda box: (setattr(box, "flags", []), setattr(box, "config", YAML), box.extra.append("--skip-bad-records")),
        ("--skip-bad-records is for own data",),
        (TRAIN,),
    ),
    ("unknown flag", arguments("--no-such-flag"), ("--no-such-flag",), (TRAIN, PREDICT)),
    (
        "image folder is missing",
        lambda box: box.flags.__setitem__(3, "no/images"),
        ("Image folder", "no/images does not exist"),
        (TRAIN, EVAL),
    ),
    ("output is a file", _file_as_output, ("taken", "is a file|File exists"), (TRAIN, EVAL, PREDICT)),
    ("output below a file", lambda box: _file_as_output(box, "run"), ("taken/run",), (TRAIN, EVAL, PREDICT)),
    ("output holds a run", _run_there, ("already holds a run (metrics.json)",), (TRAIN,)),
    ("no weights", lambda box: setattr(box, "weights", ""), ("weights",), (EVAL, PREDICT)),
    ("no process", arguments("--num-gpus", "0"), ("--num-gpus must be at least 1",), (TRAIN, EVAL)),
    ("number of processes is text", arguments("--num-gpus", "two"), ("--num-gpus", "two"), (TRAIN,)),
    ("rank beyond the machines", arguments("--machine-rank", "3"), ("--machine-rank", "got 3"), (TRAIN,)),
    (
        "machines without an address",
        arguments("--num-machines", "2", "--machine-rank", "1"),
        ("2 machines need a place to meet", "--dist-url tcp://HOST:29500"),
        (TRAIN,),
    ),
    (
        "auto of machines",
        arguments("--num-machines", "2", "--dist-url", "auto"),
        ("2 machines need a place to meet",),
        (TRAIN,),
    ),
    ("port beyond all", arguments("--dist-url", "tcp://127.0.0.1:99999"), ("--dist-url", "127.0.0.1:99999'"), (TRAIN,)),
    ("address without port", arguments("--dist-url", "tcp://node0"), ("--dist-url", "'tcp://node0'"), (TRAIN,)),
    ("address of no kind", arguments("--dist-url", "foo"), ("--dist-url must be auto or tcp", "got 'foo'"), (TRAIN,)),
    (
        "batch that cannot be shared",
        arguments("--num-gpus", "3"),
        ("2 images cannot be shared evenly by 3 processes",),
        (TRAIN,),
    ),
    ("input is missing", lambda box: setattr(box, "input", box.folder / "no"), ("no' does not exist",), (PREDICT,)),
    ("empty input", _input(""), ("holds no image",), (PREDICT,)),
    ("input without images", _input("a.txt", b"text"), ("holds no image",), (PREDICT,)),
    ("input is no image", _input("a.png", b"text"), ("a.png cannot be read",), (PREDICT,)),
    (
        "threshold of two",
        arguments("--score-threshold", "2"),
        ("--score-threshold must be between 0 and 1",),
        (PREDICT,),
    ),
    (
        "threshold nan",
        arguments("--score-threshold", "nan"),
        ("--score-threshold must be between 0 and 1",),
        (PREDICT,),
    ),
    ("limit of none", arguments("--limit", "0"), ("--limit must be at least 1",), (PREDICT,)),
]


def _override(lazy: str, yaml: str):
    return lambda box: box.extra.append(box.key(lazy, yaml))


def _cases() -> list[Case]:
    cases = [Case(f"config {name}", damage, says, (*WITH_DATA, PREDICT)) for name, damage, says in CONFIGS]
    for lazy, yaml, says in OVERRIDES:
        ours = lazy.startswith(("train.output_dir", "train.seed"))  # tools/compare.py sets them itself
        commands = (TRAIN, EVAL) if ours else WITH_DATA
        cases.append(Case(f"override {lazy}", _override(lazy, yaml), (says,), commands, BOTH))
    cases += [Case(f"weights {name}", damage, says, (EVAL, PREDICT), BOTH) for name, damage, says in CHECKPOINTS]
    cases.append(
        Case("weights of another shape", weights("w.pth", _wrong_shape), ("w.pth", "cls_score"), (EVAL, PREDICT), BOTH)
    )
    cases.append(Case("weights of NaN", weights("w.pth", _nan), ("w.pth", "cls_score", "NaN"), (EVAL, PREDICT), BOTH))
    cases += [Case(f"command {name}", damage, says, commands) for name, damage, says, commands in COMMAND_LINES]
    return cases


CASES = _cases()
