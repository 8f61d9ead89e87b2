"""benchmarks/batch_mates.py: what it counts, by hand, and on detectors that do and do not read the padding."""

import pytest
import torch
from torch import nn

from benchmarks.batch_mates import compare, measure, with_mate
from detectron2.structures import Boxes, ImageList, Instances


def detections(boxes, scores, classes):
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor(boxes)), scores=torch.tensor(scores))
    found.pred_classes = torch.tensor(classes)
    return found


def test_compare_by_hand():
    """Box a moves by 1 and 2 px (IoU 9 * 8 / (100 + 80 - 72) = 0.67); b's mate has another class; c is new."""
    alone = detections([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]], [0.9, 0.5], [1, 2])
    beside = detections([[1.0, 2.0, 11.0, 10.0], [20.0, 20.0, 30.0, 30.0]], [0.8, 0.5], [1, 3])
    scores, boxes, lost = compare(alone, beside)
    assert scores == pytest.approx([0.1]) and boxes == [2.0] and lost == 2
    assert compare(alone, beside[:0]) == ([], [], 2)


class MeanDetector(nn.Module):
    """One box as large as the image, with the mean of the padded batch or of the image as its score."""

    def __init__(self, padded: bool):
        super().__init__()
        self.padded = padded

    def forward(self, batch):
        images = ImageList.from_tensors([x["image"].float() / 255 for x in batch], 32)
        outputs = []
        for x, padded in zip(batch, images):
            _, h, w = x["image"].shape
            score = (images.tensor[len(outputs)] if self.padded else padded).mean()
            outputs.append({"instances": detections([[0.0, 0.0, float(w), float(h)]], [0.0], [0])})
            outputs[-1]["instances"].scores = score[None]
        return outputs


def test_measure_tells_who_reads_padding():
    """A white image of 32 x 32 beside one of 48 x 48, padded to 64 x 64: its mean falls from 1 to a quarter."""
    inputs = {"image": torch.full((3, 32, 32), 255, dtype=torch.uint8), "height": 32, "width": 32}
    assert [tuple(x["image"].shape) for x in with_mate(inputs)] == [(3, 32, 32), (3, 48, 48)]
    assert measure(MeanDetector(True), [inputs]) == "1 | 0 | 7.5e-01 | 7.5e-01 | 0.0e+00 | 0.0e+00"
    assert measure(MeanDetector(False), [inputs]) == "1 | 0 | 0.0e+00 | 0.0e+00 | 0.0e+00 | 0.0e+00"
