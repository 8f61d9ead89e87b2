"""Draws boxes, masks and labels on an image. Coordinates are pixels of the unscaled image."""

import colorsys
from collections.abc import Mapping, Sequence
from enum import Enum

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


class ColorMode(Enum):
    IMAGE = 0  # colours at random from the palette
    SEGMENTATION = 1  # near their class's colour in metadata.thing_colors
    IMAGE_BW = 2  # at random, and what no mask covers turns grey


class GenericMask:
    """`mask` (H, W) and flat `polygons` (None if it has holes) of an array, an RLE dict or a list of polygons."""

    def __init__(self, source: np.ndarray | dict | list, height: int, width: int):
        if isinstance(source, (list, tuple)):
            polygons = [np.asarray(p).reshape(-1) for p in source]
            self.polygons: list[np.ndarray] | None = [p for p in polygons if len(p) >= 6]  # fewer have no area
            self.mask = polygons_to_bitmask(self.polygons, height, width)
            return
        if isinstance(source, Mapping):
            if isinstance(source["counts"], list):
                source = mask_util.frPyObjects(source, *source["size"])
            source = mask_util.decode(source)
        self.mask = np.asarray(source).astype(bool)
        if self.mask.shape != (height, width):
            raise ValueError(f"Mask of shape {self.mask.shape} on an image {(height, width)}: resize or paste it.")
        # contours through the pixels' centres; hierarchy (1, n, 4): parents come last, -1 for an outer contour
        contours, hierarchy = cv2.findContours(self.mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        has_holes = hierarchy is not None and (hierarchy[..., 3] >= 0).any()
        self.polygons = None if has_holes else [c.reshape(-1) + 0.5 for c in contours if len(c) >= 3]


class VisImage:
    """A matplotlib figure whose only axis is the image, `scale` times its size."""

    def __init__(self, img: np.ndarray, scale: float = 1.0):
        """img: (H, W, 3) RGB."""
        self.scale = scale
        self.height, self.width = img.shape[:2]
        self.fig = Figure(frameon=False)
        # + 0.01: older matplotlib rounds down, and side * scale / dpi * dpi may be just below a pixel
        self.fig.set_size_inches(*((np.array([self.width, self.height]) * scale + 0.01) / self.fig.get_dpi()))
        self.canvas = FigureCanvasAgg(self.fig)
        self.ax = self.fig.add_axes((0.0, 0.0, 1.0, 1.0))
        self.ax.axis("off")
        self.show(img.astype(np.uint8))

    def show(self, img: np.ndarray) -> None:
        """Put an image, RGB or RGBA, over the whole axis, below what is drawn."""
        self.ax.imshow(img, extent=(0, self.width, self.height, 0), interpolation="nearest")

    def save(self, filepath: str) -> None:
        self.fig.savefig(filepath)

    def get_image(self) -> np.ndarray:
        """uint8 RGB (int(H * scale), int(W * scale), 3)."""
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()


class Visualizer:
    """Every draw method draws on `output` and returns it."""

    def __init__(
        self, img_rgb, metadata: Metadata | None = None, scale=1.0, instance_mode=ColorMode.IMAGE, font_size_scale=1.0
    ):
        """img_rgb: (H, W, 3) in [0, 255]. metadata: for class names and colours."""
        self.img = np.asarray(img_rgb).clip(0, 255).astype(np.uint8)
        self.metadata = MetadataCatalog.get("__nonexist__") if metadata is None else metadata
        self.output = VisImage(self.img, scale=scale)
        self._instance_mode = instance_mode
        self._side = np.sqrt(self.output.height * self.output.width)
        self._default_font_size = max(self._side // 90, 10 // scale) * font_size_scale

    def get_output(self) -> VisImage:
        return self.output

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Any of pred_boxes, scores, pred_classes, pred_masks (n, H, W). jittering: of the colours within a class."""
        fields = predictions.to("cpu").get_fields()
        masks, scores = fields.get("pred_masks"), fields.get("scores")
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        colors, alpha = self._class_colors(classes, jittering)
        if self._instance_mode == ColorMode.IMAGE_BW:
            alpha = 0.3
            seen = False if masks is None else _array(masks).any(axis=0)[..., None]
            gray = self.img.mean(axis=2, keepdims=True).astype(np.uint8)
            self.output.show(np.where(seen, self.img, gray))
        boxes, labels = fields.get("pred_boxes"), self._text_labels(classes, scores)
        return self.overlay_instances(boxes=boxes, labels=labels, masks=masks, assigned_colors=colors, alpha=alpha)

    def draw_dataset_dict(self, dic: dict) -> VisImage:
        """The annotations of a dataset dict (boxes in their bbox_mode)."""
        annos = dic.get("annotations", [])
        boxes = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS) for a in annos]
        masks = [a.get("segmentation", []) for a in annos]
        classes = [a["category_id"] for a in annos]
        names, (colors, _) = self._text_labels(classes), self._class_colors(classes, jittering=True)
        labels = [f"{name}|crowd" if a.get("iscrowd") else name for name, a in zip(names, annos)]
        return self.overlay_instances(boxes=boxes, labels=labels, masks=masks, assigned_colors=colors)

    def overlay_instances(
        self, *, boxes=None, labels: Sequence[str] | None = None, masks=None, assigned_colors=None, alpha=0.5
    ) -> VisImage:
        """n instances, the larger first so that the smaller stay visible. boxes: Boxes, or (n, 4) XYXY.
        masks: BitMasks, PolygonMasks, a tensor (n, H, W), or a list of arrays (H, W), RLE dicts or lists of polygons.
        """
        if boxes is not None:
            boxes = np.asarray(_array(boxes), dtype=np.float64).reshape(-1, 4)
        if masks is not None:
            masks = [GenericMask(m, self.output.height, self.output.width) for m in _array(masks)]
        lengths = {len(x) for x in (boxes, masks, labels, assigned_colors) if x is not None}
        if len(lengths) > 1:
            raise ValueError(f"Boxes, masks, labels, colors have different lengths: {lengths}.")
        n = max(lengths, default=0)
        if assigned_colors is None:
            assigned_colors = [random_color(rgb=True, maximum=1) for _ in range(n)]
        areas = np.array([0 if masks is None else masks[i].mask.sum() for i in range(n)])
        if boxes is not None:
            areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        for i in np.argsort(-areas, kind="stable"):
            box, mask = (None if x is None else x[i] for x in (boxes, masks))
            if box is not None:
                self.draw_box(box, edge_color=assigned_colors[i])
            if mask is not None:
                self._draw_mask(mask, assigned_colors[i], alpha=alpha)
            if labels is not None:
                self._draw_label(labels[i], assigned_colors[i], box, mask)
        return self.output

    def draw_text(
        self, text: str, position: Floats, *, font_size=None, color="g", horizontal_alignment="center", rotation=0
    ) -> VisImage:
        """position: x, y of the upper edge. rotation: degrees, counterclockwise."""
        rgb = np.maximum(mplc.to_rgb(color), 0.2)
        rgb[rgb.argmax()] = max(rgb.max(), 0.8)  # readable on the black ground
        style = {"va": "top", "ha": horizontal_alignment, "rotation": rotation, "color": rgb, "zorder": 10}
        ground = {"facecolor": "black", "alpha": 0.8, "pad": 0.7, "edgecolor": "none"}
        size = (font_size or self._default_font_size) * self.output.scale
        self.output.ax.text(*position, text, family="sans-serif", size=size, bbox=ground, **style)
        return self.output

    def draw_box(self, box_coord: Floats, alpha=0.5, edge_color: Color = "g", line_style="-") -> VisImage:
        """box_coord: x0, y0, x1, y1."""
        x0, y0, x1, y1 = (float(v) for v in box_coord)
        style = {"linewidth": self._line_width(4), "alpha": alpha, "linestyle": line_style}
        return self._add(patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=edge_color, **style))

    def draw_circle(self, circle_coord: Floats, color: Color, radius: float = 3) -> VisImage:
        """circle_coord: x, y of the centre."""
        return self._add(patches.Circle(circle_coord, radius=radius, fill=True, color=color))

    def draw_line(self, x_data: Floats, y_data: Floats, color: Color, linestyle="-", linewidth=None) -> VisImage:
        """x_data, y_data: of the line's points."""
        width = self._line_width(3) if linewidth is None else linewidth * self.output.scale
        return self._add(lines.Line2D(x_data, y_data, linewidth=width, color=color, linestyle=linestyle))

    def draw_polygon(self, segment, color: Color, edge_color: Color | None = None, alpha=0.5) -> VisImage:
        """segment: (n, 2) points. edge_color: default the fill's, darker if that is opaque."""
        if edge_color is None:
            edge_color = _change_brightness(color, -0.7) if alpha > 0.8 else color
        fill, edge = (*mplc.to_rgb(color), alpha), (*mplc.to_rgb(edge_color), 1)
        return self._add(patches.Polygon(segment, fc=fill, ec=edge, linewidth=self._line_width(15)))

    def draw_binary_mask(
        self, binary_mask, color: Color | None = None, *, edge_color=None, text=None, alpha=0.5, area_threshold=10
    ) -> VisImage:
        """Parts of a mask (H, W) under area_threshold px^2 are left out, unless it has holes. text: on the largest."""
        if color is None:
            color = random_color(rgb=True, maximum=1)
        mask = GenericMask(binary_mask, self.output.height, self.output.width)
        drawn = self._draw_mask(mask, color, edge_color, alpha, area_threshold)
        if text is not None and drawn:
            _, parts, stats, _ = cv2.connectedComponentsWithStats(mask.mask.astype(np.uint8), 8)
            largest = 1 + stats[1:, cv2.CC_STAT_AREA].argmax()  # 0 is the background
            self.draw_text(text, _median_pixel(parts == largest), color=_change_brightness(color, 0.7))
        return self.output

    def _draw_mask(self, mask: GenericMask, color: Color, edge_color=None, alpha=0.5, area_threshold=0) -> bool:
        """Whether any part was drawn. Polygons cannot have holes: a mask that has is an image."""
        if mask.polygons is None:
            self.output.show(mask.mask[..., None] * (*mplc.to_rgb(color), alpha))
            return True
        rles = mask_util.frPyObjects(mask.polygons, *mask.mask.shape) if mask.polygons else []
        parts = [p for p, area in zip(mask.polygons, mask_util.area(rles)) if area >= area_threshold]
        for polygon in parts:
            self.draw_polygon(polygon.reshape(-1, 2), color, edge_color, alpha)
        return len(parts) > 0

    def _draw_label(self, text: str, color: Color, box: np.ndarray | None, mask: GenericMask | None) -> None:
        """In the box's upper left corner; beside it if the box is small; else amid the mask."""
        if box is not None:
            x0, y0, x1, y1 = box
            position, extent, alignment = (x0, y0), y1 - y0, "left"
            if (x1 - x0) * extent < 1000 / self.output.scale**2 or extent < 40 / self.output.scale:
                position = (x1, y0) if y1 >= self.output.height - 5 else (x0, y1)
        elif mask is not None and mask.mask.any():
            position, extent, alignment = _median_pixel(mask.mask), np.ptp(mask.mask.nonzero()[0]) + 1, "center"
        else:
            return
        size = self._default_font_size * np.interp(extent / self._side, (0.04, 0.1), (0.6, 1.0))
        style = {"color": _change_brightness(color, 0.7), "horizontal_alignment": alignment}
        self.draw_text(text, position, font_size=size, **style)

    def _add(self, artist) -> VisImage:
        self.output.ax.add_artist(artist)
        return self.output

    def _line_width(self, font_share: float) -> float:
        return max(self._default_font_size / font_share, 1) * self.output.scale

    def _class_colors(self, classes: Sequence[int] | None, jittering: bool) -> tuple[list[Color] | None, float]:
        """Colours of the classes and alpha, in mode SEGMENTATION; else None: random ones."""
        palette = self.metadata.get("thing_colors")
        if self._instance_mode != ColorMode.SEGMENTATION or not palette or classes is None:
            return None, 0.5
        colors = np.reshape([palette[c] for c in classes], (-1, 3)) / 255
        if jittering:  # half a unit away, in a random direction towards white
            steps = np.random.rand(*colors.shape)
            colors = np.clip(colors + steps / np.linalg.norm(steps, axis=1, keepdims=True) * 0.5, 0, 1)
        return list(colors), 0.8

    def _text_labels(self, classes: Sequence[int] | None, scores: Floats | None = None) -> list[str] | None:
        """Like "name 83%": the class number without names, either part alone."""
        names, parts = self.metadata.get("thing_classes"), []
        if classes is not None:
            parts.append([names[c] if names else str(c) for c in classes])
        if scores is not None:
            parts.append([f"{s * 100:.0f}%" for s in scores])
        return [" ".join(p) for p in zip(*parts)] if parts else None


def _array(x):
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
