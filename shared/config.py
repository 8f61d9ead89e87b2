"""Load a config file of either kind and apply `key=value` overrides; nothing misspelt gets through.

`.py`, and the `config.yaml` that a LazyConfig run saved, give a DictConfig; Detectron2's `.yaml` give
a CfgNode. A .py config is Python code, which loading runs: load only files that you would run. A .yaml config is read
as plain values; one of a LazyConfig names functions to call, of which `shared.trust` allows those of the collection.
"""

import math
import os
import tempfile
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detectron2.config import CfgNode, LazyConfig, get_cfg
from shared.config_checks import check_can_be_saved, check_lazy_config
from shared.errors import UserError, nearest
from shared.settings import check_settings
from shared.trust import read_lazy_yaml

CFGNODE_KEYS = {"VERSION", "_BASE_", *get_cfg()}
MAX_VALUES = 100_000  # of a .yaml file; the largest config of the collection has some 1,000
ROOT = Path(__file__).resolve().parent.parent
_PROJECT_CONFIGS: list[Callable[[CfgNode], None]] = []


def register_project_config(add: Callable[[CfgNode], None]) -> Callable[[CfgNode], None]:
    """Have `get_collection_cfg()` call `add(cfg)`, which adds a project's keys. Usable as a decorator."""
    if add not in _PROJECT_CONFIGS:
        _PROJECT_CONFIGS.append(add)
    return add


def add_collection_config(cfg: CfgNode) -> None:
    """The collection's own keys of the CfgNode route and those of its projects, with their defaults."""
    # Upper bound of the L2 norm over all gradients together; 0 is off. See shared.solver.
    cfg.SOLVER.CLIP_GRADIENTS.GLOBAL_NORM = 0.0
    cfg.SOLVER.SYNC_NORMALIZERS = False  # see shared.modeling.normalizers
    cfg.SOLVER.AMP.DTYPE = "float16"  # or "bfloat16": of mixed precision training
    # Own data in COCO's format, registered by register_coco_set when set.
    cfg.DATASETS.OWN = CfgNode()
    for key in ("TRAIN_JSON", "TRAIN_IMAGES", "VAL_JSON", "VAL_IMAGES"):
        cfg.DATASETS.OWN[key] = ""
    cfg.DATASETS.OWN.SKIP_BAD_RECORDS = False
    cfg.DATASETS.CLASS_NAMES = []  # of the trained model; filled by train_net.py
    # Text of a LazyConfig's model; see shared.predictor.
    cfg.MODEL.LAZY = CfgNode({"YAML": ""})
    for add in _PROJECT_CONFIGS:
        add(cfg)


def get_collection_cfg() -> CfgNode:
    """`get_cfg()` with the collection's keys."""
    cfg = get_cfg()
    add_collection_config(cfg)
    return cfg


def load_config(
    file: str,
    overrides: Sequence[str] = (),
    named_by: str = "",
    change: Callable[[DictConfig | CfgNode], DictConfig | CfgNode] = lambda cfg: cfg,
) -> DictConfig | CfgNode:
    """Read `file`, let `change` have it, and apply `overrides` ("a.b=1"; for CfgNode also "A.B 1" pairs).

    Args:
        named_by: the key of a config that names `file`, which must then be a .yaml or one of the collection's: a text
            cannot have code run.

    Raises:
        UserError: no such file, not a config, unknown key, value of another type, a call of nothing that is trusted.
    """
    if not file:
        raise UserError("No config given: add --config-file FILE (.py or .yaml).")
    if not os.path.isfile(file):
        folder = os.path.dirname(file) or "."
        beside = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        hint = nearest(os.path.basename(file), beside)
        raise UserError(f"Config file {file!r} does not exist{hint or '.'}")
    if file.endswith(".py"):
        path = Path(file).resolve()
        if named_by and not any(path.is_relative_to(ROOT / part) for part in ("configs", "projects", "tests")):
            raise UserError(
                f"{named_by} names {file!r}, a Python file outside the collection: give the config.yaml of its run."
            )
    elif not file.endswith((".yaml", ".yml")):
        raise UserError(f"Config file {file!r} must end in .py, .yaml or .yml.")
    elif _is_cfgnode_yaml(file):
        cfg = _load_cfgnode(file, overrides, change)
        check_settings(cfg, file)
        return cfg
    cfg = apply_overrides(change(_load_lazy(file)), overrides)
    check_lazy_config(cfg, file)
    check_settings(cfg, file)
    return cfg


def config_text(cfg: DictConfig | CfgNode) -> str:
    """The YAML that `load_config` makes the same config of; UserError names the key of what YAML cannot hold."""
    if isinstance(cfg, CfgNode):
        return cfg.dump()
    check_can_be_saved(cfg)
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, "config.yaml")
        LazyConfig.save(cfg, file)
        return Path(file).read_text()


def _load_lazy(file: str) -> DictConfig:
    cfg = _run_config(file) if file.endswith(".py") else _read_yaml(file)
    missing = [k for k in ("model", "train", "dataloader", "optimizer") if not isinstance(cfg.get(k), DictConfig)]
    if missing:
        raise UserError(
            f"Config file {file!r} defines no {', '.join(missing)}: a training config needs model, "
            f"dataloader, optimizer, lr_multiplier and train."
        )
    return cfg


def _run_config(file: str) -> DictConfig:
    try:
        return LazyConfig.load(file)
    except UserError:
        raise
    except Exception as e:  # it is a program: anything can go wrong
        frames = [f for f in traceback.extract_tb(e.__traceback__) if f.name == "<module>"]
        place = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
        raise UserError(f"Config file {file!r} cannot be loaded: {_one_line(e)}{place}") from e


def _read_yaml(file: str) -> DictConfig:
    content = read_lazy_yaml(_text(file), f"Config file {file!r}")
    try:
        return OmegaConf.create(content, flags={"allow_objects": True})
    except (OmegaConfBaseException, ValueError) as e:
        raise UserError(f"Config file {file!r} cannot be loaded: {_one_line(e)}") from e


def _text(file: str) -> str:
    try:
        with open(file, encoding="utf-8") as f:
            return f.read()
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"Config file {file!r} cannot be read: {_one_line(e)}") from e


def _is_cfgnode_yaml(file: str) -> bool:
    """Detectron2's keys are upper case; those of a saved LazyConfig are variable names."""
    try:
        node = yaml.compose(_text(file), Loader=yaml.SafeLoader)
        expanded = 0 if node is None else _expanded(node, {})
    except yaml.YAMLError as e:
        raise UserError(f"Config file {file!r} is not valid YAML: {_one_line(e)}") from e
    except RecursionError as e:
        raise UserError(f"Config file {file!r} is nested too deeply.") from e
    if expanded > MAX_VALUES:
        raise UserError(
            f"Config file {file!r} stands for more than {MAX_VALUES} values, as its aliases repeat each other."
        )
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"Config file {file!r} holds no keys.")
    return any(isinstance(key, yaml.ScalarNode) and key.value in CFGNODE_KEYS for key, _ in node.value)


def _expanded(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node stands for, aliases followed; infinite where one contains itself. known: by id."""
    if id(node) not in known:
        known[id(node)] = math.inf
        children = node.value if isinstance(node, yaml.CollectionNode) else ()
        pairs = isinstance(node, yaml.MappingNode)
        known[id(node)] = 1 + sum(_expanded(x, known) for child in children for x in (child if pairs else (child,)))
    return known[id(node)]


def _load_cfgnode(file: str, overrides: Sequence[str], change: Callable[[CfgNode], CfgNode]) -> CfgNode:
    cfg = get_collection_cfg()
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except KeyError as e:
        raise UserError(_unknown_key(str(e.args[0]), _cfgnode_keys(cfg), f" in {file}")) from e
    except (AssertionError, ValueError, TypeError, AttributeError, yaml.YAMLError, OSError) as e:
        raise UserError(f"Config file {file!r} cannot be loaded: {_one_line(e)}") from e
    except RecursionError as e:
        raise UserError(f"Config file {file!r} cannot be loaded: its _BASE_ leads back to itself.") from e
    cfg = change(cfg)
    keys = _cfgnode_keys(cfg)
    for key, value in _cfgnode_pairs(overrides, keys):
        if key not in keys:
            raise UserError(_unknown_key(key, keys))
        try:
            cfg.merge_from_list([key, value])
        except (ValueError, AssertionError) as e:
            raise UserError(f"Override {key}={value}: {_one_line(e)}") from e
    return cfg


def _cfgnode_pairs(overrides: Sequence[str], known: Iterable[str]) -> Iterable[tuple[str, str]]:
    """ "A.B=1" and Detectron2's "A.B", "1". known: keys."""
    rest = iter(overrides)
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals:
            value = next(rest, None)
            if value is None or value.partition("=")[0] in known:  # the next override
                raise UserError(f"Override {item!r} has no value: write {item}=VALUE.")
        yield key, value


def _cfgnode_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in node.items():
        keys.append(prefix + key)
        if isinstance(value, CfgNode):
            keys += _cfgnode_keys(value, f"{prefix}{key}.")
    return keys


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`LazyConfig.apply_overrides`, but a key must exist already; "+a.b=1" adds one on purpose.

    Raises:
        UserError: unknown key (names the nearest), a "key" without "=value", bad grammar.
    """
    keys = list(lazy_keys(cfg))
    plain = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals:
            raise UserError(f"Override {override!r} has no value: write {override}=VALUE.")
        if key.startswith("+"):
            override = override[1:]
        elif not _has_key(cfg, key):
            raise UserError(_unknown_key(key, keys))
        plain.append(override)
    before = {key: OmegaConf.select(cfg, key) for key in _override_keys(plain)}
    try:
        cfg = LazyConfig.apply_overrides(cfg, plain)
    except (KeyError, NotImplementedError) as e:
        raise UserError(f"Overrides {plain}: {_one_line(e)}") from e
    except Exception as e:  # hydra's and omegaconf's many kinds
        if type(e).__module__.partition(".")[0] not in ("hydra", "omegaconf"):
            raise
        raise UserError(f"Overrides {plain}: {_one_line(e)}") from e
    for key, old in before.items():
        new = OmegaConf.select(cfg, key)
        if isinstance(old, bool | int | float) and new is not None:
            kind = bool if isinstance(old, bool) else (int, float)
            if not isinstance(new, kind) or isinstance(new, bool) != isinstance(old, bool):
                wanted = "true or false" if isinstance(old, bool) else "a number"
                raise UserError(f"Override {key}={new}: the value must be {wanted}, as {old} is.")
    return cfg


def _override_keys(overrides: Sequence[str]) -> list[str]:
    return [o.partition("=")[0] for o in overrides]


def _has_key(cfg: DictConfig, dotted: str) -> bool:
    node = cfg
    for part in dotted.split("."):
        if isinstance(node, ListConfig):
            if not (part.isdigit() and int(part) < len(node)):
                return False
            node = node._get_node(int(part))
        elif isinstance(node, DictConfig) and part in node.keys():
            node = node._get_node(part)
        else:
            return False
        while node is not None and OmegaConf.is_config(node) and node._is_interpolation():
            node = node._dereference_node()
    return True


def lazy_keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterable[str]:
    """Every dotted key of a LazyConfig, inner nodes included, interpolations not followed."""
    is_dict = isinstance(node, DictConfig)
    for key in node.keys() if is_dict else range(len(node)):
        if key == "_target_":
            continue
        yield f"{prefix}{key}"
        child = node._get_node(key)
        if OmegaConf.is_config(child) and not (child._is_none() or child._is_missing() or child._is_interpolation()):
            yield from lazy_keys(child, f"{prefix}{key}.")


def _unknown_key(key: str, known: Iterable[str], where: str = "") -> str:
    key = key.removeprefix("Non-existent config key: ")
    return f"Unknown config key {key!r}{where}{nearest(key, known) or '.'}"


def _one_line(e: BaseException) -> str:
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: " + (text if len(text) <= 400 else f"{text[:400]}...")
