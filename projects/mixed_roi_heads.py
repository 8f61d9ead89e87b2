"""RoI heads of several methods at once. Each calls the next one's box branch; masks are Detectron2's or InterNet's.

Grid R-CNN refines the boxes that are left, Dynamic R-CNN moves the threshold of positives, InterNet makes up features.
"""

from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from projects.Detectors.dynamic_rcnn import DynamicROIHeads
from projects.Detectors.grid_rcnn import GridROIHeads
from projects.InterNet import InterNetROIHeads
from shared.errors import UserError


class GridDynamicROIHeads(GridROIHeads, DynamicROIHeads):
    """Grid R-CNN's boxes at Dynamic R-CNN's threshold. There is no box regression: beta has no loss to bend."""


class GridInterNetROIHeads(GridROIHeads, InterNetROIHeads):
    """InterNet classifies the RoIs that Grid R-CNN then moves."""


class DynamicInterNetROIHeads(DynamicROIHeads, InterNetROIHeads):
    """InterNet with Dynamic R-CNN's threshold and beta."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.training_only = (*DynamicROIHeads.training_only, *self.training_only)


class GridDynamicInterNetROIHeads(GridROIHeads, DynamicInterNetROIHeads):
    """All three."""


METHODS = (GridROIHeads, DynamicROIHeads, InterNetROIHeads)
MIXED = (
    StandardROIHeads,
    *METHODS,
    GridDynamicROIHeads,
    GridInterNetROIHeads,
    DynamicInterNetROIHeads,
    GridDynamicInterNetROIHeads,
)


def with_class(host: type, method: type) -> type:
    """The class of RoI heads that adds `method`, one of METHODS, to those of `host`. UserError: there is none."""
    name = method.__name__.removesuffix("ROIHeads")
    if issubclass(host, CascadeROIHeads):
        raise UserError(
            f"{name} R-CNN stands in RoI heads of one stage, and {host.__name__} has several, each with its own "
            f"threshold and boxes: leave one of the two out."
        )
    if issubclass(host, method):
        raise UserError(f"The model has {name}'s RoI heads already.")
    if host not in MIXED:
        raise UserError(f"{name} replaces Detectron2's StandardROIHeads, and the model has {host.__name__}.")
    return next(mixed for mixed in MIXED if _methods_of(mixed) == _methods_of(host) | {method})


def _methods_of(heads: type) -> set[type]:
    return {method for method in METHODS if issubclass(heads, method)}
