"""Ground truth to label maps: the op's use, batches, augmentation, masks. The op itself: tests/ops."""

import pytest
import torch

from detectron2.data import DatasetMapper
from detectron2.structures import BitMasks
from projects.LabelEnc import LabelMaskMapper
from projects.LabelEnc.maps import label_maps, object_masks, random_intensities, to_bitmasks
from shared.errors import UserError
from tests.scenes import make_coco

from .hosts import CLASSES, enc_host, make_instances


def dense(groups, size):
    """(N, CLASSES, H, W) of all groups."""
    maps = []
    for group in groups:
        full = torch.zeros(len(group.maps), CLASSES, *size)
        full[:, group.present] = group.maps
        maps.append(full)
    return torch.cat(maps)


def test_one_box_by_hand():
    """(10, 10, 20, 20): the nearest samples to the centre lie 0.5 px off, of 10 px: 1 - 0.05; border ones 4.5 px."""
    target = make_instances([[10, 10, 20, 20]], [2], (32, 32))
    (group,) = label_maps([target], (32, 32), num_classes=CLASSES)
    assert group.present.tolist() == [2] and group.maps.shape == (1, 1, 32, 32)
    assert group.maps.count_nonzero() == 100 and group.maps.max().item() == pytest.approx(0.95)
    assert group.maps[group.maps > 0].min().item() == pytest.approx(0.55)
    (group,) = label_maps([target], (32, 32), num_classes=CLASSES, pixel_offset=0.0)
    assert group.maps.count_nonzero() == 121 and group.maps[0, 0, 15, 15] == 1


def test_batch_lies_top_left_and_padding_is_zero():
    boxes = [[1.0, 2.0, 20.0, 30.0], [4.0, 4.0, 39.0, 39.0]]
    targets = [make_instances(boxes, [0, 4], (40, 40)), make_instances(boxes[:1], [3], (33, 50))]
    size = (64, 64)
    both = dense(label_maps(targets, size, num_classes=CLASSES), size)
    assert not both[:, :, 40:].any() and not both[:, :, :, 50:].any() and both[0, 4, 38, 38] > 0
    swapped = dense(label_maps(targets[::-1], size, num_classes=CLASSES), size)
    assert torch.equal(both.flip(0), swapped)
    alone = dense(label_maps(targets[:1], (40, 40), num_classes=CLASSES), (40, 40))
    assert torch.equal(both[:1, :, :40, :40], alone)


def test_more_than_two_images_have_channels_of_their_own():
    targets = [make_instances([[1, 2, 20, 30]], [c], (32, 32)) for c in (4, 0)] + [make_instances([], [], (32, 32))]
    assert [g.present.tolist() for g in label_maps(targets, (32, 32), num_classes=CLASSES)] == [[4], [0], [0]]
    assert [g.present.tolist() for g in label_maps(targets[:2], (32, 32), num_classes=CLASSES)] == [[0, 4]]
    (empty,) = label_maps(targets[2:], (32, 32), num_classes=CLASSES)
    assert empty.maps.shape == (1, 1, 32, 32) and not empty.maps.any()


def test_flipped_boxes_give_flipped_maps():
    boxes = torch.tensor([[3.0, 5.0, 21.0, 30.0], [10.0, 1.0, 31.0, 12.5]])
    flipped = boxes.clone()
    flipped[:, [0, 2]] = 48 - boxes[:, [2, 0]]
    a, b = (
        label_maps([make_instances(x.tolist(), [1, 1], (32, 48))], (32, 48), num_classes=5) for x in (boxes, flipped)
    )
    torch.testing.assert_close(a[0].maps.flip(3), b[0].maps)


def test_random_intensities():
    """min(1, 2 u): 1 half of the time, 0.75 in the mean."""
    torch.manual_seed(0)
    factors = random_intensities(torch.zeros(20000, 4))
    assert (factors == 1).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert factors.mean().item() == pytest.approx(0.75, abs=0.01)
    below = factors[factors < 1]
    assert below.mean().item() == pytest.approx(0.5, abs=0.02) and below.min() < 0.01 and below.max() > 0.99


def test_augmentation_scales_objects_and_follows_the_seed():
    boxes = [[2.0, 2.0, 12.0, 12.0], [16.0, 16.0, 30.0, 30.0]]
    targets = [make_instances(boxes, [1, 1], (32, 32))]
    (plain,) = label_maps(targets, (32, 32), num_classes=CLASSES)
    maps = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        maps.append(label_maps(targets, (32, 32), num_classes=CLASSES, augment=True)[0].maps)
    assert torch.equal(maps[0], maps[1]) and not torch.equal(maps[0], maps[2])
    torch.manual_seed(4)
    first, second = (2 * torch.rand(2)).clamp(max=1).tolist()
    torch.testing.assert_close(maps[2][..., :14, :14], first * plain.maps[..., :14, :14])
    torch.testing.assert_close(maps[2][..., 14:, 14:], second * plain.maps[..., 14:, 14:])


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"mode": "step1"}, True),
        ({"mode": "step1", "aug_step1": False}, False),
        ({"mode": "step2"}, False),
        ({"mode": "step2", "aug_step2": True}, True),
    ],
)
def test_which_step_augments(options, expected):
    enc = enc_host(**options).label_enc
    assert enc.map_options == {"source": "box", "pixel_offset": 0.5, "augment": expected}


def test_masks_cut_the_pyramids():
    targets = [make_instances([[2, 3, 26, 27], [4, 4, 30, 20]], [0, 2], (30, 31)), make_instances([], [], (28, 32))]
    options = dict(num_classes=CLASSES)
    boxes = dense(label_maps(targets, (32, 32), **options), (32, 32))
    masked = dense(label_maps(targets, (32, 32), source="mask", **options), (32, 32))
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[:, :30, :31] = targets[0].gt_masks.tensor
    assert torch.equal(masked[0, 0], boxes[0, 0] * masks[0]) and torch.equal(masked[0, 2], boxes[0, 2] * masks[1])
    assert 0 < masked.sum() < boxes.sum()
    targets[0].gt_masks = BitMasks(torch.ones(2, 30, 31))
    assert torch.equal(dense(label_maps(targets, (32, 32), source="mask", **options), (32, 32)), boxes)


def test_masks_of_the_mapper_come_first_and_none_is_an_error():
    target = make_instances([[2, 3, 26, 27]], [0], (30, 31))
    target.label_masks = BitMasks(torch.zeros(1, 30, 31))
    assert not object_masks(target, (32, 32)).any()
    target.remove("label_masks")
    assert object_masks(target, (32, 32)).any()
    target.remove("gt_masks")
    with pytest.raises(UserError, match="use_instance_mask=True"):
        object_masks(target, (32, 32))


def test_mapper_draws_the_masks_and_keeps_the_polygons(tmp_path):
    """A polygon that fills its box: every sample of the box is in the mask."""
    file, root = make_coco(tmp_path, images=1)
    annotations = [{"bbox": [8, 6, 20, 30], "bbox_mode": 1, "category_id": 1}]
    annotations[0]["segmentation"] = [[8, 6, 28, 6, 28, 36, 8, 36]]
    entry = {"file_name": str(root / "0.png"), "height": 64, "width": 64, "annotations": annotations}
    options = dict(is_train=True, augmentations=[], image_format="BGR", use_instance_mask=True)
    plain, ours = DatasetMapper(**options)(entry), LabelMaskMapper(**options)(entry)
    masks = ours["instances"].label_masks
    assert type(ours["instances"].gt_masks) is type(plain["instances"].gt_masks) is not BitMasks
    assert masks.tensor.shape == (1, 64, 64) and masks.tensor.dtype == torch.bool
    assert masks.tensor.sum() == 600 and masks.tensor[0, 6:36, 8:28].all()
    assert torch.equal(to_bitmasks(plain["instances"].gt_masks, (64, 64)).tensor, masks.tensor)
    without = LabelMaskMapper(**{**options, "use_instance_mask": False})(entry)
    assert not without["instances"].has("label_masks")
