"""From the network's coordinates to the output's."""

import pytest
import torch

from detectron2.modeling import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks


def result(boxes, size=(50, 100), key="pred_boxes", **fields):
    return Instances(size, **{key: Boxes(torch.tensor(boxes))}, **fields)


@pytest.mark.parametrize("key", ["pred_boxes", "proposal_boxes"])
def test_boxes_are_scaled_clipped_and_filtered(key):
    boxes = [[10.0, 10, 20, 30], [90, -5, 120, 60], [100, 10, 110, 20]]
    given = result(boxes, key=key, scores=torch.tensor([0.9, 0.8, 0.7]))
    out = detector_postprocess(given, 100, 300)  # y * 2, x * 3
    assert out.image_size == (100, 300)
    assert out.get(key).tensor.tolist() == [[30, 20, 60, 60], [270, 0, 300, 100]]
    assert out.scores.tolist() == pytest.approx([0.9, 0.8])  # the third lies outside the image


def test_given_boxes_change_in_place():
    given = result([[10.0, 10, 20, 30]])
    detector_postprocess(given, 100, 300)
    assert given.pred_boxes.tensor.tolist() == [[30, 20, 60, 60]]
    assert given.image_size == (50, 100)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: ROIMasks(m[:, 0])])
def test_masks_are_pasted_at_the_output_size(wrap):
    masks = torch.zeros(2, 1, 4, 4)
    masks[0, :, :, :2] = 1.0  # left half
    given = result([[10.0, 10, 20, 20], [5.0, 5, 5, 9]], pred_masks=wrap(masks))
    out = detector_postprocess(given, 100, 200)  # x * 2, y * 2: (20, 20)-(40, 40); 2nd is empty
    assert out.pred_masks.shape == (1, 100, 200) and out.pred_masks.dtype == torch.bool
    ys, xs = out.pred_masks[0].nonzero(as_tuple=True)
    assert (ys.min(), ys.max(), xs.min()) == (20, 39, 20)
    assert xs.max() in (29, 30)  # the edge between the halves


def test_mask_threshold():
    given = result([[0.0, 0, 10, 10]], (10, 10), pred_masks=torch.full((1, 1, 2, 2), 0.6))
    assert detector_postprocess(given, 10, 10).pred_masks[0, 5, 5]
    assert not detector_postprocess(given, 10, 10, mask_threshold=0.7).pred_masks[0, 5, 5]


def test_no_detections():
    given = Instances((5, 5), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
    given.pred_masks = torch.zeros(0, 1, 28, 28)
    out = detector_postprocess(given, 20, 30)
    assert len(out) == 0 and out.pred_masks.shape == (0, 20, 30)
    assert out.pred_masks.dtype == torch.bool


def test_results_without_boxes_are_refused():
    with pytest.raises(AssertionError, match="boxes"):
        detector_postprocess(Instances((5, 5), scores=torch.zeros(1)), 5, 5)
