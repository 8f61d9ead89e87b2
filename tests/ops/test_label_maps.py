"""render_label_maps against the formula over full canvases of all classes, to the bit."""

import math

import pytest
import torch

from shared.ops.label_maps import dense_label_maps, render_label_maps, render_label_maps_reference

OP = torch.ops.d2ops.render_label_maps
CLASSES = 7


def make_inputs(device, seed=0, size=(45, 70), counts=(5, 0, 3), whole=False):
    """Boxes that overlap, reach over the canvas and have whole or broken coordinates; factors; masks."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.tensor([size[1], size[0]] * 2)
    lists = {"boxes": [], "classes": [], "intensities": [], "masks": []}
    for n in counts:
        corners = (1.4 * torch.rand(n, 4, generator=rng) - 0.2) * scale
        corners = corners.round() if whole else corners
        boxes = torch.cat([corners.view(n, 2, 2).amin(dim=1), corners.view(n, 2, 2).amax(dim=1)], dim=1)
        lists["boxes"].append(boxes.to(device))
        lists["classes"].append(torch.randint(0, CLASSES, (n,), generator=rng).to(device))
        lists["intensities"].append(torch.rand(n, generator=rng).to(device))
        lists["masks"].append((torch.rand(n, *size, generator=rng) > 0.3).to(device))
    return lists["boxes"], lists["classes"], {k: lists[k] for k in ("intensities", "masks")}


def one(box, size=(32, 32), **options):
    """The map of one object of class 0, (H, W)."""
    boxes = torch.as_tensor([box], dtype=torch.float32)
    return render_label_maps([boxes], [torch.zeros(1, dtype=torch.int64)], size, num_classes=1, **options)[0][0, 0]


@pytest.mark.parametrize("offset", [0.5, 0.0, 0.3])
@pytest.mark.parametrize("used", [(), ("intensities",), ("masks",), ("intensities", "masks")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_the_full_canvas_to_the_bit(device, offset, used, dtype):
    # sizes with and without a whole number of strips, packs and vectors; float16 is rounded once on both sides
    for seed, size in enumerate([(45, 70), (64, 96), (33, 261), (1, 1), (17, 5)]):
        boxes, classes, more = make_inputs(device, seed, size, whole=seed % 2 == 1)
        options = {k: more[k] for k in used} | {"num_classes": CLASSES, "pixel_offset": offset, "dtype": dtype}
        maps, present = render_label_maps(boxes, classes, size, **options)
        expected, expected_present = render_label_maps_reference(boxes, classes, size, **options)
        assert present.tolist() == expected_present.tolist() and maps.dtype == dtype
        assert torch.equal(maps, expected)
        dense = dense_label_maps(boxes, classes, size, **options)
        absent = [c for c in range(CLASSES) if c not in present.tolist()]
        assert absent and not dense[:, absent].any()


def test_many_objects_in_a_plane(device):
    """More than a CUDA block looks at in one round."""
    boxes, _, more = make_inputs(device, counts=(601, 2))
    classes = [torch.arange(len(b), device=device) % 2 for b in boxes]
    options = {"num_classes": 2, "intensities": more["intensities"]}
    maps, _ = render_label_maps(boxes, classes, (45, 70), **options)
    assert torch.equal(maps, dense_label_maps(boxes, classes, (45, 70), **options))


def test_by_hand():
    # offset 0: columns 10 to 20 lie in [10, 20], 11 of them; the centre is 15, the border 1 - 5/10
    p = one([10, 10, 20, 20], pixel_offset=0.0)
    assert (p > 0).sum() == 121 and p[15, 15] == 1.0 and p[10, 12] == 0.5 and p[9, 15] == 0
    # offset 0.5: points 10.5 to 19.5, 10 of them; the nearest to 15 have 1 - 0.5/10, the furthest 1 - 4.5/10
    p = one([10, 10, 20, 20])
    assert (p > 0).sum() == 100
    torch.testing.assert_close([p.max().item(), p[p > 0].min().item()], [0.95, 0.55], rtol=0, atol=1e-6)
    # w = 8, h = 4, centre (4, 2): at (2.5, 0.5) the larger of 1.5/8 and 1.5/4 counts
    assert one([0, 0, 8, 4])[0, 2] == 1 - 1.5 / 4


def test_overlap_is_the_maximum_and_order_does_not_matter(device):
    boxes, classes, more = make_inputs(device, counts=(9,))
    classes = [c % 2 for c in classes]
    options = {"num_classes": 2, "intensities": more["intensities"]}
    maps, _ = render_label_maps(boxes, classes, (45, 70), **options)
    order = torch.arange(8, -1, -1, device=device)
    turned = {"num_classes": 2, "intensities": [more["intensities"][0][order]]}
    assert torch.equal(maps, render_label_maps([boxes[0][order]], [classes[0][order]], (45, 70), **turned)[0])
    for c in range(2):
        each = [
            dense_label_maps([b[None]], [k[None]], (45, 70), num_classes=2, intensities=[m[None]])[0, c]
            for b, k, m in zip(boxes[0], classes[0], more["intensities"][0])
        ]
        assert torch.equal(maps[0, c], torch.stack(each).amax(dim=0))


def test_a_weak_factor_loses_the_overlap():
    # the inner box has 1.0 at (8, 8) but a factor of 0.25; the outer has 1 - 8/32 = 0.75 there, offset 0
    boxes = [torch.tensor([[0.0, 0.0, 32.0, 32.0], [6.0, 6.0, 10.0, 10.0]])]
    classes, factors = [torch.zeros(2, dtype=torch.int64)], [torch.tensor([1.0, 0.25])]
    maps, _ = render_label_maps(boxes, classes, (32, 32), num_classes=1, intensities=factors, pixel_offset=0.0)
    assert maps[0, 0, 8, 8] == 0.75


def test_range_of_values(device):
    boxes, classes, more = make_inputs(device)
    maps, _ = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES)
    assert ((maps == 0) | ((maps >= 0.5) & (maps <= 1))).all() and maps.any()
    masked, _ = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, masks=more["masks"])
    assert (masked <= maps).all() and (masked < maps).any()
    full = [torch.ones_like(m) for m in more["masks"]]
    assert torch.equal(render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, masks=full)[0], maps)
    zero = [torch.zeros_like(m) for m in more["intensities"]]
    assert not render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, intensities=zero)[0].any()


@pytest.mark.parametrize(
    "box",
    [
        [5, 5, 5, 9],  # no width
        [5, 5, 9, 5],  # no height
        [9, 5, 5, 9],  # turned
        [40, 3, 50, 9],  # right of the canvas
        [-9, -9, -1, -1],
        [3.6, 3.6, 4.4, 4.4],  # between the points 3.5 and 4.5
        [3e38, 0, 3.3e38, 9],
    ],
)
def test_boxes_that_render_nothing(box):
    assert not one(box).any()


def test_boxes_over_the_canvas():
    p = one([-100, -100, 132, 132])  # centre (16, 16)
    assert (p > 0.5).all() and p[15, 15] == p.max()
    huge = one([-3e38, -3e38, 3e38, 3e38])  # the width overflows: every distance is 0
    assert (huge == 1).all()
    for box in ([1e9, 0, 1e9 + 64, 32], [-2e7, 3, 2e7 + 31, 9]):  # centres rounded by whole pixels
        expected = dense_label_maps([torch.tensor([box])], [torch.tensor([0])], (32, 32), num_classes=1)[0, 0]
        assert torch.equal(one(box), expected)


def test_images_are_independent(device):
    boxes, classes, more = make_inputs(device)
    maps, present = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, **more)
    order = [2, 0, 1]
    turned = {k: [v[i] for i in order] for k, v in more.items()}
    again, same = render_label_maps(
        [boxes[i] for i in order], [classes[i] for i in order], (45, 70), num_classes=CLASSES, **turned
    )
    assert torch.equal(maps[order], again) and torch.equal(present, same)
    # a larger batch canvas only adds zeros, below and to the right
    inside = [b.clamp(max=40) for b in boxes]
    small, _ = render_label_maps(inside, classes, (45, 70), num_classes=CLASSES)
    large, _ = render_label_maps(inside, classes, (64, 96), num_classes=CLASSES)
    assert torch.equal(large[..., :45, :70], small)
    assert not large[..., 45:, :].any() and not large[..., 70:].any()


def test_flipped_boxes_give_the_flipped_map(device):
    boxes, classes, _ = make_inputs(device, whole=True)
    flipped = [torch.stack([70 - b[:, 2], b[:, 1], 70 - b[:, 0], b[:, 3]], dim=1) for b in boxes]
    maps, _ = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES)
    assert torch.equal(render_label_maps(flipped, classes, (45, 70), num_classes=CLASSES)[0], maps.flip(-1))


def test_no_objects(device):
    """One channel, of class 0: a stem weight gathered by `present` keeps a gradient."""
    boxes, classes, _ = make_inputs(device, counts=(0, 0))
    maps, present = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES)
    assert present.tolist() == [0] and maps.shape == (2, 1, 45, 70) and not maps.any()
    assert render_label_maps(boxes, classes, (0, 70), num_classes=CLASSES)[0].shape == (2, 1, 0, 70)
    weight = torch.ones(4, CLASSES, 1, 1, device=device, requires_grad=True)
    torch.nn.functional.conv2d(maps, weight[:, present]).sum().backward()
    assert weight.grad.shape == weight.shape


def test_no_gradient(device):
    boxes, classes, more = make_inputs(device)
    boxes = [b.requires_grad_() for b in boxes]
    maps, _ = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, **more)
    assert not maps.requires_grad


def test_half_and_double_boxes_and_strides(device):
    boxes, classes, more = make_inputs(device)
    expected, _ = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, **more)
    turned = [b.T.contiguous().T for b in boxes]
    masks = [m.transpose(1, 2).contiguous().transpose(1, 2) for m in more["masks"]]
    spread = [m[:, None].expand(-1, 2)[:, 0] for m in more["intensities"]]
    got, _ = render_label_maps(turned, classes, (45, 70), num_classes=CLASSES, masks=masks, intensities=spread)
    assert torch.equal(got, expected)
    for dtype in (torch.float64, torch.bfloat16):  # computed in float32 whatever their dtype
        cast = [b.to(dtype) for b in boxes]
        with torch.autocast(device, dtype=torch.bfloat16):
            maps, _ = render_label_maps(cast, classes, (45, 70), num_classes=CLASSES)
        assert maps.dtype == torch.float32
        assert torch.equal(maps, dense_label_maps(cast, classes, (45, 70), num_classes=CLASSES)[:, _])


def make_flat(device):
    boxes = torch.tensor([[3.0, 4, 30, 20], [10, 2, 60, 40]], device=device)
    slots, factors = torch.tensor([1, 0], device=device), torch.tensor([1.0, 0.5], device=device)
    return boxes, slots, factors, torch.rand(2, 45, 70, device=device) > 0.5


def test_opcheck_and_compile(device):
    boxes, slots, factors, masks = make_flat(device)
    for dtype in (torch.float32, torch.float16):
        for group in ([], list(masks)):
            torch.library.opcheck(OP.default, (boxes, slots, factors, group, 2, 45, 70, 0.5, dtype))
    compiled = torch.compile(OP, backend="aot_eager", fullgraph=True)
    arguments = (boxes, slots, factors, list(masks), 2, 45, 70, 0.5, torch.float32)
    assert torch.equal(compiled(*arguments), OP(*arguments))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_bits_again_and_with_two_threads(device, dtype):
    boxes, classes, more = make_inputs(device, size=(200, 330))
    first, _ = render_label_maps(boxes, classes, (200, 330), num_classes=CLASSES, dtype=dtype, **more)
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            again, _ = render_label_maps(boxes, classes, (200, 330), num_classes=CLASSES, dtype=dtype, **more)
            assert torch.equal(first, again)
    finally:
        torch.set_num_threads(threads)


def test_reference_on_request(device, monkeypatch):
    boxes, classes, more = make_inputs(device)
    expected, present = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, **more)
    monkeypatch.setenv("SHARED_OPS", "reference")
    maps, same = render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, **more)
    assert torch.equal(maps, expected) and torch.equal(same, present)


B, C, M = torch.tensor([[3.0, 4, 30, 20]]), torch.tensor([1]), torch.ones(1, 45, 70, dtype=torch.bool)
ERRORS = [
    ([], [], {}, ValueError, "boxes is an empty list; expected one tensor an image"),
    ([B[:, :3]], [C], {}, ValueError, r"boxes\[0\] has shape \(1, 3\); expected \(1, 4\)"),
    ([B.long()], [C], {}, TypeError, r"boxes\[0\] has dtype torch.int64; expected float32, float64"),
    ([B, B], [C], {}, ValueError, "classes has 1 tensors and boxes 2; expected one an image"),
    ([B], [C[:0]], {}, ValueError, r"classes\[0\] has shape \(0,\); expected \(1,\)"),
    ([B], [C.float()], {}, TypeError, r"classes\[0\] has dtype torch.float32; expected int64"),
    ([B], [C + 6], {}, ValueError, r"classes holds 7; expected 0 to 6 \(num_classes\)"),
    ([B], [C - 2], {}, ValueError, r"classes holds -1; expected 0 to 6 \(num_classes\)"),
    ([B, B.to("meta")], [C, C], {}, ValueError, r"boxes\[1\] is on meta and boxes\[0\] on cpu"),
    ([B], [C], {"intensities": [B[0]]}, ValueError, r"intensities\[0\] has shape \(4,\); expected \(1,\)"),
    ([B], [C], {"masks": [M[:, 1:]]}, ValueError, r"masks\[0\] has shape \(1, 44, 70\); expected \(1, 45, 70\)"),
    ([B], [C], {"masks": [M.int()]}, TypeError, r"masks\[0\] has dtype torch.int32; expected bool"),
    ([B], [C], {"dtype": torch.int32}, TypeError, "dtype is Int; expected float32"),
    ([B * math.nan], [C], {}, ValueError, r"boxes of shape \[1, 4\] holds NaN or infinite"),
    ([B], [C], {"intensities": [B[:, 0] / 0]}, ValueError, r"intensities of shape \[1\] holds NaN or infinite"),
]


@pytest.mark.parametrize("boxes, classes, options, kind, match", ERRORS)
def test_bad_input(boxes, classes, options, kind, match):
    with pytest.raises(kind, match="render_label_maps: " + match):
        render_label_maps(boxes, classes, (45, 70), num_classes=CLASSES, **options)


FLAT_ERRORS = [
    ({0: torch.zeros(2, 3)}, ValueError, r"boxes has shape \[2, 3\]; expected \(T, 4\)"),
    ({1: torch.zeros(3, dtype=torch.int64)}, ValueError, r"slots has shape \[3\]; expected \(2,\)"),
    ({2: torch.zeros(1)}, ValueError, r"intensities has shape \[1\]; expected \(2,\)"),
    ({1: torch.zeros(2)}, TypeError, "slots has dtype Float; expected int64"),
    (
        {0: torch.zeros(2, 4, dtype=torch.float64)},
        TypeError,
        "boxes has dtype Double; expected Float for maps of Float",
    ),
    ({2: torch.zeros(2, dtype=torch.float64)}, TypeError, "intensities has dtype Double and boxes has Float"),
    ({1: torch.tensor([0, 2])}, ValueError, "slots holds 2; expected 0 to 1"),
    ({3: [M[0]]}, ValueError, "masks has 1 tensors; expected 2"),
    ({3: [M[0], M[0, 1:]]}, ValueError, r"masks has a mask of shape \[44, 70\]; expected \(45, 70\)"),
    ({3: [M[0], M[0].int()]}, TypeError, "masks has dtype Int; expected bool"),
    ({5: -1}, ValueError, r"size is 2 planes of \(-1, 70\); expected none below 0"),
]


@pytest.mark.parametrize("change, kind, match", FLAT_ERRORS)
def test_bad_input_of_the_op(change, kind, match):
    boxes, slots, factors, _ = make_flat("cpu")
    arguments = dict(enumerate([boxes, slots, factors, [], 2, 45, 70, 0.5, torch.float32])) | change
    with pytest.raises(kind, match="render_label_maps: " + match):
        OP(*arguments.values())


def test_two_devices_of_the_op(device):
    if device == "cpu":
        pytest.skip("needs a second device")
    boxes, slots, factors, _ = make_flat(device)
    with pytest.raises(ValueError, match="intensities is on cpu and boxes on cuda:0; they must be on one device"):
        OP(boxes, slots, factors.cpu(), [], 2, 45, 70, 0.5, torch.float32)
