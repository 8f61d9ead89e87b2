#!/usr/bin/env python3
"""Train and evaluate any model of the collection, on one process or many.

    train_net.py --config-file configs/quickstart.py train.max_iter=100

See --help for more; README.md for a tour.
"""

import os

import projects  # noqa: F401  first: it chooses the engine and registers every part
from shared.config import load_config
from shared.training import loop, setup
from shared.training.run import Run, make_run


@setup.exit_on_user_error
def main(run: Run, args) -> None:
    """What every process does."""
    run.register_data()
    folder = os.path.join(run.output_dir, "inference") if args.eval_only else run.output_dir
    setup.start_log(run, folder, args.config_file)
    if args.eval_only:
        loop.evaluate_only(run)
    else:
        loop.train(run, args.resume)


@setup.exit_on_user_error
def cli(argv: list[str] | None = None) -> None:
    args = setup.parse_arguments(argv)
    run = make_run(load_config(args.config_file, args.opts))
    if own := setup.own_data(args):
        run.use_own_data(**own)
    run.register_data()
    setup.check_device(run.device, args.num_gpus, run.device_key, run.amp)
    run.check_classes()
    if args.dry_run:
        print(loop.dry_run(run))
        return
    if not args.eval_only:
        setup.check_output_dir(run.output_dir, args.resume)
    setup.run_processes(main, args, run, args)


if __name__ == "__main__":
    cli()
