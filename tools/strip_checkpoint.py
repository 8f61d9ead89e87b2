#!/usr/bin/env python3
"""A checkpoint for inference: without the parts that training alone needs, without the optimizer's state.

    tools/strip_checkpoint.py --config-file output/config.yaml --weights output/model_final.pth --output small.pth

The model says which parts these are (`training_only` of its modules, see shared/training_only.py); detections stay the
same bit for bit. The input is left as it is.
"""

import argparse
import os
import sys
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from detectron2.config import CfgNode  # noqa: E402
from shared.checkpoint import NOT_WEIGHTS, check_weights_file  # noqa: E402
from shared.config import load_config  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.files import disk_errors, whole_file  # noqa: E402
from shared.training.run import make_run  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from shared.training_only import training_only_prefixes  # noqa: E402
from tools.output import new_file  # noqa: E402


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help=".py or .yaml; a run's config.yaml")
    parser.add_argument("--weights", required=True, help="a .pth checkpoint of that config's model")
    parser.add_argument("--output", required=True, help="a file that is not there yet")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


def build_on_cpu(config_file: str, opts: list[str]) -> torch.nn.Module:
    cfg = load_config(config_file, opts)
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = "cpu"
    else:
        cfg.train.device = "cpu"
    return make_run(cfg).build_model()


def read_checkpoint(path: str) -> dict:
    """A checkpoint with its "model"; a bare state dict becomes one."""
    if not path.endswith(".pth"):
        raise UserError(f"--weights {path!r} must be a .pth file.")
    check_weights_file(path)
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content if "model" in content else {"model": content}


def strip(state: dict[str, Tensor], model: torch.nn.Module, path: str = "") -> tuple[dict, dict[str, dict]]:
    """Returns the entries that inference needs, and the others by the prefix that they have.

    UserError where an entry that inference needs is missing or has another shape.
    """
    prefixes = training_only_prefixes(model)
    needed = {
        key: value
        for key, value in model.state_dict().items()
        if not key.startswith(tuple(prefixes)) and not key.endswith(NOT_WEIGHTS)
    }
    wrong = [key for key, value in needed.items() if key not in state or state[key].shape != value.shape]
    if wrong:
        raise UserError(
            f"Weights {path!r} are of another architecture than the config's model: "
            f"{len(wrong)} entries are missing or of another shape, such as {wrong[0]}."
        )
    removed = {prefix: {key: v for key, v in state.items() if key.startswith(prefix)} for prefix in prefixes}
    kept = {key: value for key, value in state.items() if not key.startswith(tuple(prefixes))}
    return kept, removed


def _numbers(values: Iterable[Tensor]) -> str:
    values = list(values)
    return f"{len(values)} entries, {sum(v.numel() for v in values):,} numbers"


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    output = new_file(args.output)
    checkpoint = read_checkpoint(args.weights)
    kept, removed = strip(checkpoint["model"], build_on_cpu(args.config_file, args.opts), args.weights)
    with disk_errors(str(output.parent)), whole_file(str(output)) as f:
        torch.save({"model": kept}, f)
    for prefix, entries in removed.items():
        print(f"removed  {prefix.rstrip('.')}: {_numbers(entries.values())}")
    if not any(removed.values()):
        print("removed  no part of the model: it has none for training alone, or the file lacks it")
    for name in checkpoint.keys() - {"model"}:
        print(f"removed  {name} (of the training run)")
    print(f"kept     {_numbers(kept.values())}")
    before, after = (os.path.getsize(file) / 2**20 for file in (args.weights, output))
    print(f"{args.weights} ({before:.1f} MiB) -> {output} ({after:.1f} MiB)")


if __name__ == "__main__":
    main()
