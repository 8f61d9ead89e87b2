"""Parameters of every config beside the paper's "#Param": `python -m projects.MSFM.count` prints both.

The paper's numbers, in results.yaml, are its framework's (MMDetection): what trains, with the affine values of res3 to
res5's batch norms, printed with two decimals and rounded again to one.
"""

from pathlib import Path

import torch
from omegaconf import DictConfig

from detectron2.config import instantiate
from shared.config import load_config
from shared.results_index.cost import mmdetection_parameters as trainable_parameters
from shared.results_index.differences import rounded
from shared.results_index.entries import load_paper

from .module import MSFM

CONFIGS = Path(__file__).parent / "configs"
DETECTORS = Path(__file__).parents[1] / "Detectors/configs"
FASTER = "faster_rcnn_r50_fpn_1x"


def plain_twin(name: str) -> str:
    """Name of a host without MSFM."""
    return name.replace("_msfm", "")


def _printed(*tables: str) -> dict[str, str]:
    """Config by its name below `configs`: the paper's #Param in M."""
    entries = [e for e in load_paper(Path(__file__).parent / "results.yaml").entries if e.table.name in tables]
    names = [e.config.rpartition("/configs/")[2].removesuffix(".py") for e in entries]
    return {name: e.figures["paper"]["params_M"] for name, e in zip(names, entries) if "params_M" in e.figures["paper"]}


# config: the paper's #Param in M. Tables 2 and 3, on FASTER
ABLATIONS = {name: figure for name, figure in _printed("table2", "table3").items() if name != FASTER}
_HOSTS = _printed("table4", "table5", "table6")
# config with MSFM: its plain twin's #Param and its own. Tables 4 to 6
HOSTS = {name: (_HOSTS.get(plain_twin(name)), figure) for name, figure in _HOSTS.items() if "_msfm" in name}


def load(name: str) -> DictConfig:
    """A config by its name above; plain twins of detectors that Detectron2 lacks are in projects/Detectors."""
    file = CONFIGS / f"{name}.py"
    return load_config(str(file if file.exists() else DETECTORS / file.name))


def extra_parameters(cfg: DictConfig) -> int:
    """Of all MSFMs in a config's backbone."""
    with torch.device("meta"):
        stages = instantiate(cfg.model.backbone.bottom_up.stages)
    modules = [m for blocks in stages for block in blocks for m in block.modules() if isinstance(m, MSFM)]
    return sum(p.numel() for m in modules for p in m.parameters())


def rounded_twice(parameters: int) -> str:
    """In M, rounded to two decimals and then to one, halves up."""
    return rounded(parameters / 1e6, "0.0", twice=True)


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
