"""Several processes: the same training as one process with the whole batch."""

import subprocess
import sys

import pytest
import torch

import train_net
from tests.paths import ROOT
from tests.processes import ENVIRONMENT, TORCHRUN, run_forked
from tests.scenes import make_coco

LAZY = str(ROOT / "tests/tiny/faster_rcnn.py")
# Samplers that take everything, and a fixed number of proposals: then losses are plain means over
# images, and the mean of two processes' gradients is the gradient of the whole batch.
SETTINGS = [
    "model.proposal_generator.batch_size_per_image=100000",
    "model.proposal_generator.positive_fraction=1.0",
    "model.roi_heads.batch_size_per_image=100000",
    "model.roi_heads.positive_fraction=1.0",
    "model.proposal_generator.nms_thresh=1.0",
    "dataloader.train.mapper.augmentations=[]",
    "dataloader.train.total_batch_size=4",
    "train.max_iter=3",
    "optimizer.lr=0.02",
    "train.eval_period=0",
]


def flags(folder):
    train, val = make_coco(folder / "train", images=12), make_coco(folder / "val", images=3, seed=1)
    return [
        *("--train-json", str(train[0]), "--train-images", str(train[1])),
        *("--val-json", str(val[0]), "--val-images", str(val[1])),
    ]


def command(launcher, own, run, *more):
    arguments = ["--config-file", LAZY, *own, f"train.output_dir={run}", *SETTINGS, *more]
    call = [sys.executable, *launcher, *arguments]
    return subprocess.run(call, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)


def weights(run):
    return torch.load(run / "model_final.pth", weights_only=True)["model"]


def assert_same_run(one, two):
    a, b = weights(one), weights(two)
    assert a.keys() == b.keys() and len(a) > 80
    worst = max((float((a[k].double() - b[k].double()).abs().max()), k) for k in a)
    assert worst[0] < 1e-6, worst
    assert a["roi_heads.box_predictor.cls_score.bias"].abs().max() > 0  # it starts at 0: trained


@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
def test_two_processes_train_what_one_does(tmp_path, launcher):
    own = flags(tmp_path)
    train_net.cli(["--config-file", LAZY, *own, f"train.output_dir={tmp_path / 'one'}", *SETTINGS])
    if launcher == "launch":
        start, more = ["train_net.py"], ["--num-gpus", "2", "--dist-url", "auto"]
    else:
        start = [*TORCHRUN, "--nproc-per-node=2", "train_net.py"]
        more = []
    result = command(start, own, tmp_path / "two", *more)
    assert result.returncode == 0, result.stderr[-2000:]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    # the evaluation of three images over two processes lost or doubled none
    one, two = (tmp_path / n / "inference/coco_instances_results.json" for n in ("one", "two"))
    assert abs(one.stat().st_size - two.stat().st_size) < 0.02 * one.stat().st_size


def test_error_in_a_process_is_one_sentence_and_code_2(tmp_path):
    own = flags(tmp_path)
    for file in (tmp_path / "train/images").iterdir():
        file.write_bytes(b"no image")
    result = command(["train_net.py"], own, tmp_path / "run", "--num-gpus", "2", "--dist-url", "auto")
    assert result.returncode == 2, result.stderr[-2000:]
    assert "cannot be read" in result.stderr
    assert "Traceback" not in result.stderr


def fails(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as e:
        train_net.cli(arguments)
    assert e.value.code == 2


@pytest.mark.parametrize(
    "weight, setting, sentence",
    [
        ({"roi_heads.box_predictor.cls_score.bias": torch.full((4,), torch.nan)}, "", "holds NaN"),
        ({"fc.weight": torch.zeros(1)}, "", "are of another architecture"),
        ({}, "", "holds no weights"),
        ({"fc.weight": torch.zeros(1)}, "+model.backbone.fuse_type=product", "Config key model cannot be built"),
    ],
)
def test_what_all_processes_find_is_said_once(tmp_path, weight, setting, sentence):
    torch.save({"model": weight}, tmp_path / "w.pth")
    own = [*flags(tmp_path), f"train.output_dir={tmp_path / 'run'}", f"train.init_checkpoint={tmp_path / 'w.pth'}"]
    (tmp_path / "logs").mkdir()
    arguments = ["--config-file", LAZY, "--resume", *own, *filter(None, [setting])]
    run_forked(2, fails, tmp_path / "logs", arguments)
    text = "".join(file.read_text() for file in (tmp_path / "logs").glob("*.log"))
    said = [line for line in text.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and sentence in said[0], text[-3000:]
