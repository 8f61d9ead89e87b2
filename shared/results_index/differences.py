"""Printed parameters and FLOPs beside ours."""

from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from .entries import Entry
from .measured import Cost

COUNTED = {"params_M": "parameters, M", "flops_G": "FLOPs, G"}


@dataclass(frozen=True)
class Comparison:
    """One printed number and our count, in the same unit. ours None: not measured."""

    entry: Entry
    figure: str  # of COUNTED
    printed: str
    ours: float | None

    @property
    def rounded(self) -> str | None:
        """Ours, with as many decimals as are printed, rounded as the paper's framework does."""
        if self.ours is None:
            return None
        twice = self.figure == "params_M" and self.entry.paper.parameters == "mmdetection"
        return rounded(self.ours, self.printed, twice)

    @property
    def agrees(self) -> bool:
        return self.rounded == self.printed

    def __str__(self) -> str:
        ours = "not measured" if self.ours is None else f"ours {self.ours:.3f}"
        return f"{self.entry.id}, {COUNTED[self.figure]}: printed {self.printed}, {ours}"


def rounded(number: float, like: str, twice: bool = False) -> str:
    """`number` with the decimals of `like`, halves up. `twice`: with one decimal more first, as MMDetection prints."""
    unit = Decimal(like) - Decimal(like) + Decimal(1).scaleb(Decimal(like).as_tuple().exponent)
    value = Decimal(str(number))
    if twice:
        value = value.quantize(unit / 10, ROUND_HALF_UP)
    return str(value.quantize(unit, ROUND_HALF_UP))


def compare(entries: Iterable[Entry], costs: dict[str, Cost]) -> list[Comparison]:
    """Every printed number of parameters or FLOPs of a row that has a config."""
    found = []
    for entry in entries:
        for figure in COUNTED:
            printed = entry.figure(figure)
            if printed is not None and entry.config:
                found.append(Comparison(entry, figure, printed, our_count(entry, figure, costs)))
    return found


def our_count(entry: Entry, figure: str, costs: dict[str, Cost]) -> float | None:
    """In the unit of `figure`: parameters by the paper's convention, FLOPs with norms, as classifiers' papers count."""
    found = costs.get(str(entry.flops_model if figure == "flops_G" else entry.model))
    if found is None:
        return None
    if figure == "flops_G":
        return found.with_norms_G
    count = found.parameters_mmdetection if entry.paper.parameters == "mmdetection" else found.parameters
    return None if count is None else count / 1e6
