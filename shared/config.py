"""Load a config file of either kind and apply `key=value` overrides; nothing misspelt gets through.

`.py`, and the `config.yaml` that a LazyConfig run saved, give a DictConfig; Detectron2's `.yaml` give
a CfgNode. A LazyConfig is Python code: load only files that you would run.
"""

import os
from collections.abc import Callable, Iterable, Sequence

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf

from detectron2.config import CfgNode, LazyConfig, get_cfg
from shared.errors import UserError, nearest

CFGNODE_KEYS = {"VERSION", "_BASE_", *get_cfg()}
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
    # Own data in COCO's format, registered by register_coco_set when set.
    cfg.DATASETS.OWN = CfgNode()
    for key in ("TRAIN_JSON", "TRAIN_IMAGES", "VAL_JSON", "VAL_IMAGES"):
        cfg.DATASETS.OWN[key] = ""
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


def load_config(file: str, overrides: Sequence[str] = ()) -> DictConfig | CfgNode:
    """Read `file` and apply `overrides` ("a.b=1"; for CfgNode also "A.B 1" pairs).

    Raises:
        UserError: no such file, not a config, unknown key, value of another type.
    """
    if not file:
        raise UserError("No config given: add --config-file FILE (.py or .yaml).")
    if not os.path.isfile(file):
        folder = os.path.dirname(file) or "."
        beside = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        hint = nearest(os.path.basename(file), beside)
        raise UserError(f"Config file {file!r} does not exist{hint or '.'}")
    if file.endswith(".py"):
        return apply_overrides(_load_lazy(file), overrides)
    if file.endswith((".yaml", ".yml")):
        if _is_cfgnode_yaml(file):
            return _load_cfgnode(file, overrides)
        return apply_overrides(_load_lazy(file), overrides)
    raise UserError(f"Config file {file!r} must end in .py, .yaml or .yml.")


def _load_lazy(file: str) -> DictConfig:
    try:
        cfg = LazyConfig.load(file)
    except (ImportError, SyntaxError, NameError, AttributeError, yaml.YAMLError) as e:
        raise UserError(f"Config file {file!r} cannot be loaded: {_one_line(e)}") from e
    missing = [k for k in ("model", "train", "dataloader", "optimizer") if k not in cfg]
    if missing:
        raise UserError(
            f"Config file {file!r} defines no {', '.join(missing)}: a training config needs model, "
            f"dataloader, optimizer, lr_multiplier and train."
        )
    return cfg


def _is_cfgnode_yaml(file: str) -> bool:
    """Detectron2's keys are upper case; those of a saved LazyConfig are variable names."""
    with open(file) as f:
        try:
            node = yaml.compose(f, Loader=yaml.SafeLoader)
        except yaml.YAMLError as e:
            raise UserError(f"Config file {file!r} is not valid YAML: {_one_line(e)}") from e
    if not isinstance(node, yaml.MappingNode):
        raise UserError(f"Config file {file!r} holds no keys.")
    return any(key.value in CFGNODE_KEYS for key, _ in node.value)


def _load_cfgnode(file: str, overrides: Sequence[str]) -> CfgNode:
    cfg = get_collection_cfg()
    try:
        cfg.merge_from_file(file, allow_unsafe=False)
    except KeyError as e:
        raise UserError(_unknown_key(str(e.args[0]), _cfgnode_keys(cfg), f" in {file}")) from e
    except (AssertionError, ValueError, yaml.YAMLError, OSError) as e:
        raise UserError(f"Config file {file!r} cannot be loaded: {_one_line(e)}") from e
    keys = _cfgnode_keys(cfg)
    for key, value in _cfgnode_pairs(overrides):
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, AssertionError):
            raise UserError(_unknown_key(key, keys)) from None
        except ValueError as e:
            raise UserError(f"Override {key}={value}: {_one_line(e)}") from e
    return cfg


def _cfgnode_pairs(overrides: Sequence[str]) -> Iterable[tuple[str, str]]:
    """ "A.B=1" and Detectron2's "A.B", "1"."""
    rest = iter(overrides)
    for item in rest:
        key, equals, value = item.partition("=")
        if not equals:
            value = next(rest, None)
            if value is None:
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
    return f"{type(e).__name__}: " + " ".join(str(e).split())
