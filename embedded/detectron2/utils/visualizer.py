"""Draws boxes, masks and labels on an image. Coordinates are pixels of the unscaled image."""

import colorsys
import math
from collections.abc import Mapping, Sequence
from enum import Enum, unique
from functools import cached_property
from typing import Any

import cv2
import matplotlib.colors as mplc
import numpy as np
import pycocotools.mask as mask_util
import torch
from matplotlib import lines, patches
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from detectron2.data import Metadata, MetadataCatalog
from detectron2.structures import BoxMode, Instances, polygons_to_bitmask

from .colormap import random_color

Floats = Sequence[float]
Color = str | Floats  # a matplotlib name, or RGB in [0, 1]


@unique
class ColorMode(Enum):
    """How instances get their colours."""

    IMAGE = 0  # at random from the palette
    SEGMENTATION = 1  # near their class's colour in metadata.thing_colors
    IMAGE_BW = 2  # at random, and what no mask covers turns grey


class GenericMask:
    """A mask (H, W) given as an array, an RLE dict or a list of flat polygons, as all of them."""

    def __init__(self, source: np.ndarray | dict | list, height: int, width: int):
        self.height, self.width = height, width
        if isinstance(source, Mapping):
            if isinstance(source["counts"], list):
                source = mask_util.frPyObjects(source, *source["size"])
            source = mask_util.decode(source)
        if isinstance(source, (list, tuple)):
            polygons, self.has_holes = [np.asarray(p).reshape(-1) for p in source], False
        else:
            self.mask = np.asarray(source).astype(bool)
            if self.mask.shape != (height, width):
                shapes = f"shape {self.mask.shape}, not the image's {(height, width)}"
                raise ValueError(f"A mask to draw has {shapes}: resize or paste it first.")
            polygons, self.has_holes = _trace(self.mask)
        self.polygons = [p for p in polygons if len(p) >= 6]  # fewer points have no area

    @cached_property
    def mask(self) -> np.ndarray:
        return polygons_to_bitmask(self.polygons, self.height, self.width)

    def area_of(self, polygon: np.ndarray) -> int:
        """In pixels."""
        return mask_util.area(mask_util.frPyObjects([polygon], self.height, self.width))[0]


def _trace(mask: np.ndarray) -> tuple[list[np.ndarray], bool]:
    """Contours through the pixels' centres, x0, y0, x1, y1, ...; whether one is a hole's."""
    method = cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), *method)
    if hierarchy is None:
        return [], False
    parents = hierarchy.reshape(-1, 4)[:, 3]  # -1: an outer contour
    return [c.reshape(-1) + 0.5 for c in contours], bool((parents >= 0).any())


class VisImage:
    """A matplotlib figure whose only axis is the image, `scale` times its size."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """img: (H, W, 3) RGB."""
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = Figure(frameon=False)
        # + 0.01: older matplotlib rounds down, and side * scale / dpi * dpi may be just below a pixel
        sides = np.array([self.width, self.height]) * scale + 0.01
        self.fig.set_size_inches(*(sides / self.fig.get_dpi()))
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.reset_image(img)

    def reset_image(self, img: np.ndarray) -> None:
        """Another background of the same size; what is drawn stays."""
        self.img = img.astype(np.uint8)
        self.show(self.img)

    def show(self, img: np.ndarray) -> None:
        """Put an image, RGB or RGBA, over the whole axis."""
        extent = (0, self.width, self.height, 0)
        self.ax.imshow(img, extent=extent, interpolation="nearest")

    def save(self, filepath: str) -> None:
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """uint8 RGB (int(H * scale), int(W * scale), 3)."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


class Visualizer:
    """Every draw method draws on `output` and returns it."""

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ):
        """img_rgb: (H, W, 3) in [0, 255]. metadata: for class names and colours."""
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self._instance_mode = instance_mode
        self._side = math.sqrt(self.output.height * self.output.width)
        self._default_font_size = max(self._side // 90, 10 // scale) * font_size_scale

    def get_output(self) -> VisImage:
        return self.output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Any of pred_boxes, scores, pred_classes, pred_masks (n, H, W).

        jittering: in mode SEGMENTATION, vary the colours within a class.
        """
        fields = predictions.to("cpu").get_fields()
        masks, scores = fields.get("pred_masks"), fields.get("scores")
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        if self._instance_mode == ColorMode.IMAGE_BW:
            seen = None if masks is None else _array(masks).any(axis=0)
            self.output.reset_image(self._create_grayscale_image(seen))
        colors, alpha = self._class_colors(classes, jittering)
        return self.overlay_instances(
            boxes=fields.get("pred_boxes"),
            labels=_create_text_labels(classes, scores, self.metadata.get("thing_classes")),
            masks=masks,
            assigned_colors=colors,
            alpha=0.3 if self._instance_mode == ColorMode.IMAGE_BW else alpha,
        )

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """The annotations of a dataset dict (boxes in their bbox_mode)."""
        annos = dic.get("annotations", [])
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
        masks = [a.get("segmentation", []) for a in annos]
        classes = [a["category_id"] for a in annos]
        crowd = [a.get("iscrowd", 0) for a in annos]
        names = self.metadata.get("thing_classes")
        colors, _ = self._class_colors(classes, jittering=True)
        return self.overlay_instances(
            boxes=boxes, labels=_create_text_labels(classes, None, names, crowd), masks=masks, assigned_colors=colors
        )

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        assigned_colors: Sequence[Color] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """n instances, the larger first so that the smaller stay visible.

        boxes: Boxes, or (n, 4) XYXY. masks: BitMasks, PolygonMasks, a tensor (n, H, W), or a list
        of arrays (H, W), RLE dicts or lists of polygons. Empty masks are fine.
        """
        if boxes is not None:
            boxes = np.asarray(_array(boxes), dtype=np.float64).reshape(-1, 4)
        if masks is not None:
            size = self.output.height, self.output.width
            masks = [GenericMask(m, *size) for m in _array(masks)]
        lengths = {len(x) for x in (boxes, masks, labels, assigned_colors) if x is not None}
        if len(lengths) > 1:
            raise ValueError(f"Boxes, masks, labels, colors have different lengths: {lengths}.")
        n = lengths.pop() if lengths else 0
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(n)]

        boxes = [None] * n if boxes is None else boxes
        masks = [None] * n if masks is None else masks

        def area(i: int) -> float:
            if boxes[i] is not None:
                return np.prod(boxes[i][2:] - boxes[i][:2])
            return 0 if masks[i] is None else masks[i].mask.sum()

        for i in sorted(range(n), key=area, reverse=True):
            if boxes[i] is not None:
                self.draw_box(boxes[i], edge_color=assigned_colors[i])
            if masks[i] is not None:
                self._draw_mask(masks[i], assigned_colors[i], alpha=alpha)
            if labels is not None:
                self._draw_label(labels[i], assigned_colors[i], boxes[i], masks[i])
        return self.output

    def draw_text(
        self,
        text: str,
        position: Floats,
        *,
        font_size: float | None = None,
        color: Color = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """position: x, y of the upper edge. rotation: degrees, counterclockwise."""
        rgb = np.maximum(mplc.to_rgb(color), 0.2)
        rgb[rgb.argmax()] = max(rgb.max(), 0.8)  # readable on the black ground
        style = {"va": "top", "ha": horizontal_alignment, "rotation": rotation, "color": rgb}
        style["size"] = (font_size or self._default_font_size) * self.output.scale
        style["bbox"] = {"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"}
        self.output.ax.text(*position, text, family="sans-serif", zorder=10, **style)
        return self.output

    def draw_box(
        self, box_coord: Floats, alpha: float = 0.5, edge_color: Color = "g", line_style: str = "-"
    ) -> VisImage:
        """box_coord: x0, y0, x1, y1."""
        x0, y0, x1, y1 = (float(v) for v in box_coord)
        style = {"linewidth": self._line_width(4), "alpha": alpha, "linestyle": line_style}
        return self._add_patch(patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=edge_color, **style))

    def draw_circle(self, circle_coord: Floats, color: Color, radius: float = 3) -> VisImage:
        """circle_coord: x, y of the centre."""
        return self._add_patch(patches.Circle(circle_coord, radius=radius, fill=True, color=color))

    def draw_line(
        self, x_data: Floats, y_data: Floats, color: Color, linestyle: str = "-", linewidth: float | None = None
    ) -> VisImage:
        """x_data, y_data: of the line's points."""
        width = self._line_width(3) if linewidth is None else linewidth * self.output.scale
        line = lines.Line2D(x_data, y_data, linewidth=width, color=color, linestyle=linestyle)
        self.output.ax.add_line(line)
        return self.output

    def draw_polygon(
        self, segment: np.ndarray, color: Color, edge_color: Color | None = None, alpha: float = 0.5
    ) -> VisImage:
        """segment: (n, 2) points. edge_color: default the fill's, darker if that is opaque."""
        if edge_color is None:
            edge_color = _change_brightness(color, -0.7) if alpha > 0.8 else color
        fill, edge = (*mplc.to_rgb(color), alpha), (*mplc.to_rgb(edge_color), 1)
        width = self._line_width(15)
        return self._add_patch(patches.Polygon(segment, fc=fill, ec=edge, linewidth=width))

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Color | None = None,
        *,
        edge_color: Color | None = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float = 10,
    ) -> VisImage:
        """binary_mask: (H, W). Parts under area_threshold px^2 are left out, unless it has holes.

        color: default random. text: on the largest part, if any part was drawn.
        """
        if color is None:
            color = random_color(rgb=True, maximum=1)
        mask = GenericMask(binary_mask, self.output.height, self.output.width)
        drawn = self._draw_mask(mask, color, edge_color, alpha, area_threshold)
        if text is not None and drawn:
            _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.mask.astype(np.uint8), 8)
            largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()  # 0 is the background
            position = _median_pixel(parts == largest)
            self.draw_text(text, position, color=_change_brightness(color, 0.7))
        return self.output

    def _draw_mask(
        self,
        mask: GenericMask,
        color: Color,
        edge_color: Color | None = None,
        alpha: float = 0.5,
        area_threshold: float = 0,
    ) -> bool:
        """Whether any part was drawn. Polygons cannot have holes: a mask that has is an image."""
        if mask.has_holes:
            rgba = np.zeros((*mask.mask.shape, 4))
            rgba[mask.mask] = (*mplc.to_rgb(color), alpha)
            self.output.show(rgba)
            return True
        parts = [p for p in mask.polygons if mask.area_of(p) >= area_threshold]
        for polygon in parts:
            self.draw_polygon(polygon.reshape(-1, 2), color, edge_color, alpha)
        return len(parts) > 0

    def _draw_label(self, text: str, color: Color, box: np.ndarray | None, mask: GenericMask | None) -> None:
        """In the box's upper left corner; beside it if the box is small; else amid the mask."""
        out = self.output
        if box is not None:
            x0, y0, x1, y1 = box
            position, extent, alignment = (x0, y0), y1 - y0, "left"
            if (x1 - x0) * extent < 1000 / out.scale**2 or extent < 40 / out.scale:
                position = (x1, y0) if y1 >= out.height - 5 else (x0, y1)
        elif mask is not None and mask.mask.any():
            position, alignment = _median_pixel(mask.mask), "center"
            extent = np.ptp(mask.mask.any(axis=1).nonzero()[0]) + 1
        else:
            return
        size = self._default_font_size * np.interp(extent / self._side, (0.04, 0.1), (0.6, 1.0))
        light = _change_brightness(color, 0.7)
        self.draw_text(text, position, font_size=size, color=light, horizontal_alignment=alignment)

    def _add_patch(self, patch: patches.Patch) -> VisImage:
        self.output.ax.add_patch(patch)
        return self.output

    def _line_width(self, font_share: float) -> float:
        return max(self._default_font_size / font_share, 1) * self.output.scale

    def _class_colors(self, classes: Sequence[int] | None, jittering: bool) -> tuple[list[Color] | None, float]:
        """Colours of the classes and alpha, in mode SEGMENTATION; else None: random ones."""
        palette = self.metadata.get("thing_colors")
        if self._instance_mode != ColorMode.SEGMENTATION or not palette or classes is None:
            return None, 0.5
        colors = [np.array(palette[c]) / 255 for c in classes]
        return [_jitter(c) if jittering else c for c in colors], 0.8

    def _create_grayscale_image(self, keep: np.ndarray | None = None) -> np.ndarray:
        """The image in grey, but for the pixels of `keep` (H, W)."""
        gray = np.repeat(self.img.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
        if keep is not None:
            gray[keep] = self.img[keep]
        return gray


def _create_text_labels(
    classes: Sequence[int] | None,
    scores: Floats | None,
    class_names: Sequence[str] | None,
    is_crowd: Sequence[int] | None = None,
) -> list[str] | None:
    """Like "name 83%": the class number without names, either part alone, "|crowd" behind."""
    if classes is None and scores is None:
        return None
    parts = []
    if classes is not None:
        parts.append([class_names[c] if class_names else str(c) for c in classes])
    if scores is not None:
        parts.append([f"{s * 100:.0f}%" for s in scores])
    labels = [" ".join(p) for p in zip(*parts)]
    if is_crowd is not None:
        labels = [label + ("|crowd" if c else "") for label, c in zip(labels, is_crowd)]
    return labels


def _array(x: Any) -> Any:
    """Boxes, BitMasks and tensors as an array, PolygonMasks as a list; the rest as it is."""
    x = getattr(x, "polygons", getattr(x, "tensor", x))
    return x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else x


def _median_pixel(mask: np.ndarray) -> np.ndarray:
    """x, y."""
    return np.median(mask.nonzero(), axis=1)[::-1]


def _change_brightness(color: Color, factor: float) -> tuple[float, float, float]:
    """factor in [-1, 1]: lightness times 1 + factor, at most 1."""
    hue, light, saturation = colorsys.rgb_to_hls(*mplc.to_rgb(color))
    return colorsys.hls_to_rgb(hue, min(light * (1 + factor), 1.0), saturation)


def _jitter(color: np.ndarray) -> np.ndarray:
    """Half a unit away, in a random direction towards white."""
    direction = np.random.rand(3)
    return np.clip(color + direction / np.linalg.norm(direction) * 0.5, 0, 1)
