"""The runs of tools/compare.py: started, measured, resumed, interrupted. A stub stands for train_net.py."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from shared.config import config_text, load_config
from shared.errors import UserError
from shared.files import alone_in
from shared.training.folder import save_config
from shared.training.run import make_run
from tests.paths import ROOT
from tests.scenes import own_data_flags
from tools import compare
from tools.comparison import measured, runs
from tools.comparison.arms import Plan, parse_arm, with_hosts

CONFIG = str(ROOT / "tests/tiny/faster_rcnn.py")
STUB = """
import json, os, sys, time
folder, = (a.partition("=")[2] for a in sys.argv if a.startswith("train.output_dir="))
os.makedirs(folder + "/inference", exist_ok=True)
resumed = os.path.exists(folder + "/config.yaml")
for file, content in {"config.yaml": "", "arguments.json": json.dumps(sys.argv[1:]), "pid": str(os.getpid()),
                      "threads": os.environ["OMP_NUM_THREADS"]}.items():
    with open(folder + "/" + file, "w") as f:
        f.write(content)
if "fail=1" in sys.argv and not resumed:
    print("Traceback of something", file=sys.stderr)
    sys.exit("error: The data are gone.")
for _ in range(600 if "wait=1" in sys.argv and not resumed else 0):
    time.sleep(0.05)
json.dump({"bbox": {"AP": 1.0}}, open(folder + "/inference/results.json", "w"))
open(folder + "/metrics.json", "w").write("".join(
    json.dumps({"iteration": i, "time": t}) + "\\n" for i, t in enumerate((9.0, 0.2, 0.3, 0.4))))
"""


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """train_net.py is the stub, and no model is built to count its parameters."""
    (tmp_path / "train_net.py").write_text(STUB)
    monkeypatch.setattr(runs, "ROOT", tmp_path)
    monkeypatch.setattr(runs, "inference_parameters", lambda folder: 7)
    return tmp_path


def plan_of(folder, *names, seeds=(0,), common=()):
    return Plan(with_hosts([parse_arm(name) for name in names]), tuple(seeds), folder / "runs", tuple(common))


def called_with(folder):
    return json.loads((folder / "arguments.json").read_text())


def train(plan, jobs=1):
    said = []
    runs.Runner(plan, jobs, said.append).run()
    return said


# ---------------------------------------------------------------- training
def test_every_run_has_its_seed_and_is_trained_once(stub, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    plan = plan_of(stub, f"a={CONFIG},x=1", f"b={CONFIG}", seeds=(3, 4), common=["w=runs/{seed}/w.pth"])
    said = train(plan, jobs=2)
    assert sum("finished, " in line for line in said) == 4 and said[-1].startswith("[4/4]")
    for arm, own in (("a", ["x=1"]), ("b", [])):
        for seed in (3, 4):
            folder = stub / "runs" / arm / str(seed)
            end = [f"train.output_dir={folder}", f"train.seed={seed}"]
            assert called_with(folder) == ["--config-file", CONFIG, *own, f"w=runs/{seed}/w.pth", *end]
            assert (folder / "threads").read_text() == "4"  # eight cores for two
    record = json.loads((stub / "runs/a/3/run.json").read_text())
    assert (record["status"], record["arm"], record["seed"]) == ("finished", "a", 3)
    assert record["seconds"] == record["attempts"][0]["seconds"] > 0
    assert record["seconds_per_step"] == pytest.approx(0.35)  # median of 9, 0.2, 0.3, 0.4
    assert record["memory_of"] == "process" and 1 < record["peak_memory_mib"] < 200  # not that of this process
    assert record["inference_parameters"] == 7 and record["jobs"] == 2 and "torch" in record["machine"]
    pid = (stub / "runs/a/3/pid").read_text()
    assert sum("finished before" in line for line in train(plan)) == 4
    assert (stub / "runs/a/3/pid").read_text() == pid


def test_failure_leaves_the_others_and_is_tried_again(stub):
    plan = plan_of(stub, f"a={CONFIG},fail=1", f"b={CONFIG}")
    said = train(plan)
    assert any("[1/2] a, seed 0: failed: The data are gone." in line for line in said)
    failed, good = (runs.read_record(stub / "runs" / name / "0") for name in "ab")
    assert (failed["status"], failed["error"]) == ("failed", "The data are gone.") and good["status"] == "finished"
    assert failed["attempts"][0]["exit_code"] == 1 and "seconds_per_step" not in failed
    train(plan)
    folder = stub / "runs/a/0"
    again = runs.read_record(folder)
    assert (again["status"], again["error"], len(again["attempts"])) == ("finished", None, 2)
    assert again["seconds"] == pytest.approx(sum(a["seconds"] for a in again["attempts"]))
    assert "--resume" in called_with(folder) and "--resume" not in called_with(stub / "runs/b/0")


def test_exit_code_of_a_failure(stub, tmp_path, capsys, monkeypatch):
    """1 where a run failed, also where none is left to report."""
    monkeypatch.setattr(compare, "check", lambda plan, *_: plan)  # the stub's keys are no config's
    flags = ["--arm", f"a={CONFIG},fail=1", "--seeds", "0", "--examples", "0", "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as e:
        compare.main(flags)
    assert e.value.code == 1 and "nothing to report (a, seed 0: The data are gone.)" in capsys.readouterr().err
    (tmp_path / "runs/a/0/config.yaml").unlink()  # the stub fails again
    with pytest.raises(SystemExit) as e:
        compare.main([*flags, "--arm", f"b={CONFIG}"])
    captured = capsys.readouterr()
    assert e.value.code == 1 and "not finished: a, seed 0: The data are gone." in captured.err
    assert "| b | 1.00 | 1.00 |" in captured.out and "The data are gone" in (tmp_path / "runs/report.html").read_text()
    compare.main([*flags, "--arm", f"b={CONFIG}"])  # the stub goes on where it stopped


def test_a_folder_of_other_arguments_is_refused(stub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare, "check", lambda plan, *_: plan)
    train(plan_of(stub, f"a={CONFIG},x=1"))
    with pytest.raises(SystemExit) as e:
        compare.main(["--arm", f"a={CONFIG},x=2", "--seeds", "0", "--runs", str(tmp_path / "runs")])
    sentence = capsys.readouterr().err
    assert e.value.code == 2 and "runs/a/0 holds a run of other arguments (x=1, x=2)" in sentence
    runs.check_records(plan_of(stub, f"a={CONFIG},x=1", f"b={CONFIG}"))


def begun(file):
    """Wait for a stub to have begun; its process id."""
    for _ in range(3000):  # a test that hangs says nothing
        if file.exists() and file.read_text():
            break
        time.sleep(0.02)
    return int(file.read_text())


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_ends_the_children_and_the_command_goes_on(stub, number):
    plan = plan_of(stub, f"a={CONFIG}", f"b={CONFIG}", f"c={CONFIG}", common=["wait=1"])
    pids = []

    def interrupt():
        pids.extend(begun(stub / "runs" / name / "0/pid") for name in "ab")
        os.kill(os.getpid(), number)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt) as e:
        train(plan, jobs=2)
    thread.join()
    assert e.value.args == ((signal.SIGTERM,) if number == signal.SIGTERM else ())
    assert len(pids) == 2 and not any(map(alive, pids)) and signal.getsignal(signal.SIGTERM) == before
    for name in "ab":
        record = runs.read_record(stub / "runs" / name / "0")
        assert record["status"] == "unfinished" and record["attempts"][0]["exit_code"] == -signal.SIGTERM
        assert record["attempts"][0]["seconds"] > 0
    assert not (stub / "runs/c/0/pid").exists()
    train(plan_of(stub, f"a={CONFIG}", common=["wait=1"]))  # resumed, the stub does not wait
    record = runs.read_record(stub / "runs/a/0")
    assert record["status"] == "finished" and len(record["attempts"]) == 2 and record["seconds"] > 0


@pytest.mark.parametrize("of, code", [((), 130), ((signal.SIGTERM,), 143)])
def test_interrupted_command_says_so(stub, tmp_path, capsys, monkeypatch, of, code):
    def interrupted(self):
        raise KeyboardInterrupt(*of)

    monkeypatch.setattr(compare, "check", lambda plan, *_: plan)
    monkeypatch.setattr(compare.Runner, "run", interrupted)
    with pytest.raises(SystemExit) as e:
        compare.main(["--arm", f"a={CONFIG}", "--seeds", "0", "--runs", str(tmp_path / "runs")])
    assert e.value.code == code and "the same command goes on" in capsys.readouterr().err


def test_two_commands_do_not_train_in_one_folder(stub, capsys, monkeypatch):
    """And the one that is refused leaves the other's command there."""
    monkeypatch.setattr(compare, "check", lambda plan, *_: plan)
    flags = ["--runs", str(stub / "runs"), "--seeds", "0", "--examples", "0", "--arm"]
    compare.main([*flags, f"a={CONFIG}"])
    with alone_in(str(stub / "runs"), "tools/compare.py"), pytest.raises(SystemExit) as e:
        compare.main([*flags, f"b={CONFIG}"])
    assert e.value.code == 2 and f"Another tools/compare.py trains in {stub}/runs: wait" in capsys.readouterr().err
    assert json.loads((stub / "runs/compare.json").read_text())["arguments"] == [*flags, f"a={CONFIG}"]
    compare.main([*flags, f"b={CONFIG}"])
    assert runs.read_record(stub / "runs/b/0")["status"] == "finished"


def test_one_run_that_cannot_write_leaves_the_others(stub, capsys, monkeypatch):
    (stub / "runs/a/0.txt").mkdir(parents=True)  # where its log belongs
    monkeypatch.setattr(compare, "check", lambda plan, *_: plan)
    flags = ["--runs", str(stub / "runs"), "--seeds", "0", "--examples", "0", "--arm", f"a={CONFIG}"]
    with pytest.raises(SystemExit) as e:
        compare.main([*flags, "--arm", f"b={CONFIG}"])
    assert e.value.code == 1 and f"a, seed 0: {stub}/runs/a/0.txt: Is a directory" in capsys.readouterr().err
    report = json.loads((stub / "runs/report.json").read_text())
    assert [report["arms"][name]["runs"]["0"]["status"] for name in "ab"] == ["failed", "finished"]


# ---------------------------------------------------------------- measuring
def measure(tmp_path, code, **more):
    command = [sys.executable, measured.__file__, str(tmp_path / "out.json"), sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, **more)


def test_memory_is_the_childs_own(tmp_path):
    """This process is larger than the child: Linux would count it, were the child started from here."""
    peaks = []
    for mib in (1, 300):
        process = measure(
            tmp_path, f"x = bytearray({mib} << 20); x[::4096] = b'1' * len(x[::4096]); raise SystemExit(3)"
        )
        assert process.wait() == 3
        process.stdin.close()
        record = json.loads((tmp_path / "out.json").read_text())
        assert record["exit_code"] == 3
        peaks.append(record["peak_memory_mib"])
    assert peaks[0] < 100 and 300 < peaks[1] < 400


DEAF = "signal.signal(15, signal.SIG_IGN)"
ENDS_ITS_OWN = "signal.signal(15, lambda *_: sys.exit(7 if worker.poll() is None else 8))"


@pytest.mark.parametrize("hears, code", [("", -15), (DEAF, -9), (ENDS_ITS_OWN, 7)])
def test_a_training_ends_with_the_command_that_started_it(tmp_path, hears, code):
    """Also where that was killed: its end of the pipe closes. One that ignores SIGTERM is killed in the end; its
    workers are its own to end, so that it can save."""
    script = Path(measured.__file__).read_text()
    assert "GRACE_SECONDS = 60" in script
    (tmp_path / "measured.py").write_text(
        script.replace("GRACE_SECONDS = 60", f"GRACE_SECONDS = {0.3 if code < 0 else 60}")
    )
    child = f"""
import os, signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(5)"])
{hears}
open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
time.sleep(100)
"""
    command = [sys.executable, str(tmp_path / "measured.py"), str(tmp_path / "out.json"), sys.executable, "-c", child]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    pid = begun(tmp_path / "pid")
    process.stdin.close()
    process.wait(timeout=60)  # a test that hangs says nothing
    assert not alive(pid)
    assert json.loads((tmp_path / "out.json").read_text())["exit_code"] == code


def test_failure_in_a_sentence(tmp_path):
    log = tmp_path / "0.txt"
    log.write_text("error: of the attempt before\n")
    start = log.stat().st_size
    with open(log, "a") as f:
        f.write("Traceback\nRuntimeError: no memory\n\n")
    assert runs.failure(log, start, 1) == "RuntimeError: no memory"
    assert runs.failure(log, 0, 2) == "of the attempt before"
    assert runs.failure(log, start, -9) == "ended by SIGKILL, as the system does when memory is short"
    assert runs.failure(log, log.stat().st_size, 1) == "exit code 1"


def test_memory_of_a_gpu_is_in_the_log(tmp_path):
    attempts = [{"peak_memory_mib": 100.0}, {"peak_memory_mib": 300.0}, {}]
    assert runs.peak_memory(tmp_path, attempts) == {"peak_memory_mib": 300.0, "memory_of": "process"}
    (tmp_path / "log.txt").write_text("iter: 19  lr: 0.1  max_mem: 812M\niter: 39  lr: 0.1  max_mem: 1024M\n")
    assert runs.peak_memory(tmp_path, attempts) == {"peak_memory_mib": 1024, "memory_of": "GPU"}


def test_parameters_are_those_of_inference(tmp_path):
    """LabelEnc's encoder is for training alone: the detector has as many as its host."""
    counts, data = [], own_data_flags(tmp_path)
    for name in ("retinanet", "labelenc_step1"):
        folder = tmp_path / name
        folder.mkdir()
        run = make_run(load_config(str(ROOT / f"tests/tiny/{name}.py")))
        run.use_own_data(*data[1::2])
        save_config(run, str(folder))
        counts.append((runs.inference_parameters(folder), sum(p.numel() for p in run.build_model().parameters())))
    (host, host_all), (ours, ours_all) = counts
    assert ours == host == host_all < ours_all


# ---------------------------------------------------------------- records
def test_a_run_of_another_config_is_not_taken_for_this_one(stub, capsys):
    """Changed in place, or another of the same name elsewhere."""
    data = own_data_flags(stub)
    for name in ("here", "there"):
        (stub / name).mkdir()
        run = make_run(load_config(CONFIG, [f"optimizer.lr={0.1 if name == 'here' else 0.2}"]))
        run.use_own_data(*data[1::2])
        (stub / name / "edit.yaml").write_text(config_text(run.cfg))
    flags = ["--seeds", "0", "--examples", "0", "--runs", str(stub / "runs")]
    here, there = ([*flags, "--arm", f"a={stub / name}/edit.yaml", "--", *data] for name in ("here", "there"))
    compare.main(here)
    compare.main(here)
    record = json.loads((stub / "runs/a/0/run.json").read_text())
    assert len(record["attempts"]) == 1 and str(stub / "here") not in json.dumps(record)
    before = (stub / "here/edit.yaml").read_text()
    (stub / "here/edit.yaml").write_text(before.replace("lr: 0.1", "lr: 0.3"))
    for argv in (here, there):
        with pytest.raises(SystemExit) as e:
            compare.main(argv)
        sentence = capsys.readouterr().err
        assert e.value.code == 2 and f"{stub}/runs/a/0 holds a run of another state of edit.yaml" in sentence
    (stub / "here/edit.yaml").write_text(before)
    compare.main(here)
    del record["config_hash"]  # of a version that recorded none
    (stub / "runs/a/0/run.json").write_text(json.dumps(record))
    compare.main(there)


def test_folders_of_other_commands(tmp_path):
    assert runs.read_record(tmp_path / "none") == {"status": "not run", "attempts": []}
    (tmp_path / "inference").mkdir()
    (tmp_path / "config.yaml").touch()
    (tmp_path / "inference/results.json").touch()  # of an evaluation on the way
    begun_elsewhere = runs.read_record(tmp_path)
    assert begun_elsewhere["status"] == "unfinished"
    assert runs.measure_seconds(begun_elsewhere["attempts"]) is None  # how long it ran is not known
    (tmp_path / "model_final.pth").touch()
    assert runs.read_record(tmp_path)["status"] == "finished"
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json cannot be read"):
        runs.read_record(tmp_path)


# ---------------------------------------------------------------- all of it
@pytest.mark.slow
def test_two_arms_from_the_command_line(tmp_path):
    """Both kinds of config, trained, reported; the same command again trains nothing."""
    data = own_data_flags(tmp_path)
    folder = tmp_path / "runs"
    command = [sys.executable, str(ROOT / "tools/compare.py"), "--arm", f"lazy={CONFIG}"]
    command += ["--arm", f"yaml={ROOT}/tests/tiny/faster_rcnn.yaml", "--seeds", "0", "1", "--iterations", "4"]
    command += ["--eval-period", "2", "--runs", str(folder), "--examples", "1", "--", *data]
    first = subprocess.run(command, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    report = json.loads((folder / "report.json").read_text())
    for name in ("lazy", "yaml"):
        for seed in "01":
            run = report["arms"][name]["runs"][seed]
            results = json.loads((folder / name / seed / "inference/results.json").read_text())["bbox"]
            assert run["metrics"] == {k: v if v == v else None for k, v in results.items()}
            assert run["seconds"] > run["seconds_per_step"] > 0 and run["peak_memory_mib"] > 100
        assert report["arms"][name]["iterations"] == 4
    assert len(report["curves"]["lazy"]["0"]["bbox/AP"][0]) == 2
    assert (folder / "report.html").read_text().count("data:image/jpeg") == 3
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*/*/model_final.pth")}
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("finished before") == 4 and len(times) == 4
    assert all(file.stat().st_mtime_ns == changed for file, changed in times.items())
