"""Command line, processes, output folder, log and seed of `train_net.py`."""

import argparse
import functools
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from urllib.parse import urlparse

import torch

from detectron2.engine import default_argument_parser
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from shared import engine
from shared.data.coco_sets import FLAG
from shared.errors import EXIT_CODE, UserError
from shared.files import disk_errors
from shared.training.folder import CONFIG, trace_of_run
from shared.training.run import OWN_DATA_FLAGS, Run
from shared.training.stops import outliving_terminal

EPILOG = """\
examples:
  train_net.py --config-file configs/quickstart.py
  train_net.py --config-file configs/quickstart.py --eval-only train.init_checkpoint=output/model_final.pth
  train_net.py --config-file configs/classification/digits_resnet.py
  train_net.py --config-file configs/baselines/faster_rcnn_r50_fpn_1x.py --num-gpus 8
  train_net.py --config-file configs/quickstart_bottleneck.py --with msfm depla_fpn train.output_dir=runs/both
  train_net.py --config-file configs/quickstart.py --train-json a.json --train-images a/ \\
      --val-json b.json --val-images b/ train.output_dir=runs/own
  torchrun --nproc-per-node 8 train_net.py --config-file configs/baselines/retinanet_r50_fpn_1x.py

A .py config is code: run only files that you trust. A .yaml config cannot bring code of its own: it calls what the
collection's configs are made of; DETECTION_TRUST=PACKAGE,... in the environment adds packages of yours.
"""


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Detectron2's arguments, --dry-run, --with and own data; overrides may stand anywhere among them."""
    parser = default_argument_parser(epilog=EPILOG)
    parser.set_defaults(dist_url="auto")
    opts = next(action for action in parser._actions if action.dest == "opts")
    opts.nargs, opts.metavar, opts.help = "*", "KEY=VALUE", "overrides of the config"
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="build everything, do one training and one evaluation step, print sizes, exit",
    )
    parser.add_argument(
        "--with",
        dest="methods",
        action="append",
        default=[],
        metavar="METHOD [METHOD ...]",
        help="methods to combine with a LazyConfig's model; python -m projects.combine lists them",
    )
    own = parser.add_argument_group("own data, in COCO's format (all four together)")
    for flag in OWN_DATA_FLAGS:
        own.add_argument("--" + flag.replace("_", "-"), default="", metavar="PATH")
    own.add_argument(FLAG, action="store_true", help="leave bad records out, and say which, instead of stopping")
    return parser.parse_intermixed_args(_one_flag_a_method(sys.argv[1:] if argv is None else argv))


def _one_flag_a_method(argv: list[str]) -> list[str]:
    """`--with a b key=value` as `--with=a --with=b key=value`: overrides that follow it keep their place among all."""
    words: list[str] = []
    follows = False
    for word in argv:
        if follows and not word.startswith("-") and "=" not in word:
            words[-1:] = [f"--with={word}"] if words[-1] == "--with" else [words[-1], f"--with={word}"]
            continue
        follows = word == "--with"
        words.append(word)
    return words


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
def check_device(device: str, num_gpus: int, key: str, amp: torch.dtype | None = None) -> None:
    """UserError where the config wants GPUs that this machine lacks, or float16 on a CPU."""
    if torch.device(device).type == "meta":
        raise UserError(f"{key} must be a device such as cpu, cuda or cuda:1, got 'meta', which holds no numbers.")
    if not device.startswith("cuda"):
        if amp == torch.float16:
            amp_key = "train.amp.dtype" if key == "train.device" else "SOLVER.AMP.DTYPE"
            raise UserError(
                f"Mixed precision training in float16 needs a GPU, but {key} is {device!r}: set {amp_key}=bfloat16 or "
                f"turn it off."
            )
        return
    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if have == 0:
        raise UserError(f"{key} is {device!r}, but no GPU is available here: set {key}=cpu.")
    if num_gpus > have:
        raise UserError(f"--num-gpus {num_gpus}, but this machine has {have}.")
    if (torch.device(device).index or 0) >= have:
        raise UserError(f"{key} is {device!r}, but the last GPU of this machine is cuda:{have - 1}: set {key}=cuda.")


def check_processes(args: argparse.Namespace, run: Run) -> None:
    """UserError for counts of processes and machines that make no sense or do not divide the batch, for a device that
    all of them would share, and for an address where they cannot meet."""
    for flag in ("num_gpus", "num_machines"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}.")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank must be from 0 to {args.num_machines - 1} for {args.num_machines} machine(s), "
            f"got {args.machine_rank}."
        )
    processes = int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else args.num_gpus * args.num_machines
    if run.batch_size % processes:
        raise UserError(f"A batch of {run.batch_size} images cannot be shared evenly by {processes} processes.")
    device = torch.device(run.device)
    if processes > 1 and device.type == "cuda" and device.index is not None:
        raise UserError(
            f"{run.device_key}={device} would put all {processes} processes on one GPU: set {run.device_key}=cuda."
        )
    _check_url(args.dist_url, args.num_machines)


def started_by_torchrun() -> bool:
    return "LOCAL_RANK" in os.environ and "WORLD_SIZE" in os.environ


def _check_url(dist_url: str, num_machines: int) -> None:
    if dist_url == "auto":
        if num_machines > 1:
            raise UserError(
                f"{num_machines} machines need a place to meet: give all of them the address of machine 0 with a free "
                f"port, as in --dist-url tcp://HOST:29500."
            )
        return
    try:
        url = urlparse(dist_url)
        right = url.scheme == "tcp" and bool(url.hostname) and bool(url.port)
    except ValueError:  # a port beyond 65535
        right = False
    if not right:
        raise UserError(f"--dist-url must be auto or tcp://HOST:PORT with a port from 1 to 65535, got {dist_url!r}.")


def check_port(dist_url: str, machine_rank: int) -> None:
    """UserError where the port of `tcp://host:port` is taken on the machine that must open it."""
    url = urlparse(dist_url)
    if url.scheme != "tcp" or machine_rank != 0:
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
    trace = trace_of_run(folder)
    if trace and not resume:
        raise UserError(
            f"Output folder {folder!r} already holds a run ({trace}): add --resume to continue it, or choose a new "
            f"folder."
        )
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as e:
        raise UserError(f"Output folder {folder!r} cannot be made: {e.strerror}.") from e
    if not os.access(folder, os.W_OK):
        raise UserError(f"Output folder {folder!r} cannot be written to.")


# ---------------------------------------------------------------- errors
def sentence_of(e: BaseException) -> str:
    """The sentence of a `UserError`, also of one that a data loader's worker raised, on one line. What no terminal
    should get to see, such as an escape sequence in a file's name, is written out."""
    text = str(e).rpartition(f"{UserError.__name__}: ")[2]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))


def exit_on_user_error(function: Callable) -> Callable:
    """Print a UserError's sentence to stderr, as the last line, and exit with its code; so also for child processes.

    Exit codes: 2 for what the user has to mend, a full disk or a loss that is not finite included; 128 + the signal's
    number where a signal ended the run (143 SIGTERM, 130 Ctrl-C, 129 SIGHUP).
    """

    @functools.wraps(function)  # child processes find the wrapped function by its name
    def wrapped(*args, **kwargs):
        with outliving_terminal():
            try:
                return function(*args, **kwargs)
            except UserError as e:
                if not e.everywhere or comm.is_main_process():
                    print(f"{e.label}: {sentence_of(e)}", file=sys.stderr, flush=True)
                if e.everywhere:
                    comm.synchronize()  # whoever exits first lets the launcher end the others
                sys.exit(e.exit_code)
            except engine.EngineError as e:
                print(f"error: {e}", file=sys.stderr, flush=True)
                sys.exit(EXIT_CODE)
            except KeyboardInterrupt:
                print("stopped: SIGINT.", file=sys.stderr, flush=True)
                sys.exit(128 + signal.SIGINT)

    return wrapped


# ---------------------------------------------------------------- log and seed
def start_log(run: Run, folder: str, config_file: str) -> None:
    """Log to the screen and `folder`, seed every generator."""
    rank = comm.get_rank()
    with disk_errors(folder):
        os.makedirs(folder, exist_ok=True)
        loggers = [setup_logger(folder, distributed_rank=rank, name=name) for name in ("fvcore", "shared", "projects")]
        logger = setup_logger(folder, distributed_rank=rank)
        for handler in (handler for one in (*loggers, logger) for handler in one.handlers):
            handler.handleError = _log_error
        logger.info("Engine:\n%s", engine.describe())
        logger.info("Environment:\n%s", collect_env_info())
        logger.info("Config %s, resolved in %s", config_file, os.path.join(folder, CONFIG))
    seed_all_rng(None if run.seed < 0 else run.seed + rank)
    if run.float32_precision:
        torch.set_float32_matmul_precision(run.float32_precision)
    torch.backends.cudnn.benchmark = run.cudnn_benchmark


def _log_error(record: logging.LogRecord) -> None:
    """No traceback for each line that a full disk has no room for: the run's next file ends it with a sentence."""
    if not isinstance(sys.exc_info()[1], OSError):
        logging.lastResort.handleError(record)
