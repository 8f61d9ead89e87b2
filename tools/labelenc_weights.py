#!/usr/bin/env python3
"""Weights between LabelEnc's two steps.

    tools/labelenc_weights.py export --config-file RUN/config.yaml --weights RUN/model_final.pth \\
        --output label_encoder.pth
    tools/labelenc_weights.py merge --config-file projects/LabelEnc/configs/retinanet_step2_r50.py --weights R-50.pkl \\
        --output start.pth model.label_enc.step1_weights=label_encoder.pth

export: of a run of step 1, what step 2 needs: the encoder and the head (`model.label_enc.step1_weights` also takes the
run's checkpoint). merge: the whole start of step 2 in one checkpoint, for training scripts that know nothing of step 1.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from projects.LabelEnc import LabelEncMixin, export_step1, merge_step1  # noqa: E402
from shared.checkpoint import WeightsCheckpointer  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.output import new_file  # noqa: E402
from tools.strip_checkpoint import build_on_cpu  # noqa: E402

MODES = {"export": ("step1",), "merge": ("step2", "kd")}


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=MODES)
    parser.add_argument("--config-file", required=True, help=".py or .yaml, of step 1 for export, of step 2 for merge")
    parser.add_argument("--weights", required=True, help="checkpoint of step 1; for merge the backbone's, of ImageNet")
    parser.add_argument("--output", required=True, help="a .pth file that is not there yet")
    parser.add_argument("opts", nargs="*", help="key=value overrides of the config")
    return parser


def build(command: str, config_file: str, opts: list[str]) -> LabelEncMixin:
    """The config's model on the CPU. UserError unless its mode is one of the command's."""
    model = build_on_cpu(config_file, opts)
    mode = model.label_enc.mode if isinstance(model, LabelEncMixin) else "no LabelEnc"
    if mode not in MODES[command]:
        raise UserError(
            f"{command} needs a config with mode {' or '.join(MODES[command])}: {config_file!r} has {mode}."
        )
    return model


def export(config_file: str, weights: str, opts: list[str]) -> dict:
    """What step 1 leaves, see `export_step1`. UserError unless the weights are all of the model's."""
    model = build("export", config_file, opts)
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(weights, checkpointables=[])
    checkpointer.require(weights, every=True)
    return export_step1(model)


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_intermixed_args(argv)
    if not args.output.endswith(".pth"):
        raise UserError(f"--output {args.output} must end in .pth.")
    file = new_file(args.output)
    if args.command == "export":
        content = export(args.config_file, args.weights, args.opts)
        parts = {name: content[name] for name in ("encoder", "head")}
    else:
        content = parts = merge_step1(build("merge", args.config_file, args.opts), args.weights)
    torch.save(content, file)
    counts = (f"{name} {len(x)} entries, {sum(v.numel() for v in x.values()):,} numbers" for name, x in parts.items())
    print(f"{'; '.join(counts)}: {args.output}")


if __name__ == "__main__":
    main()
