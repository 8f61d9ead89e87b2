"""Choice of RPN proposals; ground truth among the proposals."""

import pytest
import torch

from detectron2.modeling.proposal_generator.proposal_utils import add_ground_truth_to_proposals, find_top_rpn_proposals
from detectron2.structures import Boxes, Instances

NAN, INF = float("nan"), float("inf")


def find(levels, sizes=((100, 100),), pre=10, post=10, min_size=0.0, training=False, nms=0.7):
    """levels: per level a list of images, each a list of (box, logit)."""
    boxes = [torch.tensor([[list(map(float, b)) for b, _ in im] for im in lv]) for lv in levels]
    logits = [torch.tensor([[float(s) for _, s in im] for im in lv]) for lv in levels]
    return find_top_rpn_proposals(boxes, logits, list(sizes), nms, pre, post, min_size, training)


A, B, C = (0, 0, 10, 10), (20, 20, 40, 40), (50, 50, 70, 90)


def test_nms_works_within_levels_only_and_sorts_by_score_over_all():
    almost_a = (0, 0, 10, 9)  # IoU with A 90 / 100 = 0.9 > 0.7
    level0, level1 = [[(A, 1), (B, 3), (almost_a, 2)]], [[(almost_a, 2.5)]]
    (result,) = find([level0, level1])
    assert result.objectness_logits.tolist() == [3, 2.5, 2]
    assert result.proposal_boxes.tensor.tolist() == [list(B), list(almost_a), list(almost_a)]
    assert result.image_size == (100, 100)
    assert set(result.get_fields()) == {"proposal_boxes", "objectness_logits"}


def test_pre_nms_topk_counts_per_level_and_post_nms_topk_per_image():
    levels = [[[(A, 1), (B, 2), (C, 3)]], [[(A, 5), (B, 4)]]]
    (result,) = find(levels, pre=1)
    assert result.objectness_logits.tolist() == [5, 3]  # the best of each level
    (result,) = find(levels, pre=2, post=3)
    assert result.objectness_logits.tolist() == [5, 4, 3]
    (result,) = find(levels, pre=100)  # more than a level has
    assert result.objectness_logits.tolist() == [5, 4, 3, 2, 1]


def test_each_image_has_its_own_boxes_and_size():
    first, second = find([[[(A, 1), (B, 2)], [(C, 1), (A, 2)]]], sizes=[(30, 25), (80, 60)])
    assert first.proposal_boxes.tensor.tolist() == [[20, 20, 25, 30], list(A)]
    assert second.proposal_boxes.tensor.tolist() == [list(A), [50, 50, 60, 80]]
    assert second.image_size == (80, 60)


def test_boxes_with_a_side_of_min_box_size_or_less_are_dropped_after_clipping():
    # clipped to 100 x 100: 4 x 10, 5 x 10, 10 x 5 and 6 x 6 pixels
    image = [((96, 0, 130, 10), 4), ((95, 20, 130, 30), 3), ((30, 95, 40, 130), 2), ((0, 0, 6, 6), 1)]
    (result,) = find([[image]], min_size=5.0)
    assert result.objectness_logits.tolist() == [1]
    (result,) = find([[[((5, 5, 5, 9), 1), ((120, 0, 130, 9), 2)]]])  # flat; outside
    assert len(result) == 0
    assert result.proposal_boxes.tensor.shape == (0, 4)


@pytest.mark.parametrize("bad", [((0, 0, INF, 10), 5), ((0, NAN, 10, 10), 5), (C, NAN), (C, INF)])
def test_non_finite_candidates_are_dropped_at_inference_and_an_error_in_training(bad):
    (result,) = find([[[(A, 1), bad, (B, 2)]]])
    assert result.proposal_boxes.tensor.tolist() == [list(B), list(A)]
    with pytest.raises(FloatingPointError, match="[Tt]raining has diverged"):
        find([[[(A, 1), bad, (B, 2)]]], training=True)


def gt_instances(boxes):
    gt = Instances((50, 60))
    gt.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    gt.gt_classes = torch.arange(len(boxes))
    return gt


def some_proposals():
    return Instances(
        (50, 60), proposal_boxes=Boxes(torch.tensor([[0.0, 0, 5, 5]])), objectness_logits=torch.tensor([0.5])
    )


@pytest.mark.parametrize("as_boxes", [False, True])
def test_ground_truth_is_appended_with_the_logit_of_certainty(as_boxes):
    gt = gt_instances([[1.0, 2, 3, 4], [2, 2, 9, 9]])
    proposals = some_proposals()
    (result,) = add_ground_truth_to_proposals([gt.gt_boxes if as_boxes else gt], [proposals])
    assert result.proposal_boxes.tensor.tolist() == [[0, 0, 5, 5], [1, 2, 3, 4], [2, 2, 9, 9]]
    # log(p / (1 - p)) with p = 1 - 1e-10: 10 * log(10) = 23.02585
    torch.testing.assert_close(result.objectness_logits, torch.tensor([0.5, 23.02585, 23.02585]), rtol=0, atol=1e-5)
    assert set(result.get_fields()) == {"proposal_boxes", "objectness_logits"}
    assert len(proposals) == 1


def test_no_ground_truth_leaves_the_proposals():
    (result,) = add_ground_truth_to_proposals([gt_instances([])], [some_proposals()])
    assert result.objectness_logits.tolist() == [0.5]
    assert add_ground_truth_to_proposals([], []) == []


def test_ground_truth_needs_every_field_of_the_proposals():
    proposals = some_proposals()
    proposals.gt_classes = torch.tensor([7])
    gt = gt_instances([[1.0, 2, 3, 4]])
    (result,) = add_ground_truth_to_proposals([gt], [proposals])
    assert result.gt_classes.tolist() == [7, 0]
    proposals.tag = torch.tensor([7])
    with pytest.raises(AssertionError, match="tag"):
        add_ground_truth_to_proposals([gt], [proposals])


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="same length"):
        add_ground_truth_to_proposals([gt_instances([])], [some_proposals()] * 2)
