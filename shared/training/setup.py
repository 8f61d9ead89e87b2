"""Command line, processes, output folder, log and seed of `train_net.py`."""

import argparse
import functools
import glob
import logging
import os
import socket
import sys
from collections.abc import Callable
from urllib.parse import urlparse

import torch
import torch.distributed as dist

from detectron2.engine import default_argument_parser, launch
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from shared import engine
from shared.errors import EXIT_CODE, UserError
from shared.training.run import OWN_DATA_FLAGS, Run

EPILOG = """\
examples:
  train_net.py --config-file configs/quickstart.py
  train_net.py --config-file configs/quickstart.py --eval-only train.init_checkpoint=output/model_final.pth
  train_net.py --config-file configs/classification/digits_resnet.py
  train_net.py --config-file configs/baselines/faster_rcnn_r50_fpn_1x.py --num-gpus 8
  train_net.py --config-file configs/quickstart.py --train-json a.json --train-images a/ \\
      --val-json b.json --val-images b/ train.output_dir=runs/own
  torchrun --nproc-per-node 8 train_net.py --config-file configs/baselines/retinanet_r50_fpn_1x.py

A .py config is code: run only files that you trust.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Detectron2's arguments, --dry-run and own data; overrides may stand anywhere among them."""
    parser = default_argument_parser(epilog=EPILOG)
    opts = next(action for action in parser._actions if action.dest == "opts")
    opts.nargs, opts.metavar, opts.help = "*", "KEY=VALUE", "overrides of the config"
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, do one training and one evaluation step, print sizes, exit",
    )
    own = parser.add_argument_group("own data, in COCO's format (all four together)")
    for flag in OWN_DATA_FLAGS:
        own.add_argument("--" + flag.replace("_", "-"), default="", metavar="PATH")
    return parser.parse_intermixed_args(argv)


def own_data(args: argparse.Namespace) -> dict[str, str]:
    """The four flags, or {} where none is given; UserError where some are missing."""
    given = {flag: getattr(args, flag) for flag in OWN_DATA_FLAGS}
    missing = ["--" + flag.replace("_", "-") for flag, value in given.items() if not value]
    if len(missing) == len(given):
        return {}
    if missing:
        raise UserError(f"Own data needs all four flags; missing: {', '.join(missing)}.")
    return given


# ---------------------------------------------------------------- checks before any process starts
def check_device(device: str, num_gpus: int, key: str, amp: bool = False) -> None:
    """UserError where the config wants GPUs that this machine lacks, or mixed precision on a CPU."""
    if not device.startswith("cuda"):
        if amp:
            raise UserError(f"Mixed precision training needs a GPU, but {key} is {device!r}: turn it off.")
        return
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if have == 0:
        raise UserError(f"{key} is {device!r}, but no GPU is available here: set {key}=cpu.")
    if num_gpus > have:
        raise UserError(f"--num-gpus {num_gpus}, but this machine has {have}.")


def check_port(dist_url: str, machine_rank: int) -> None:
    """UserError where the port of `tcp://host:port` is taken on the machine that must open it."""
    url = urlparse(dist_url)
    if url.scheme != "tcp" or url.port is None or machine_rank != 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((url.hostname, url.port))
        except OSError as e:
            raise UserError(
                f"--dist-url {dist_url}: port {url.port} cannot be opened ({e.strerror}); "
                f"choose another one or end the process that holds it."
            ) from e


def check_output_dir(folder: str, resume: bool) -> None:
    """UserError where `folder` holds a run and `resume` is not asked for, or cannot be written."""
    if os.path.exists(folder) and not os.path.isdir(folder):
        raise UserError(f"Output folder {folder!r} is a file: choose another one.")
    traces = [
        file
        for pattern in ("config.yaml", "metrics.json", "last_checkpoint", "model_*.pth")
        for file in glob.glob(os.path.join(glob.escape(folder), pattern))
    ]
    if traces and not resume:
        raise UserError(
            f"Output folder {folder!r} already holds a run ({os.path.basename(traces[0])}): add "
            f"--resume to continue it, or choose a new folder."
        )
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"Output folder {folder!r} cannot be made: {e.strerror}.") from e
    if not os.access(folder, os.W_OK):
        raise UserError(f"Output folder {folder!r} cannot be written to.")


# ---------------------------------------------------------------- processes
def run_processes(main: Callable, args: argparse.Namespace, *main_args) -> None:
    """Call `main(*main_args)` in every process: here, under torchrun, or in processes of our own."""
    if "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ:
        _join_torchrun()
        _in_process(main, *main_args)
        return
    if args.num_gpus * args.num_machines > 1:
        check_port(args.dist_url, args.machine_rank)
    launch(
        _in_process,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(main, *main_args),
    )


def _in_process(main: Callable, *args) -> None:
    """`main(*args)`; then leave the process group: its threads may abort a process that just exits."""
    try:
        main(*args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _join_torchrun() -> None:
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def sentence_of(e: BaseException) -> str:
    """The sentence of a `UserError`, also of one that a data loader's worker raised."""
    text = str(e)
    marker = f"{UserError.__name__}: "
    return text.rpartition(marker)[2].strip() if marker in text else text


def exit_on_user_error(function: Callable) -> Callable:
    """Print a UserError's sentence to stderr and exit with code 2; so also for child processes."""

    @functools.wraps(function)  # child processes find the wrapped function by its name
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (UserError, engine.EngineError) as e:
            print(f"error: {sentence_of(e)}", file=sys.stderr, flush=True)
            sys.exit(EXIT_CODE)
        except torch.multiprocessing.ProcessExitedException as e:
            sys.exit(e.exit_code)  # the child has said why

    return wrapped


# ---------------------------------------------------------------- log and seed
def start_log(run: Run, folder: str, config_file: str) -> None:
    """Log to the screen and `folder`, write `config.yaml` there, seed every generator."""
    rank = comm.get_rank()
    os.makedirs(folder, exist_ok=True)
    for name in ("fvcore", "shared", "projects"):
        setup_logger(folder, distributed_rank=rank, name=name)
    logger = setup_logger(folder, distributed_rank=rank)
    logging.getLogger("detectron2.engine.train_loop").addFilter(_not_a_user_error)
    logger.info("Engine:\n%s", engine.describe())
    logger.info("Environment:\n%s", collect_env_info())
    if comm.is_main_process():
        _save_config(run, os.path.join(folder, "config.yaml"))
        logger.info("Config %s resolved to %s", config_file, os.path.join(folder, "config.yaml"))
    seed_all_rng(None if run.seed < 0 else run.seed + rank)
    if run.float32_precision:
        torch.set_float32_matmul_precision(run.float32_precision)
    torch.backends.cudnn.benchmark = run.cudnn_benchmark


def _not_a_user_error(record: logging.LogRecord) -> bool:
    """The training loop logs the traceback of what stops it; a UserError's sentence is enough."""
    return not (record.exc_info and UserError.__name__ in str(record.exc_info[0]))


def _save_config(run: Run, file: str) -> None:
    """Write the resolved config; a different one from before is kept under a numbered name."""
    new = file + ".new"
    run.save_config(new)
    if os.path.exists(file):
        with open(file) as old, open(new) as now:
            if old.read() != now.read():
                number = len(glob.glob(glob.escape(file[: -len(".yaml")]) + ".*.yaml"))
                os.replace(file, f"{file[: -len('.yaml')]}.{number}.yaml")
    os.replace(new, file)
