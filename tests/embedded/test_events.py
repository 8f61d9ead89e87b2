"""EventStorage and its writers."""

import json
import logging
import threading

import pytest
import torch

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
)


@pytest.fixture
def storage():
    with EventStorage(0) as s:
        yield s


class TestStorage:
    def test_stack(self):
        assert not has_event_storage()
        with pytest.raises(AssertionError, match="with EventStorage"):
            get_event_storage()
        with EventStorage() as outer:
            with EventStorage() as inner:
                assert get_event_storage() is inner
            assert get_event_storage() is outer and has_event_storage()
        assert not has_event_storage()

    def test_is_closed_after_an_error(self):
        with pytest.raises(ZeroDivisionError), EventStorage():
            raise ZeroDivisionError
        assert not has_event_storage()

    def test_is_seen_by_other_threads(self, storage):
        thread = threading.Thread(target=lambda: get_event_storage().put_scalar("x", 3))
        thread.start()
        thread.join()
        assert storage.latest() == {"x": (3.0, 0)}

    def test_scalars(self):
        with EventStorage(5) as s:
            s.put_scalar("a", torch.tensor(2.5))
            s.step()
            s.put_scalars(a=4, b=1, cur_iter=9)
            assert s.latest() == {"a": (4.0, 9), "b": (1.0, 9)}
            assert s.history("a").values() == [(2.5, 5), (4.0, 9)]
            assert set(s.histories()) == {"a", "b"}
            assert s.iter == s.iteration == 6
            s.iter = 11
            s.put_scalar("a", 0)
            assert s.latest()["a"] == (0.0, 11)

    @pytest.mark.embedded_only  # upstream returns an empty history
    def test_unknown_history(self, storage):
        with pytest.raises(KeyError, match="nope"):
            storage.history("nope")

    def test_smoothing_hint_must_not_change(self, storage):
        storage.put_scalar("lr", 1, smoothing_hint=False)
        assert storage.smoothing_hints() == {"lr": False}
        with pytest.raises(AssertionError, match="lr.*smoothing_hint"):
            storage.put_scalar("lr", 1)

    def test_window_is_counted_in_iterations(self, storage):
        for i in range(10):
            if i % 2 == 0:
                storage.put_scalar("even", i)  # at 0, 2, 4, 6, 8
            storage.put_scalar("lr", i, smoothing_hint=False)
            storage.step()
        # iterations 4 .. 8, counted from the last value, hold 4, 6, 8
        assert storage.count_samples("even", 5) == 3
        assert storage.count_samples("even", 1) == 1 and storage.count_samples("even") == 5
        assert storage.latest_with_smoothing_hint(5) == {"even": (6.0, 8), "lr": (9.0, 9)}

    def test_name_scope(self, storage):
        with storage.name_scope("a"):
            storage.put_scalar("x", 1)
            with storage.name_scope("b/"):
                storage.put_scalar("x", 2)
            storage.put_scalar("y", 3)
        storage.put_scalar("x", 4)
        assert list(storage.latest()) == ["a/x", "b/x", "a/y", "x"]

    def test_images_and_histograms(self, storage):
        storage.iter = 3
        image = torch.zeros(3, 2, 2)
        storage.put_image("im", image)
        (entry,) = storage._vis_data
        assert entry[0] == "im" and entry[1] is image and entry[2] == 3
        storage.put_histogram("h", torch.tensor([0.0, 1, 2, 3, 10]), bins=5)
        (h,) = storage._histograms
        # bins of width 2: [0, 2) two, [2, 4) two, then none, none, [8, 10] one
        assert h["bucket_counts"] == [2, 2, 0, 0, 1]
        assert h["bucket_limits"] == [2, 4, 6, 8, 10]
        assert (h["min"], h["max"], h["num"], h["sum"], h["sum_squares"]) == (0, 10, 5, 16, 114)
        assert h["tag"] == "h" and h["global_step"] == 3
        storage.clear_images()
        storage.clear_histograms()
        assert storage._vis_data == [] and storage._histograms == []


def test_json_writer(storage, tmp_path):
    file = tmp_path / "metrics.json"
    file.write_text('{"old": 1}\n')
    writer = JSONWriter(str(file), window_size=3)
    for i in range(5):
        storage.put_scalar("loss", i)
        if i == 2:
            storage.put_scalar("ap", 0.5, smoothing_hint=False)
        if i in (1, 4):
            writer.write()
            writer.write()  # nothing new
        storage.step()
    storage.put_scalar("after", 1)  # iteration 5 is one past the last: metrics put after training
    writer.write()
    storage.put_scalar("late", 1, cur_iter=1)  # an iteration that has been written
    writer.write()
    writer.close()
    lines = [json.loads(x) for x in file.read_text().splitlines()]
    assert lines == [
        {"old": 1},
        {"iteration": 1, "loss": 0.5},  # median of 0, 1
        {"iteration": 4, "loss": 3.0},  # of 2, 3, 4
        {"iteration": 2, "ap": 0.5},
        {"iteration": 5, "after": 1.0},
    ]
    assert file.read_text().splitlines()[1] == '{"iteration": 1, "loss": 0.5}'


class TestTensorboard:
    def test_nothing_on_disk_before_the_first_value(self, storage, tmp_path):
        writer = TensorboardXWriter(str(tmp_path / "tb"))
        writer.write()
        writer.close()
        assert not (tmp_path / "tb").exists()

    def test_what_is_written(self, storage, tmp_path, monkeypatch):
        calls = []

        class Writer:
            def __init__(self, log_dir, **kwargs):
                calls.append(("init", log_dir, kwargs))

            def __getattr__(self, name):
                return lambda *args, **kwargs: calls.append((name, args, kwargs))

        monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Writer)
        writer = TensorboardXWriter("folder", window_size=2, flush_secs=5)
        for i in range(4):
            storage.put_scalar("x", i)
            storage.step()
        image = torch.zeros(3, 2, 2)
        storage.put_image("im", image)
        storage.put_histogram("h", torch.arange(3.0), bins=2)
        writer.write()
        writer.write()  # nothing new
        writer.close()
        assert calls[:2] == [
            ("init", "folder", {"flush_secs": 5}),
            ("add_scalar", ("x", 2.5, 3), {}),  # median of 2, 3
        ]
        assert calls[2][0] == "add_image" and calls[2][1][1] is image and calls[2][1][2] == 4
        assert calls[3][0] == "add_histogram_raw" and calls[3][2]["bucket_counts"] == [1, 2]
        assert [c[0] for c in calls[4:]] == ["close"]
        assert storage._vis_data == [] and storage._histograms == []

    def test_real_file(self, storage, tmp_path):
        writer = TensorboardXWriter(str(tmp_path / "tb"))
        storage.put_scalar("x", 1)
        storage.put_image("im", torch.rand(3, 4, 5))
        storage.put_histogram("h", torch.rand(7))
        writer.write()
        writer.close()
        (file,) = (tmp_path / "tb").iterdir()
        content = file.read_bytes()
        assert all(tag in content for tag in (b"im", b"h", b"x")) and len(content) > 500


class TestPrinter:
    @pytest.fixture
    def lines(self):
        """Messages of the printer's logger, runs of blanks squeezed."""
        out = []
        handler = logging.Handler()
        handler.emit = lambda record: out.append(" ".join(record.getMessage().split()))
        logger = logging.getLogger("detectron2.utils.events")
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        yield out
        logger.removeHandler(handler)

    @pytest.fixture(autouse=True)
    def no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def test_line(self, storage, lines):
        for i in range(20):
            storage.put_scalars(b_loss=2.5 * i, loss_a=i, acc=1, **{"[metric]x": 0.123456})
            storage.put_scalar("total_loss", 12345.678)
            storage.put_scalar("time", 1.5 if i else 100.0)
            storage.put_scalar("data_time", 0.25 if i < 19 else 0.5)
            storage.put_scalar("lr", 0.0123456789, smoothing_hint=False)
            if i < 19:
                storage.step()
        CommonMetricPrinter(max_iter=51).write()
        # 51 - 19 - 1 = 31 iterations of 1.5 s (the median; one took 100 s) are 46.5 s.
        # Times are means over the window: (100 + 19 * 1.5) / 20 = 6.425, 0.25 + 0.25 / 20 = 0.2625.
        assert lines == [
            "eta: 0:00:46 iter: 19 b_loss: 23.75 loss_a: 9.5 total_loss: 1.235e+04 "
            "[metric]x: 0.1235 time: 6.4250 last_time: 1.5000 "
            "data_time: 0.2625 last_data_time: 0.5000 lr: 0.012346"
        ]
        assert storage.latest()["eta_seconds"] == (46.5, 19)

    def test_without_max_iter(self, storage, lines):
        CommonMetricPrinter().write()
        assert lines == ["iter: 0 lr: N/A"]

    def test_eta_between_writes(self, storage, lines, monkeypatch):
        now = 100.0
        monkeypatch.setattr("detectron2.utils.events.time.perf_counter", lambda: now)
        printer = CommonMetricPrinter(max_iter=50)
        printer.write()
        storage.iter, now = 10, 120.0  # 2 s per iteration, 39 to go
        printer.write()
        assert lines == ["iter: 0 lr: N/A", "eta: 0:01:18 iter: 10 lr: N/A"]

    @pytest.mark.embedded_only  # upstream divides by zero
    def test_two_writes_at_one_iteration(self, storage, lines):
        printer = CommonMetricPrinter(max_iter=50)
        printer.write()
        printer.write()
        assert lines == ["iter: 0 lr: N/A"] * 2

    def test_silent_at_the_end(self, storage, lines):
        storage.iter = 50
        CommonMetricPrinter(max_iter=50).write()
        assert lines == []
