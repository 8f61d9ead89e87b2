"""What MSFMs are like and where they stand: the paper's Table 1 and what it leaves open."""

from dataclasses import dataclass

STAGES = ("res2", "res3", "res4", "res5")
POSITIONS = (1, 2, 3)
FUSIONS = ("add", "cat")
IMPLS = ("folded", "plain")


@dataclass(frozen=True)
class MSFMSpec:
    """The defaults are the paper's final setting (Table 3, row "2, 3").

    Where, in a ResNet of bottleneck blocks; every block of a stage has them:
    positions: after which of a block's three convolutions.
    stages: the paper's "stages 2, 3 and 4" are res3, res4 and res5.
    ratios: C / t for each of `stages`; C is the width at the position, t that of the thin maps.
    norm_groups: groups of the group norms at positions 1, 2 and 3, used or not.

    The module itself:
    scales: of the branches; 1 resizes nothing.
    conv_num: convolutions of a branch. conv_num_small: of branches with scale <= 1, 0 for the same number; with 1 and
        conv_num=2 it is the paper's "2*".
    fusion: "add" sums the branches, "cat" concatenates them.

    Not in the paper, ours:
    align_corners: of the bilinear resizing.
    squeeze_bias, squeeze_norm: what the squeezing convolution has. Counts of parameters show one of them at least.
    zero_init: the last norm starts with scale 0, and the module as the identity.
    out_relu: a ReLU behind that norm.
    impl: "plain" runs the definition, "folded" puts the last norm into its convolution (`folding.py`); same weights.
    """

    positions: tuple[int, ...] = (2, 3)
    stages: tuple[str, ...] = ("res3", "res4", "res5")
    ratios: tuple[int, ...] = (16, 32, 64)
    norm_groups: tuple[int, ...] = (8, 4, 32)
    scales: tuple[float, ...] = (0.5, 0.7, 1.0, 1.4, 2.0)
    conv_num: int = 2
    conv_num_small: int = 0
    fusion: str = "add"
    align_corners: bool = False
    squeeze_bias: bool = True
    squeeze_norm: bool = True
    zero_init: bool = True
    out_relu: bool = False
    impl: str = "folded"

    def __post_init__(self):
        for name in ("positions", "stages", "ratios", "norm_groups", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # also from a config's own kinds of lists
        self._check_places()
        self._check_module()

    def _check_places(self) -> None:
        for name, known in (("positions", POSITIONS), ("stages", STAGES)):
            given = getattr(self, name)
            if not given or not set(given) <= set(known) or len(set(given)) != len(given):
                raise ValueError(f"MSFM: {name} must be different ones of {list(known)}, got {list(given)}.")
        if len(self.ratios) != len(self.stages):
            raise ValueError(
                f"MSFM: ratios needs one entry for each of stages {list(self.stages)}, got {list(self.ratios)}."
            )
        if len(self.norm_groups) != len(POSITIONS):
            raise ValueError(
                f"MSFM: norm_groups needs three entries, for positions 1, 2 and 3, got {list(self.norm_groups)}."
            )

    def _check_module(self) -> None:
        for name, known in (("fusion", FUSIONS), ("impl", IMPLS)):
            if getattr(self, name) not in known:
                raise ValueError(f"MSFM: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"MSFM: scales must be one or more positive numbers, got {list(self.scales)}.")
        if self.conv_num < 1 or self.conv_num_small < 0:
            raise ValueError(
                f"MSFM: conv_num must be at least 1 and conv_num_small at least 0, "
                f"got {self.conv_num} and {self.conv_num_small}."
            )
        if not (self.squeeze_bias or self.squeeze_norm):
            raise ValueError("MSFM: the squeezing convolution needs squeeze_bias, squeeze_norm or both.")
        if self.zero_init and self.out_relu:
            raise ValueError(
                "MSFM: out_relu with zero_init would stay the identity for ever, as relu'(0) = 0 stops every "
                "gradient: set one of them to False."
            )

    def convs_at(self, scale: float) -> int:
        """Convolutions of the branch at this scale."""
        return self.conv_num if scale > 1 else self.conv_num_small or self.conv_num
