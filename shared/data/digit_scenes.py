"""The pictures of the digits data set: handwritten digits stuck onto photographs.

A sticker is a digit (the ink) on a card cut out around it, like a die-cut sticker: the card keeps
the strokes readable on any photograph and gives the instance a closed silhouette. A scene is a
photograph with stickers; later ones hide earlier ones. All functions are pure: randomness comes
from the `np.random.Generator` passed in, images are (H, W, 3) uint8 RGB, masks (H, W) bool.
"""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageFilter

from shared.errors import UserError

# Range of a sticker's area in pixels before occlusion, inside COCO's small < 32^2 <= medium
# < 96^2 <= large with a margin for rounding.
SCALES = {"small": (260, 950), "medium": (1150, 8600), "large": (9600, 15000)}
MIN_VISIBLE = 0.4  # a sticker that shows less than this share of itself is not pasted at all
CELL = 12  # canonical pixels per cell of the 8 x 8 digits
MARGIN = 3  # cells of room around them for rotation and card
TRAIN_COLUMNS = 0.66  # train sees the photographs' left part, val the right, none sees both
VAL_EVERY = 5  # digit sample i belongs to val if i % 5 == 4, else to train


@dataclass(frozen=True)
class Sources:
    """What scenes are made of: glyphs (N, 8, 8) in [0, 16], their labels (N,), photographs."""

    glyphs: np.ndarray
    labels: np.ndarray
    photos: tuple[np.ndarray, ...]


@dataclass
class Sticker:
    """A pasted digit. ink, card: (h, w) opacity in [0, 1]; x, y: its left upper pixel."""

    label: int
    ink: np.ndarray
    card: np.ndarray
    x: int = 0
    y: int = 0

    @property
    def mask(self) -> np.ndarray:
        return self.card >= 0.5

    @property
    def window(self) -> tuple[slice, slice]:
        h, w = self.card.shape
        return slice(self.y, self.y + h), slice(self.x, self.x + w)


@cache
def load_sources(split: str) -> Sources:
    """The digits and photo regions of "train" or "val"; the two have no pixel in common."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ImportError as e:
        raise UserError("The digits data set is made from scikit-learn's samples: pip install scikit-learn.") from e
    digits = load_digits()
    in_val = np.arange(len(digits.target)) % VAL_EVERY == VAL_EVERY - 1
    chosen = in_val if split == "val" else ~in_val
    photos = []
    for photo in load_sample_images().images:
        edge = int(photo.shape[1] * TRAIN_COLUMNS)
        photos.append(photo[:, edge:] if split == "val" else photo[:, :edge])
    return Sources(digits.images[chosen], digits.target[chosen], tuple(photos))


def background(photos: tuple[np.ndarray, ...], size: tuple[int, int], rng) -> np.ndarray:
    """A random crop of a photograph, perhaps mirrored, at random scale and light. size: (w, h)."""
    photo = photos[rng.integers(len(photos))]
    w, h = size
    zoom = min(photo.shape[1] / w, photo.shape[0] / h) * rng.uniform(0.4, 1.0)
    crop_w, crop_h = int(w * zoom), int(h * zoom)
    x = rng.integers(photo.shape[1] - crop_w + 1)
    y = rng.integers(photo.shape[0] - crop_h + 1)
    crop = photo[y : y + crop_h, x : x + crop_w]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    image = np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BICUBIC), np.float64)
    gain, offset = rng.uniform(0.6, 1.2), rng.uniform(-20, 40)
    return np.clip(image * gain + offset, 0, 255).astype(np.uint8)


def render_digit(glyph: np.ndarray, label: int, area: float, limit: int, rng) -> Sticker:
    """Draw a digit slightly turned and slanted, with `area` pixels of card.

    limit: the longest side allowed, in pixels; a sticker that would be longer is made smaller.
    """
    cells = glyph.shape[0] + 2 * MARGIN
    canvas = np.pad(glyph * (255 / 16), MARGIN).astype(np.uint8)
    turn, slant = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(-0.15, 0.15)
    step = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) / CELL
    step = step @ np.array([[1, slant], [0, 1]])
    shift = cells / 2 - step @ np.full(2, cells * CELL / 2)
    affine = [*step[0], shift[0], *step[1], shift[1]]  # output pixel -> input cell
    side = (cells * CELL,) * 2
    image = Image.fromarray(canvas).transform(side, Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    level = rng.uniform(95, 145)  # a low level makes fat strokes
    ink = image.point(lambda v: int(min(max((v - level) * 4 + 128, 0), 255)))
    card = _fill_holes(np.asarray(ink.filter(ImageFilter.GaussianBlur(rng.uniform(6, 9)))) > 16)
    scale = min(np.sqrt(area / card.sum()), limit / max(np.ptp(np.nonzero(card), axis=1) + 1))
    box = _extent(card)
    shape = [max(1, round(n * scale)) for n in (box[1].stop - box[1].start, box[0].stop - box[0].start)]
    ink, card = (
        np.asarray(Image.fromarray(a[box]).resize(shape, Image.Resampling.BICUBIC)) / 255.0
        for a in (np.asarray(ink), card.astype(np.uint8) * 255)
    )
    return Sticker(label, ink, card)


def _fill_holes(mask: np.ndarray) -> np.ndarray:
    """The largest component of a mask, without its holes."""
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(mask.shape, np.uint8)
    cv2.drawContours(filled, [max(outlines, key=cv2.contourArea)], 0, 1, cv2.FILLED)
    return filled.astype(bool)


def _extent(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that a non-empty mask occupies."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def layout(sources: Sources, size: tuple[int, int], rng) -> list[Sticker]:
    """Stickers from back to front: up to one large, one to three medium, one to four small."""
    scales = ["large"] * (rng.random() < 0.85)
    scales += ["medium"] * rng.integers(1, 4) + ["small"] * rng.integers(1, 5)
    areas = [np.exp(rng.uniform(*np.log(SCALES[s]))) for s in scales]
    depth = np.log(areas) + rng.normal(0, 1.0, len(areas))  # mostly, not always, large ones first
    taken = np.zeros(size[::-1], bool)
    stickers = []
    for i in np.argsort(-depth):
        k = rng.integers(len(sources.labels))
        limit = int(min(size) * 0.95)
        sticker = render_digit(sources.glyphs[k], int(sources.labels[k]), areas[i], limit, rng)
        _place(sticker, taken, rng)
        taken[sticker.window] |= sticker.mask
        stickers.append(sticker)
    return stickers


def _place(sticker: Sticker, taken: np.ndarray, rng, tries: int = 3) -> None:
    """Move a sticker to the place, out of a few random ones, where it overlaps others least."""
    h, w = sticker.card.shape
    places, overlaps = [], []
    for _ in range(tries):
        sticker.x = int(rng.integers(taken.shape[1] - w + 1))
        sticker.y = int(rng.integers(taken.shape[0] - h + 1))
        places.append((sticker.x, sticker.y))
        overlaps.append((taken[sticker.window] & sticker.mask).sum())
    sticker.x, sticker.y = places[int(np.argmin(overlaps))]


def visible_masks(stickers: list[Sticker], size: tuple[int, int]) -> list[np.ndarray | None]:
    """What shows of each sticker, (H, W); None for one too hidden to be pasted (`MIN_VISIBLE`).

    Decided from front to back, so that a sticker left out hides nothing either.
    """
    covered = np.zeros(size[::-1], bool)
    masks: list[np.ndarray | None] = []
    for sticker in reversed(stickers):
        full = np.zeros(size[::-1], bool)
        full[sticker.window] = sticker.mask
        shown = full & ~covered
        if shown.sum() < MIN_VISIBLE * full.sum():
            masks.append(None)
            continue
        covered |= full
        masks.append(shown)
    return masks[::-1]


def paste(image: np.ndarray, sticker: Sticker, rng) -> None:
    """Paint a sticker into the image: random colours of clearly different lightness, shaded."""
    ink_light = rng.uniform(10, 80)
    card_light = ink_light + rng.uniform(90, 165)
    if rng.random() < 0.5:
        ink_light, card_light = 255 - ink_light, 255 - card_light
    ink, card = (_colour(light, rng) for light in (ink_light, card_light))
    h, w = sticker.card.shape
    slope = rng.uniform(-0.15, 0.15, 2)
    shade = 1 + slope[0] * np.linspace(-1, 1, h)[:, None] + slope[1] * np.linspace(-1, 1, w)
    on_card = card + (ink - card) * sticker.ink[..., None]
    on_card = on_card * shade[..., None] + rng.normal(0, 4, (h, w, 1))
    under = image[sticker.window].astype(np.float64)
    mixed = under + (on_card - under) * sticker.card[..., None]
    image[sticker.window] = np.clip(mixed, 0, 255).astype(np.uint8)


def _colour(light: float, rng) -> np.ndarray:
    """A random RGB colour whose lightness (ITU-R 601 luma) is `light`."""
    tint = rng.uniform(-70, 70, 3)
    return light + tint - tint @ (0.299, 0.587, 0.114)


def make_scene(sources: Sources, size: tuple[int, int], rng):
    """One picture: the image, and (label, visible mask, hidden share) per sticker from the back."""
    image = background(sources.photos, size, rng)
    stickers = layout(sources, size, rng)
    objects = []
    for sticker, shown in zip(stickers, visible_masks(stickers, size)):
        if shown is not None:
            paste(image, sticker, rng)
            objects.append((sticker.label, shown, 1 - shown.sum() / sticker.mask.sum()))
    return image, objects


def mask_to_polygons(mask: np.ndarray) -> list[list[int]]:
    """Polygons [x0, y0, x1, y1, ...] along the pixels' edges: rasterised, they give the mask back.

    COCO's polygons are united and cannot spare a hole, so a mask with one is cut through it.
    """
    if not mask.any():
        return []
    rows, columns = _extent(mask)
    # Of a pixel's 3 x 3 copies the outer ones lie near its edges: corner = round(p / 3)
    fine = np.kron(mask[rows, columns], np.ones((3, 3), np.uint8)).astype(np.uint8)
    outlines, tree = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    holes = [o for o, node in zip(outlines, tree[0]) if node[3] >= 0]
    if holes:
        x = np.rint(holes[0][:, 0, 0] / 3)  # columns x.min() ... x.max() - 1 are the hole's
        cut = columns.start + int(x.min() + x.max()) // 2
        left, right = mask.copy(), mask.copy()
        left[:, cut:], right[:, :cut] = False, False
        return mask_to_polygons(left) + mask_to_polygons(right)
    polygons = []
    for outline in outlines:
        corners = np.rint(outline[:, 0] / 3).astype(int) + (columns.start, rows.start)
        keep = (corners != np.roll(corners, 1, axis=0)).any(1)
        polygons.append(corners[keep].ravel().tolist())
    return polygons
