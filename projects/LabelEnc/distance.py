"""The distance between two feature pyramids (LabelEnc, arXiv:2007.03282, Eq. 10). N: images, C: channels."""

from collections.abc import Sequence

from torch import Tensor, nn

from shared.ops import ln_mse

NORMS = ("chw", "c")
REDUCTIONS = ("mean", "mean_level", "sum")


class Adaption(nn.Module):
    """A of Eq. (10): `num_convs` 3x3 convolutions with ReLU between them, which all levels share.

    Without convolutions it is the identity. Given `levels`, every one of these has its own.
    """

    def __init__(self, *, channels: int, num_convs: int = 3, levels: Sequence[str] = ()):
        super().__init__()

        def tower() -> nn.Sequential:
            convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num_convs)]
            layers = [layer for conv in convs for layer in (conv, nn.ReLU())]
            return nn.Sequential(*layers[:-1])

        self.towers = nn.ModuleDict({level: tower() for level in levels}) if levels else tower()

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """Maps (N, C, Hi, Wi) by level -> maps of the same shapes."""
        shared = isinstance(self.towers, nn.Sequential)
        return {level: (self.towers if shared else self.towers[level])(x) for level, x in features.items()}


def pyramid_distance(
    x: dict[str, Tensor], y: dict[str, Tensor], *, norm: str = "chw", reduction: str = "mean"
) -> Tensor:
    """Eq. (10) over the levels: sum of || LN(x) - LN(y) ||^2. Scalar, float32 (float64 for float64 maps).

    x, y: maps (N, C, Hi, Wi) by level. norm: "chw", over each image and level, padding included (GroupNorm with one
    group, as in the authors' code), or "c", over the channels of each position. reduction: "mean" over the elements of
    all levels together, as in their code, so that levels weigh by their area; "mean_level", the mean of the levels'
    means; "sum", the squared norm of an image, averaged over the batch, as the equation has it: millions of terms.
    """
    if reduction == "mean_level":
        return sum(ln_mse(x[level], y[level], dims=norm) for level in y) / len(y)
    total = sum(ln_mse(x[level], y[level], dims=norm, reduction="sum") for level in y)
    terms = sum(maps.numel() for maps in y.values())
    return total / (terms if reduction == "mean" else next(iter(y.values())).shape[0])
