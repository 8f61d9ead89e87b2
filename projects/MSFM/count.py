"""Parameters of every config beside the paper's "#Param": `python -m projects.MSFM.count` prints both.

The paper's numbers are its framework's (MMDetection): what trains, with the affine values of res3 to res5's batch
norms, printed with two decimals and rounded again to one. Here they are counted on models with `norm="BN"` in place of
frozen norms, without memory for their values.
"""

from copy import deepcopy
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import nn

from detectron2.config import instantiate
from shared.config import load_config

from .module import MSFM

CONFIGS = Path(__file__).parent / "configs"
DETECTORS = Path(__file__).parents[1] / "Detectors/configs"
FASTER = "faster_rcnn_r50_fpn_1x"

# config: the paper's #Param in M. Tables 2 and 3, on FASTER
ABLATIONS = {
    "ablations/default": "42.9",
    "ablations/scales_5s": "43.1",
    "ablations/scales_3l": "42.8",
    "ablations/scales_4": "43.0",
    "ablations/scales_5": "43.1",
    "ablations/ratios_8_16_32": "44.9",
    "ablations/ratios_32_64_128": "42.1",
    "ablations/pos1_ratios_4_8_16": "42.1",
    "ablations/pos1_ratios_8_16_32": "41.8",
    "ablations/pos1": "41.6",
    "ablations/groups_4": "42.9",
    "ablations/groups_8": "42.9",
    "ablations/groups_32": "42.9",
    "ablations/pos2_groups_1": "41.6",
    "ablations/pos2_groups_4": "41.6",
    "ablations/pos2_groups_8": "41.6",
    "ablations/pos1_groups_1": "41.6",
    "ablations/pos1_groups_4": "41.6",
    "ablations/convs_2_3s": "43.2",
    "ablations/convs_2star_5": "43.3",
    "ablations/convs_2_5": "43.7",
    "ablations/convs_2star_3l": "43.1",
    "ablations/convs_2_3l": "43.2",
    "ablations/convs_2star_4": "43.2",
    "ablations/convs_2_4": "43.5",
    "ablations/cat": "43.8",
    "ablations/pos1_cat": "41.7",
    "ablations/positions_1_2": "41.8",
    "ablations/positions_1_3": "43.9",
    "faster_rcnn_msfm_r50_fpn_1x": "43.9",
    "ablations/positions_1_2_3": "44.0",
}
# config with MSFM: its plain twin's #Param and its own. Tables 4 to 6
HOSTS = {
    "faster_rcnn_msfm_r50_fpn_1x": ("41.5", "43.9"),
    "cascade_rcnn_msfm_r50_fpn_1x": ("69.2", "71.5"),
    "grid_rcnn_msfm_r50_fpn_1x": ("64.3", "66.7"),
    "dynamic_rcnn_msfm_r50_fpn_1x": ("41.5", "43.9"),
    "faster_rcnn_msfm_r101_fpn_1x": ("60.5", "65.8"),
    "retinanet_msfm_r50_fpn_1x": ("37.7", "40.1"),
    "faster_rcnn_msfm_r50_dcn_fpn_1x": ("42.1", "44.4"),
    "reppoints_msfm_r50_fpn_1x": ("36.6", "38.9"),
    "mask_rcnn_msfm_r50_fpn_1x": ("44.2", "46.5"),
    "cascade_rcnn_msfm_r101_fpn_2x_ms": (None, "93.4"),
}


def load(name: str) -> DictConfig:
    """A config by its name above; plain twins of detectors that Detectron2 lacks are in projects/Detectors."""
    file = CONFIGS / f"{name}.py"
    return load_config(str(file if file.exists() else DETECTORS / file.name))


def plain_twin(name: str) -> str:
    """Name of a host without MSFM."""
    return name.replace("_msfm", "")


def _build(node) -> object:
    with torch.device("meta"):
        return instantiate(node)


def extra_parameters(cfg: DictConfig) -> int:
    """Of all MSFMs in a config's backbone."""
    stages = _build(cfg.model.backbone.bottom_up.stages)
    modules = [m for blocks in stages for block in blocks for m in block.modules() if isinstance(m, MSFM)]
    return sum(p.numel() for m in modules for p in m.parameters())


def trainable_parameters(cfg: DictConfig) -> int:
    """Of a config's whole model with batch norms, stem and res2 frozen."""
    model = deepcopy(cfg.model)
    model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "BN"
    built: nn.Module = _build(model)
    return sum(p.numel() for p in built.parameters() if p.requires_grad)


def rounded_twice(parameters: int) -> str:
    """In M, rounded to two decimals and then to one, halves up."""
    millions = Decimal(parameters) / 10**6
    for digits in ("0.01", "0.1"):
        millions = millions.quantize(Decimal(digits), ROUND_HALF_UP)
    return str(millions)


def main():
    """Print the tables."""
    print("| config | extra | total | rounded | paper |\n|---|---|---|---|---|")
    base = trainable_parameters(load(FASTER))
    for name, paper in ABLATIONS.items():
        extra = extra_parameters(load(name))
        print(f"| {name} | {extra:,} | {base + extra:,} | {rounded_twice(base + extra)} | {paper} |")
    print("\n| config | plain | rounded | paper | with MSFM | rounded | paper |\n|---|---|---|---|---|---|---|")
    for name, (paper, paper_msfm) in HOSTS.items():
        plain = trainable_parameters(load(plain_twin(name)))
        ours = plain + extra_parameters(load(name))
        print(
            f"| {name} | {plain:,} | {rounded_twice(plain)} | {paper or '–'} "
            f"| {ours:,} | {rounded_twice(ours)} | {paper_msfm} |"
        )


if __name__ == "__main__":
    main()
