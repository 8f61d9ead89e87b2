"""tools/labelenc_pipeline.py: all parts, killed between and inside them, bad input. Trainings run in this process."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import train_net
from detectron2.config import instantiate
from projects.LabelEnc import LabelEncRetinaNet
from shared.checkpoint import NOT_WEIGHTS
from shared.config import load_config
from shared.errors import UserError
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import labelenc_pipeline, strip_checkpoint
from tools.labelenc_pipeline import argument_parser, locked, make_plan, run_train_net

TINY = ROOT / "tests/tiny"
STEP1, STEP2, KD, PLAIN = (
    str(TINY / f"{n}.py") for n in ("labelenc_step1", "labelenc_step2", "labelenc_kd", "retinanet")
)
CONFIGS = ["--step1", STEP1, "--step2", STEP2, "--plain", PLAIN]


class Killed(BaseException):
    """What no handler of errors catches, as a kill."""


@pytest.fixture(autouse=True)
def sigterm_as_found():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def calls(monkeypatch):
    """train_net.py in this process; its calls, and the iterations that its models have trained."""
    found = {"train_net": [], "iterations": []}
    forward = LabelEncRetinaNet.forward

    def counted(self, batched_inputs):
        if self.training:
            found["iterations"].append(self.label_enc.mode)
            if len(found["iterations"]) == found.get("kill_at"):
                raise Killed
        return forward(self, batched_inputs)

    def in_process(arguments, lock):
        found["train_net"].append(arguments)
        os.fstat(lock)
        train_net.cli(arguments)
        return 0

    monkeypatch.setattr(LabelEncRetinaNet, "forward", counted)
    monkeypatch.setattr(labelenc_pipeline, "run_train_net", in_process)
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return own_data_flags(tmp_path_factory.mktemp("data"))


def pipeline(run, *arguments):
    labelenc_pipeline.main([*CONFIGS, "--output", str(run), *arguments])


def read(file):
    return torch.load(file, weights_only=True)


def test_from_nothing_to_the_plain_host(calls, data, tmp_path, capsys):
    run = tmp_path / "run"
    pipeline(run, *data, "model.label_enc.stem_out=6", "step2:optimizer.lr=0.02")
    assert calls["iterations"] == ["step1"] * 4 + ["step2"] * 4
    # step 2 began where step 1 ended
    first, exported = read(run / "step1/model_final.pth")["model"], read(run / "label_encoder.pth")
    assert len(exported["encoder"]) > 20 and exported["meta"]["host"] == "RetinaNet"
    for name, value in exported["encoder"].items():
        assert torch.equal(value, first[f"label_enc.encoder.{name}"]), name
    second = read(run / "step2/model_final.pth")["model"]
    assert torch.equal(second["label_enc.encoder.bottom_up.stem.weight"], exported["encoder"]["bottom_up.stem.weight"])
    # the result has the plain host's keys, and gives what step 2's model gives
    result = read(run / "model_final.pth")
    plain = instantiate(load_config(str(run / "config.yaml")).model)
    assert set(result) == {"model"} and not hasattr(plain, "label_enc")
    assert set(result["model"]) == {k for k in plain.state_dict() if not k.endswith(NOT_WEIGHTS)}
    assert all(torch.equal(value, second[key]) for key, value in result["model"].items())
    text = (run / "inference/results.json").read_text()
    assert text == (run / "step2/inference/results.json").read_text()
    results = json.loads(text)
    assert "AP-red" in results["bbox"]
    # overrides went where they belong
    configs = [load_config(str(run / name / "config.yaml")) for name in ("step1", "step2", "")]
    assert [c.optimizer.lr for c in configs] == [0.01, 0.02, 0.01]
    assert [c.model.label_enc.stem_out for c in configs[:2]] == [6, 6]
    assert [c.model.num_classes for c in configs] == [3, 3, 3]
    out = capsys.readouterr().out
    assert f"bbox        AP {results['bbox']['AP']:.1f}" in out and f"weights     {run / 'model_final.pth'}" in out
    # a second time there is nothing left to do
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*.pth")}
    pipeline(run, *data, "model.label_enc.stem_out=6", "step2:optimizer.lr=0.02")
    assert len(calls["train_net"]) == 3 and run / "label_encoder.pth" in before
    assert before == {file: file.stat().st_mtime_ns for file in run.rglob("*.pth")}
    assert capsys.readouterr().out.count("done before") == 5


def test_goes_on_wherever_it_was_killed(calls, data, tmp_path, monkeypatch):
    run = tmp_path / "run"

    def killed(*arguments, **kwargs):
        raise Killed

    def cut_off(content, file):
        file.write_bytes(b"PK")
        raise Killed

    def repeat(trained, kill_at=None, break_at=None):
        """Call again; `trained`: the iterations that this call begins, of which it is killed in number `kill_at`, or in
        the function `break_at`. Returns the parts that have ended by then."""
        calls["iterations"].clear()
        calls["kill_at"] = kill_at
        with monkeypatch.context() as patch:
            if break_at:
                patch.setattr(*break_at, cut_off if break_at[0] is torch else killed)
            if kill_at or break_at:
                with pytest.raises(Killed):
                    pipeline(run, *data)
            else:
                pipeline(run, *data)
        assert calls["iterations"] == trained
        return {p.relative_to(run).as_posix() for p in run.rglob("*") if p.name in ("done", "label_encoder.pth")}

    assert repeat(["step1"] * 1, kill_at=1) == set()  # before the first checkpoint
    assert repeat(["step1"] * 4, kill_at=4) == set()  # checkpoint after two of four
    assert repeat(["step1"] * 2, break_at=(labelenc_pipeline, "export")) == {"step1/done"}
    assert repeat([], break_at=(torch, "save")) == {"step1/done"}  # while it was written
    assert repeat(["step2"] * 3, kill_at=3) == {"step1/done", "label_encoder.pth"}
    encoder = read(run / "step2/model_0000001.pth")["model"]["label_enc.encoder.bottom_up.stem.weight"]
    assert torch.equal(encoder, read(run / "label_encoder.pth")["encoder"]["bottom_up.stem.weight"])
    trained = {"step1/done", "label_encoder.pth", "step2/done"}
    assert repeat(["step2"] * 2, break_at=(strip_checkpoint, "strip")) == trained
    assert not (run / "model_final.pth").exists()
    assert repeat([], break_at=(train_net.loop, "evaluate_only")) == trained
    assert repeat([]) == {*trained, "done"}
    assert len(calls["train_net"]) == 3 + 2 + 2  # step 1, step 2, evaluation


def test_teacher_in_place_of_step_1(calls, data, tmp_path):
    run = tmp_path / "run"
    labelenc_pipeline.main(["--step1", PLAIN, "--step2", KD, "--plain", PLAIN, "--output", str(run), *data])
    assert calls["iterations"] == ["kd"] * 4 and not (run / "label_encoder.pth").exists()
    result, second = (read(run / name)["model"] for name in ("model_final.pth", "step2/model_final.pth"))
    assert set(second) - set(result) == {k for k in second if k.startswith("label_enc.adapt.")} != set()
    assert set(result) == set(read(run / "step1/model_final.pth")["model"])


def test_a_part_that_fails_is_named(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(labelenc_pipeline, "run_train_net", lambda arguments, lock: 3)
    with pytest.raises(SystemExit) as e:
        pipeline(tmp_path / "run", *data)
    assert e.value.code == 2
    assert "step1 ended with exit code 3, see above and " in capsys.readouterr().err
    assert not (tmp_path / "run/step1/done").exists()


# ---------------------------------------------------------------- what each part is called with
def planned(monkeypatch, folder, *arguments):
    """The arguments of train_net.py by part, without any part being run."""
    args, rest = argument_parser().parse_known_args(list(arguments) + ["--output", str(folder)])
    plan, commands = make_plan(args, rest), {}
    monkeypatch.setattr(labelenc_pipeline, "run_train_net", lambda arguments, lock: commands.update(x=arguments) or 0)
    steps = labelenc_pipeline.Pipeline(plan, folder, 0)
    for name, _, function in steps.parts():
        if name in ("step 1", "step 2", "evaluation"):
            (folder / {"step 1": "step1", "step 2": "step2"}.get(name, "inference")).mkdir(parents=True, exist_ok=True)
            (folder / "inference").mkdir(exist_ok=True)
            (folder / "inference/config.yaml").touch()
            function()
            commands[name] = commands.pop("x")
    return [name for name, _, _ in steps.parts()], commands


def test_overrides_of_the_module_reach_the_parts_that_have_one(monkeypatch, tmp_path):
    """Neither a teacher nor the plain host has LabelEnc's module."""
    arguments = "--step1", PLAIN, "--step2", KD, "--plain", PLAIN, "model.label_enc.warmup_iters=3"
    _, commands = planned(monkeypatch, tmp_path, *arguments)
    assert ["model.label_enc.warmup_iters=3" in commands[part] for part in ("step 1", "step 2", "evaluation")] == [
        False,
        True,
        False,
    ]


def test_commands_with_a_teacher(monkeypatch, tmp_path):
    names, commands = planned(monkeypatch, tmp_path, "--step1", PLAIN, "--step2", KD, "--plain", PLAIN)
    assert names == ["step 1", "step 2", "strip", "evaluation"]
    assert commands["step 1"] == ["--config-file", PLAIN, f"train.output_dir={tmp_path}/step1", "--resume"]
    assert commands["step 2"][-3:] == [
        f"model.label_enc.teacher_config={tmp_path}/step1/config.yaml",
        f"model.label_enc.teacher_weights={tmp_path}/step1/model_final.pth",
        "--resume",
    ]


def test_without_step_1(monkeypatch, tmp_path):
    """One encoder serves several backbones: step 2 takes the file of its config, or of the command."""
    file = "model.label_enc.step1_weights=a.pth"
    names, commands = planned(monkeypatch, tmp_path, "--step2", STEP2, "--plain", PLAIN, file)
    assert names == ["step 2", "strip", "evaluation"]
    assert commands["step 2"] == ["--config-file", STEP2, file, f"train.output_dir={tmp_path}/step2", "--resume"]
    assert file not in commands["evaluation"]


def test_yaml_and_flags(monkeypatch, tmp_path):
    folder = ROOT / "projects/LabelEnc/configs"
    first, second = (str(folder / f"retinanet_step{i}_r50.yaml") for i in (1, 2))
    plain = str(ROOT / "configs/baselines/retinanet_r50_fpn_1x.yaml")
    _, commands = planned(
        monkeypatch,
        tmp_path,
        *("--step1", first, "--step2", second, "--plain", plain, "--num-gpus", "8"),
        *("MODEL.LABELENC.INIT=msra", "step1:SOLVER.MAX_ITER=12", "MODEL.WEIGHTS=r50.pkl", "SEED=3"),
    )
    flags = ["--num-gpus", "8"]
    given = ["MODEL.LABELENC.INIT=msra", "MODEL.WEIGHTS=r50.pkl", "SEED=3"]
    assert commands["step 1"] == [
        *("--config-file", first, *flags, given[0], "SOLVER.MAX_ITER=12", *given[1:]),
        *(f"OUTPUT_DIR={tmp_path}/step1", "--resume"),
    ]
    assert commands["step 2"] == [
        *("--config-file", second, *flags, *given, f"OUTPUT_DIR={tmp_path}/step2"),
        *(f"MODEL.LABELENC.STEP1_WEIGHTS={tmp_path}/label_encoder.pth", "--resume"),
    ]
    assert commands["evaluation"] == [
        *("--config-file", plain, *flags, "SEED=3", f"OUTPUT_DIR={tmp_path}"),
        *(f"MODEL.WEIGHTS={tmp_path}/model_final.pth", "--eval-only"),
    ]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["--step1", STEP2, "--step2", STEP2, "--plain", PLAIN],
            "--step1 .* has mode 'step2': give a config with mode",
        ),
        (["--step1", STEP1, "--step2", PLAIN, "--plain", PLAIN], "--step2 .* has no LabelEnc: give .* mode 'step2' or"),
        (["--step1", STEP1, "--step2", STEP2, "--plain", STEP2], "--plain .* with no LabelEnc"),
        (["--step1", STEP1, "--step2", KD, "--plain", PLAIN], "--step1 .* has mode 'step1': give .* no LabelEnc"),
        ([*CONFIGS, "--resume"], "--resume is not for the pipeline"),
        ([*CONFIGS, "--eval-only"], "--eval-only is not for the pipeline"),
        ([*CONFIGS, "--num-machines", "2"], "--num-machines are not for the pipeline"),
        ([*CONFIGS, "--config-file", PLAIN], "--config-file and"),
        ([*CONFIGS, "--train-json", "a.json"], "Own data needs all four flags"),
        ([*CONFIGS, "train.output_dir=x"], "the pipeline sets train.output_dir itself"),
        ([*CONFIGS, "plain:train.init_checkpoint=x"], "the pipeline sets train.init_checkpoint itself"),
        ([*CONFIGS, "step2:train.max_itr=2"], "Unknown config key 'train.max_itr'; did you mean train.max_iter"),
        (["--step2", "no.py", "--plain", PLAIN], "'no.py' does not exist"),
    ],
)
def test_bad_arguments(arguments, sentence):
    args, rest = argument_parser().parse_known_args([*arguments, "--output", "run"])
    with pytest.raises(UserError, match=sentence):
        make_plan(args, rest)


# ---------------------------------------------------------------- the folder and its processes
def test_folder_is_of_one_pipeline_and_one_process(tmp_path):
    run, record = tmp_path / "run", {"step1": "a.py", "overrides": ["x=1"]}
    with locked(run, record) as lock:
        os.fstat(lock)
        with pytest.raises(UserError, match="is in use: a training of an earlier call"), locked(run, record):
            pass
    with pytest.raises(UserError, match=r"another pipeline: its overrides is \['x=1'\], here it is \['x=2'\]"):
        with locked(run, {**record, "overrides": ["x=2"]}):
            pass
    (run / "pipeline.json").write_text('{"step1": "a')  # killed while it was written
    with locked(run, record):
        pass
    assert json.loads((run / "pipeline.json").read_text()) == record
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(UserError, match="holds something already"), locked(tmp_path / "other", record):
        pass
    with pytest.raises(UserError, match="cannot be written"), locked(tmp_path / "other/file/run", record):
        pass


SCRIPT = """
import fcntl, os, sys, time
fd = int(sys.argv[2])
os.fstat(fd)  # the lock's
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(float(sys.argv[3]))
sys.exit(5)
"""


def test_training_holds_the_lock_and_ends_with_the_pipeline(tmp_path, monkeypatch):
    (tmp_path / "train_net.py").write_text(SCRIPT)
    monkeypatch.setattr(labelenc_pipeline, "TRAIN_NET", str(tmp_path / "train_net.py"))
    pid, lock = tmp_path / "pid", open(tmp_path / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert run_train_net([str(pid), str(lock.fileno()), "0"], lock.fileno()) == 5

    def ended(*_):
        raise SystemExit

    signal.signal(signal.SIGTERM, ended)
    held = []

    def kill():
        """When the training runs: close our side, see who has the lock, end the pipeline."""
        while not pid.exists() or not pid.read_text():
            time.sleep(0.02)
        with open(tmp_path / "lock") as other:
            lock.close()
            try:
                fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                held.append(int(pid.read_text()))
        signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)

    pid.unlink()
    threading.Thread(target=kill).start()
    with pytest.raises(SystemExit):
        run_train_net([str(pid), str(lock.fileno()), "60"], lock.fileno())
    assert held  # by the training alone
    with pytest.raises(ProcessLookupError):
        os.kill(held[0], 0)


@pytest.mark.slow
def test_real_processes_killed_by_force(data, tmp_path):
    """SIGKILL to the pipeline in step 1: its training lives on and keeps the folder; then the command goes on."""
    run = tmp_path / "run"
    command = [sys.executable, str(ROOT / "tools/labelenc_pipeline.py"), *CONFIGS, "--output", str(run), *data]
    first = subprocess.Popen(command)
    while not (run / "step1/last_checkpoint").exists():
        time.sleep(0.1)
    first.kill()
    first.wait()
    for _ in range(120):
        second = subprocess.run(command, capture_output=True, text=True)
        if second.returncode == 0:
            break
        assert second.returncode == 2 and "is in use" in second.stderr, second.stderr
    assert "bbox " in second.stdout and (run / "done").exists()
