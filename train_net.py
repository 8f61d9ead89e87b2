#!/usr/bin/env python3
"""Train and evaluate any model of the collection, on one process or many.

    train_net.py --config-file configs/quickstart.py train.max_iter=100

See --help for more; README.md for a tour.
"""

import functools

import projects  # noqa: F401  first: it chooses the engine and registers every part
from projects.combine import combine_config
from shared.checkpoint import check_weights_file
from shared.config import config_text, load_config
from shared.training import loop, processes, setup
from shared.training.folder import alone_in_run, evaluation_folder
from shared.training.run import Run, make_run


@setup.exit_on_user_error
def main(run: Run, args) -> None:
    """What every process does."""
    run.register_data()
    if args.eval_only:
        folder = evaluation_folder(run)
        setup.start_log(run, folder, args.config_file)
        run.leave_out_bad_records(folder, train=False)
        loop.evaluate_only(run, folder)
        return
    with alone_in_run(run.output_dir):
        setup.start_log(run, run.output_dir, args.config_file)
        run.leave_out_bad_records(run.output_dir, train=True)
        loop.train(run, args.resume)


def checked_run(args) -> Run:
    """The run that the arguments describe, its data registered; UserError where it could not start."""
    combined = functools.partial(combine_config, names=args.methods, file=args.config_file)
    run = make_run(load_config(args.config_file, args.opts, change=combined))
    if own := setup.own_data(args):
        run.use_own_data(**own, skip_bad_records=args.skip_bad_records)
    elif args.skip_bad_records:
        run.skip_bad_records()
    run.register_data()
    setup.check_device(run.device, args.num_gpus, run.device_key, run.amp)
    run.check_classes()
    setup.check_processes(args, run)
    config_text(run.cfg)  # which the run will save
    return run


@setup.exit_on_user_error
def cli(argv: list[str] | None = None) -> None:
    args = setup.parse_arguments(argv)
    run = checked_run(args)
    if args.dry_run:
        run.leave_out_bad_records(None, train=True)
        print(loop.dry_run(run))
        return
    if run.weights and not args.resume:
        check_weights_file(run.weights)  # before a folder is made, which would stand in the way of the next try
    setup.check_output_dir(run.output_dir, args.resume or args.eval_only)
    processes.run_processes(main, args, run.device, run, args)


if __name__ == "__main__":
    cli()
