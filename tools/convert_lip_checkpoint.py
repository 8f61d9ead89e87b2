#!/usr/bin/env python3
"""Convert an official LIP-ResNet checkpoint (lip_resnet-50.pth, lip_resnet-101.pth) to this collection's names.

    tools/convert_lip_checkpoint.py --input lip_resnet-50.pth --output lip_resnet50.pth

The result is a checkpoint of projects/LIP/configs/lip_resnet50_imagenet_90e.py (lip_resnet101...), classifier included,
and the initial weights of the detection configs with that backbone.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402

import projects  # noqa: E402, F401  first: it chooses the engine and registers every part
from projects.LIP.import_weights import convert_lip_resnet  # noqa: E402
from shared.checkpoint import check_weights_file  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.output import new_file  # noqa: E402


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="the official .pth file")
    parser.add_argument("--output", required=True, help="the .pth file to write; must not exist")
    return parser


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    if not args.output.endswith(".pth"):
        raise UserError(f"--output {args.output} must end in .pth.")
    check_weights_file(args.input)
    file = new_file(args.output)
    content = torch.load(args.input, map_location="cpu", weights_only=True)
    try:
        converted = convert_lip_resnet(content)
    except ValueError as e:
        raise UserError(f"Weights file {args.input!r}: {e}") from e
    torch.save({"model": converted}, file)
    print(f"{len(converted)} entries: {args.output}")


if __name__ == "__main__":
    main()
