#!/usr/bin/env python3
"""Do a detector's best scores go with its best boxes? IoU of the top-scored detection of each object.

    tools/alignment.py --config-file fcos/config.yaml musu/config.yaml \\
        --weights fcos/model_final.pth musu/model_final.pth --output alignment.json

For any detector, on the config's test set (one config for all checkpoints, or one each). Of the detections of an
object's class whose centre lies inside it, the top-scored one counts: its IoU (IoU_top), whether it is within 0.05 of
the best of them (near_best), and how many objects have one (found); all in percent.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tabulate import tabulate  # noqa: E402

import projects  # noqa: E402, F401  first of ours: it chooses the engine and registers every part
from detectron2.config import CfgNode, instantiate  # noqa: E402
from detectron2.evaluation import inference_on_dataset  # noqa: E402
from projects.MuSu import AlignmentEvaluator  # noqa: E402
from shared.errors import UserError  # noqa: E402
from shared.training.run import Run  # noqa: E402
from shared.training.setup import exit_on_user_error  # noqa: E402
from tools.loading import load_trained  # noqa: E402
from tools.output import new_file  # noqa: E402


def argument_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, nargs="+", help="one for all checkpoints, or one each")
    parser.add_argument("--weights", required=True, nargs="+", help="checkpoints")
    parser.add_argument("--output", default="", help="a new JSON file")
    parser.add_argument("--opts", nargs="*", default=[], help="key=value overrides of the configs")
    return parser


def test_set(run: Run) -> str:
    """Name of the run's test set."""
    cfg = run.cfg
    names = list(cfg.DATASETS.TEST) if isinstance(cfg, CfgNode) else instantiate(cfg.dataloader.test.dataset.names)
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != 1:
        raise UserError(f"Test sets {', '.join(names)}: give one, by --opts.")
    return names[0]


@exit_on_user_error
def main(argv: list[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    configs, weights = args.config_file, args.weights
    if len(configs) not in (1, len(weights)):
        raise UserError(f"{len(configs)} configs, {len(weights)} checkpoint(s): give one config, or one for each.")
    file = new_file(args.output) if args.output else None
    rows = []
    for config, checkpoint in zip(configs * len(weights) if len(configs) == 1 else configs, weights):
        run, model = load_trained(config, checkpoint, args.opts)
        loader = next(run.build_test_sets(None))[1]
        results = inference_on_dataset(model, loader, AlignmentEvaluator(test_set(run)))
        rows.append({"weights": checkpoint, **results["alignment"]})
    print(tabulate(rows, headers="keys", floatfmt=".2f"))
    if file:
        file.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
