"""benchmarks/assignment.py: the table on a small scene."""

import torch

from benchmarks import assignment


def test_table(capsys, monkeypatch, tmp_path):
    file = tmp_path / "table.md"
    flags = ["--size", "96", "128", "--objects", "5", "--sides", "16", "60", "--shapes", "3", "--rounds", "3"]
    monkeypatch.setattr("sys.argv", ["assignment.py", *flags, "--threads", "1", "--output", str(file)])
    assignment.main()
    text = file.read_text()
    assert text == capsys.readouterr().out and "96 x 128 px with 5 objects of 16 to 60 px" in text
    # 12 x 16 + 6 x 8 + 3 x 4 + 2 x 2 + 1 locations, three anchors each
    rows = [line.split(" | ") for line in text.splitlines()[-2:]]
    assert [(r[1], r[2]) for r in rows] == [("771", "ATSS"), ("771", "MuSu")]
    assert all(int(r[3]) > 0 and "(1.00x)" in rows[0][4] for r in rows)
    scene = assignment.make_scene((96, 128), 2, 4, (16, 60), 1, torch.device("cpu"))
    assert scene.gt_images.tolist() == [0] * 4 + [1] * 4 and scene.gt_boxes[:, 2:].max() <= 128
