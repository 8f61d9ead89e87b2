"""Augmentations and transforms; the seeded draws are recorded from Detectron2."""

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import detectron2.data.transforms as T

H, W = 480, 640
IMAGE = np.zeros((H, W, 3), np.uint8)


def draw(aug, image=IMAGE, seed=7, n=3):
    np.random.seed(seed)
    return [aug.get_transform(image) for _ in range(n)]


def gradient(h=6, w=8, c=3, dtype=np.uint8):
    return (np.random.RandomState(0).rand(h, w, c) * 255).astype(dtype)


# ------------------------------------------------------------------------------- seeded draws
@pytest.mark.parametrize("wrap", [tuple, lambda v: OmegaConf.create(list(v))])
def test_resize_shortest_edge_draws(wrap):
    choice = T.ResizeShortestEdge(wrap((640, 672, 704, 736, 768, 800)), 1333, "choice")
    assert [(t.new_h, t.new_w) for t in draw(choice)] == [(768, 1024), (672, 896), (736, 981)]
    between = T.ResizeShortestEdge(wrap((640, 800)), 1333, "range")
    assert [(t.new_h, t.new_w) for t in draw(between)] == [(665, 887), (707, 943), (791, 1055)]


def test_resize_shortest_edge_range_includes_both_ends():
    assert {t.new_h for t in draw(T.ResizeShortestEdge((3, 4)), n=20)} == {3, 4}


def test_flip_draws():
    flips = draw(T.RandomFlip())
    assert [type(t) for t in flips] == [T.HFlipTransform, T.NoOpTransform, T.HFlipTransform]
    vertical = draw(T.RandomFlip(1.0, horizontal=False, vertical=True), n=1)[0]
    assert isinstance(vertical, T.VFlipTransform) and vertical.height == H
    assert draw(T.RandomFlip(1.0), n=1)[0].width == W
    assert all(isinstance(t, T.NoOpTransform) for t in draw(T.RandomFlip(0.0)))


@pytest.mark.parametrize("wrap", [list, OmegaConf.create])
def test_crop_draws(wrap):
    crops = draw(T.RandomCrop("relative_range", wrap([0.5, 0.5])))
    assert [(t.x0, t.y0, t.w, t.h) for t in crops] == [(23, 67, 570, 258), (72, 23, 419, 349), (167, 136, 454, 261)]


def test_relative_range_is_float32(monkeypatch):
    # 5 * 0.9 + 0.5 = 5, but float32's 0.9 is 0.89999998
    monkeypatch.setattr(np.random, "rand", np.zeros)
    assert T.RandomCrop("relative_range", (0.9, 0.9)).get_crop_size((5, 5)) == (4, 4)


def test_resize_scale_draws():
    scales = draw(T.ResizeScale(0.1, 2.0, 512, 512))
    assert [(t.new_h, t.new_w) for t in scales] == [(94, 125), (607, 810), (358, 478)]


def test_fixed_size_crop_draws():
    crops = [t.transforms[0] for t in draw(T.FixedSizeCrop((300, 300)))]
    assert [(c.x0, c.y0) for c in crops] == [(26, 14), (265, 140), (149, 79)]


# ---------------------------------------------------------------------------------- geometry
@pytest.mark.parametrize(
    "old,size,limit,new",
    [
        ((427, 640), 800, 1333, (800, 1199)),
        ((640, 427), 800, 1333, (1199, 800)),
        ((333, 1000), 800, 1333, (444, 1333)),  # 800/333 * 1000 = 2402 > 1333: scale 1.333
        ((100, 100), 50, 20, (20, 20)),
    ],
)
def test_shortest_edge_output_shape(old, size, limit, new):
    assert T.ResizeShortestEdge.get_output_shape(*old, size, limit) == new


def test_resize_shortest_edge_of_zero_is_no_op():
    assert isinstance(draw(T.ResizeShortestEdge(0), n=1)[0], T.NoOpTransform)


def test_resize_to_a_fixed_size():
    for shape, new in ((5, (5, 5)), ((4, 7), (4, 7)), (OmegaConf.create([4, 7]), (4, 7))):
        t = draw(T.Resize(shape), n=1)[0]
        assert (t.h, t.w, t.new_h, t.new_w) == (H, W, *new)


def test_crop_types():
    image = np.zeros((40, 50, 3), np.uint8)
    sizes = {(t.h, t.w) for t in draw(T.RandomCrop("absolute_range", (38, 45)), image, n=60)}
    assert {h for h, _ in sizes} == {38, 39, 40}  # the height limits, as 45 > 40
    assert {w for _, w in sizes} == set(range(38, 46))
    t = draw(T.RandomCrop("absolute", (90, 20)), image, n=1)[0]
    assert (t.h, t.w, t.y0) == (40, 20, 0)
    t = draw(T.RandomCrop("relative", (0.5, 0.33)), image, n=1)[0]
    assert (t.h, t.w) == (20, 17)  # 50 * 0.33 = 16.5 is rounded up
    offsets = {t.x0 for t in draw(T.RandomCrop("absolute", (40, 48)), image, n=30)}
    assert offsets == {0, 1, 2}


def test_fixed_size_crop_crops_and_pads():
    image = gradient(10, 4)
    (tfm,) = draw(T.FixedSizeCrop((6, 7), pad_value=9.0), image, n=1)
    crop, pad = tfm.transforms
    assert (crop.x0, crop.w, crop.h) == (0, 7, 6) and 0 <= crop.y0 <= 4
    out = tfm.apply_image(image)
    assert out.shape == (6, 7, 3)
    np.testing.assert_array_equal(out[:, :4], image[crop.y0 : crop.y0 + 6])
    assert (out[:, 4:] == 9).all()
    seg = tfm.apply_segmentation(np.zeros((10, 4), np.uint8))
    assert (seg[:, 4:] == 255).all() and (seg[:, :4] == 0).all()
    (tfm,) = draw(T.FixedSizeCrop((6, 7), pad=False), image, n=1)
    assert tfm.apply_image(image).shape == (6, 4, 3)


# ----------------------------------------------------------------------------- ResizeTransform
@pytest.mark.parametrize("interp", [Image.NEAREST, Image.BILINEAR, Image.BICUBIC])
def test_resize_uint8_is_pillows(interp):
    image = gradient()
    expected = np.asarray(Image.fromarray(image).resize((5, 9), interp))
    t = T.ResizeTransform(6, 8, 9, 5, interp)
    np.testing.assert_array_equal(t.apply_image(image), expected)
    # a BGR view of RGB, mirrored, and one channel with and without its axis
    np.testing.assert_array_equal(t.apply_image(image[:, :, ::-1]), expected[:, :, ::-1])
    mirrored = np.asarray(Image.fromarray(image[:, ::-1].copy()).resize((5, 9), interp))
    np.testing.assert_array_equal(t.apply_image(image[:, ::-1]), mirrored)
    one = np.asarray(Image.fromarray(image[:, :, 0].copy(), "L").resize((5, 9), interp))
    np.testing.assert_array_equal(t.apply_image(image[:, :, 0]), one)
    np.testing.assert_array_equal(t.apply_image(image[:, :, :1]), one[:, :, None])


def test_resize_default_is_bilinear():
    assert T.ResizeTransform(6, 8, 9, 5).interp == Image.BILINEAR


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_resize_float_is_torchs(dtype):
    image = gradient(dtype=dtype)
    chw = torch.from_numpy(image).permute(2, 0, 1)[None]
    kwargs = {"mode": "bilinear", "align_corners": False}
    expected = torch.nn.functional.interpolate(chw, (9, 5), **kwargs)[0].permute(1, 2, 0)
    t = T.ResizeTransform(6, 8, 9, 5)
    out = t.apply_image(image)
    assert out.dtype == dtype
    np.testing.assert_allclose(out, expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(t.apply_image(image[:, :, 1]), expected[:, :, 1], rtol=1e-6)
    backwards = t.apply_image(image[:, ::-1])
    assert backwards.shape == (9, 5, 3)


def test_resize_segmentation_is_nearest():
    # 2 x 2 to 4 x 4: each cell is repeated, no class is mixed
    seg = np.array([[0, 200], [100, 255]], np.uint8)
    out = T.ResizeTransform(2, 2, 4, 4).apply_segmentation(seg)
    np.testing.assert_array_equal(out, seg.repeat(2, 0).repeat(2, 1))


def test_resize_refuses_other_sizes():
    with pytest.raises(AssertionError):
        T.ResizeTransform(6, 8, 9, 5).apply_image(np.zeros((8, 6, 3), np.uint8))


def test_resize_coords_in_place_and_inverse():
    t = T.ResizeTransform(10, 20, 15, 60)
    coords = np.array([[1.0, 2.0], [20.0, 10.0]])
    out = t.apply_coords(coords)
    assert out is coords
    np.testing.assert_allclose(coords, [[3, 3], [60, 15]])  # x * 60/20, y * 15/10
    np.testing.assert_allclose(t.inverse().apply_coords(coords), [[1, 2], [20, 10]])
    assert t.inverse().apply_image(np.zeros((15, 60), np.uint8)).shape == (10, 20)


@pytest.mark.parametrize(
    "aug",
    [
        T.RandomFlip(1.0),
        T.RandomFlip(1.0, horizontal=False, vertical=True),
        T.ResizeShortestEdge((20, 30)),
        T.ResizeScale(0.5, 2.0, 40, 30),
        T.Resize((13, 17)),
    ],
    ids=str,
)
def test_pixels_and_coordinates_agree_and_return(aug):
    """A bright block's box follows the block; the inverse brings it back."""
    image = np.zeros((40, 60, 3), np.uint8)
    image[8:20, 10:40] = 255
    box = np.array([[10.0, 8.0, 40.0, 20.0]])
    (t,) = draw(aug, image, n=1)
    out, moved = t.apply_image(image), t.apply_box(box)
    rows, columns = np.nonzero(out[:, :, 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(moved[0], found, atol=1.0)
    assert np.abs(moved - box).max() > 1
    np.testing.assert_allclose(t.inverse().apply_box(moved), box, atol=1e-9)


# ---------------------------------------------------------------------------- the interface
def test_augmentation_arguments_by_name():
    class NeedsBoxes(T.Augmentation):
        def get_transform(self, image, boxes):
            self.seen = (image.shape, boxes.tolist())
            return T.HFlipTransform(image.shape[1])

    class AnyName(T.Augmentation):
        def get_transform(self, img):
            self.seen = img.shape
            return T.NoOpTransform()

    aug, boxes = NeedsBoxes(), np.array([[0.0, 0, 2, 2]])
    inp = T.AugInput(gradient(4, 5), boxes=boxes.copy(), sem_seg=np.arange(20).reshape(4, 5))
    flip = aug(inp)
    assert aug.seen == ((4, 5, 3), [[0, 0, 2, 2]]) and isinstance(flip, T.HFlipTransform)
    assert inp.boxes.tolist() == [[3, 0, 5, 2]]
    np.testing.assert_array_equal(inp.image, gradient(4, 5)[:, ::-1])
    assert inp.sem_seg[0].tolist() == [4, 3, 2, 1, 0]
    any_name = AnyName()
    any_name(inp)  # a single parameter is the image
    assert any_name.seen == (4, 5, 3)


def test_missing_attribute_is_named():
    class NeedsDepth(T.Augmentation):
        def get_transform(self, image, depth):
            return T.NoOpTransform()

    with pytest.raises(AttributeError, match="depth"):
        NeedsDepth()(T.AugInput(IMAGE))


def test_list_applies_in_turn():
    # cropping sees the resized image: 480x640 -> 60x80 -> 30x40
    augs = [T.ResizeShortestEdge(60), T.RandomCrop("relative", (0.5, 0.5)), T.HFlipTransform(40)]
    image, tfms = T.apply_augmentations(augs, IMAGE)
    assert image.shape == (30, 40, 3) and isinstance(tfms, T.TransformList)
    resize, crop, flip = tfms.transforms
    assert isinstance(flip, T.HFlipTransform)
    x = tfms.apply_coords(np.array([[0.0, 0.0]]))
    np.testing.assert_allclose(x, [[40 + crop.x0, -crop.y0]])
    inp = T.AugInput(IMAGE)
    same, tfms = T.apply_augmentations([T.Resize(3)], inp)
    assert same is inp and inp.image.shape == (3, 3, 3)
    assert inp.apply_augmentations([T.NoOpTransform()]).transforms[0].__class__ is T.NoOpTransform


def test_rand_range():
    aug = T.RandomFlip()
    np.random.seed(7)
    values = [aug._rand_range(), aug._rand_range(4), aug._rand_range(2, 3), *aug._rand_range(size=2)]
    np.random.seed(7)
    u = np.random.rand(5)
    np.testing.assert_allclose(values, [u[0], 4 * u[1], 2 + u[2], u[3], u[4]])


@pytest.mark.parametrize(
    "aug,text",
    [
        (T.RandomFlip(), "RandomFlip()"),
        (T.RandomFlip(prob=0.3), "RandomFlip(prob=0.3)"),
        (T.RandomFlip(prob=float("0.5")), "RandomFlip(prob=0.5)"),  # equal, but not the default itself
        (T.ResizeShortestEdge(800), "ResizeShortestEdge(short_edge_length=(800, 800))"),
        (
            T.ResizeShortestEdge((1, 2), 3, "choice"),
            "ResizeShortestEdge(short_edge_length=(1, 2), max_size=3, sample_style='choice')",
        ),
        (T.RandomCrop("absolute", (1, 2)), "RandomCrop(crop_type='absolute', crop_size=(1, 2))"),
        (T.FixedSizeCrop((3, 4)), "FixedSizeCrop(crop_size=(3, 4))"),
        (
            T.AugmentationList([T.RandomFlip(0.1), T.NoOpTransform()]),
            "AugmentationList[RandomFlip(prob=0.1), NoOpTransform()]",
        ),
    ],
)
def test_repr(aug, text):
    assert repr(aug) == text


def test_aliases_and_fvcores_names():
    assert T.TransformGen is T.Augmentation and T.apply_transform_gens is T.apply_augmentations
    assert issubclass(T.StandardAugInput, T.AugInput)
    for name in "Transform TransformList BlendTransform PadTransform GridSampleTransform".split():
        assert hasattr(T, name)


@pytest.mark.parametrize(
    "make,error",
    [
        (lambda: T.RandomFlip(horizontal=True, vertical=True), ValueError),
        (lambda: T.RandomFlip(horizontal=False), ValueError),
        (lambda: T.ResizeShortestEdge((1, 2, 3)), AssertionError),
        (lambda: T.ResizeShortestEdge(3, sample_style="x"), AssertionError),
        (lambda: T.RandomCrop("x", (1, 2)), AssertionError),
        (lambda: T.AugInput([1]), AssertionError),
        (lambda: T.AugInput(np.zeros((1, 2, 3, 4), np.uint8)), AssertionError),
        (lambda: draw(T.RandomCrop("absolute_range", (5, 3))), AssertionError),
        (lambda: draw(T.RandomCrop("relative", (1.5, 0.5))), AssertionError),
    ],
)
def test_wrong_arguments(make, error):
    with pytest.raises(error):
        make()
