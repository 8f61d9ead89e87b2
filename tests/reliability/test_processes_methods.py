"""Every method with two and four processes: what one process trains with the whole batch.

Chance is taken out of the models (`without_chance`), not out of the data. Images have equally many objects: Detectron2
takes means over the RoIs of a process. Batch norm's statistics are of a process, too: norms are layer norms here, or
synchronised. `sync_normalizers` and, of Dynamic R-CNN, `sync` make the rest equal; without them it is not.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from detectron2.config import LazyConfig
from shared.training import loop
from shared.training.folder import save_config
from shared.training.run import LazyRun
from tests.image_folders import make_image_folder
from tests.paths import ROOT
from tests.processes import run_forked
from tests.scenes import make_coco

from .methods import METHODS, without_chance

ITERATIONS, BATCH = 4, 4
Found = tuple[float, str]  # a difference and its place


class Case(NamedTuple):
    """A method, the norm of its backbone and units, and overrides of its config."""

    method: str
    norm: str = "LN"
    overrides: tuple[str, ...] = ()


SYNC = ("train.sync_normalizers=true",)
CASES = {name: Case(name, overrides=SYNC) for name in METHODS}
CASES["dynamic_rcnn"] = Case("dynamic_rcnn", overrides=("model.roi_heads.sync=true",))
# from the identity on: rounding of group norms of a few cells, with dead channels, would grow a hundredfold a step
IDENTITY = tuple(f"model.backbone.bottom_up.stages.{stage}.msfm.zero_init=true" for stage in (1, 2, 3))
CASES.update({name: Case(name, overrides=IDENTITY) for name in ("msfm", "msfm_folded")})
CASES["classifier, SyncBN"] = Case("classifier", "naiveSyncBN")
CASES["musu, weight_sum"] = Case("musu", overrides=(*SYNC, "model.normalizer=weight_sum"))
CASES["musu, num_gt"] = Case("musu", overrides=(*SYNC, "model.normalizer=num_gt"))
# what differs without the setting: that the others are equal says something
OWN = {name: Case(name) for name in ("retinanet", "fcos", "musu", "reppoints", "dynamic_rcnn")}
OWN["classifier"] = Case("classifier", "BN")
# Gradients are sums in another order. In FishNet's hundred layers on 64 px the difference grows by ten in each step
TOLERANCE = dict.fromkeys(CASES, 5e-6) | {"fishnet": 2e-4}
FAR = 5e-4
SHORT = ("retinanet", "musu", "dynamic_rcnn", "classifier, SyncBN")


def make_data(folder: Path) -> None:
    make_coco(folder / "train", images=12, objects=2)
    make_coco(folder / "val", images=3, seed=1)
    for part in ("folder_train", "folder_val"):
        make_image_folder(folder / part, images=4)


def make_config(case: Case, data: Path, output: Path) -> DictConfig:
    classifier = case.method.startswith("classifier")
    cfg = LazyConfig.load(str(ROOT / f"tests/tiny/{'classifier' if classifier else 'faster_rcnn'}.py"))
    cfg.model = without_chance(METHODS[case.method](case.norm))
    for part, name in ((cfg.dataloader.train, "train"), (cfg.dataloader.test, "val")):
        if classifier:
            part.dataset.names.root = str(data / f"folder_{name}")
        else:
            files = dict(json_file=str(data / name / "annotations.json"), image_root=str(data / name / "images"))
            part.dataset.names.update(files)
    if not classifier:
        mapper = cfg.dataloader.train.mapper
        mapper.augmentations = mapper.augmentations[1:]  # the random flip alone: images stay of one size
        mapper.use_instance_mask = case.method == "mask_rcnn"
    cfg.dataloader.train.total_batch_size = BATCH
    cfg.optimizer.lr = 0.002
    cfg.lr_multiplier.warmup_iters = 0
    cfg.train = OmegaConf.merge(cfg.train, dict(max_iter=ITERATIONS, eval_period=0, ema=dict(enabled=True, decay=0.5)))
    cfg.train.update(output_dir=str(output), seed=4)
    if case.method == "labelenc_step2":
        cfg.model.label_enc.step1_weights = str(data / "labelenc_step1/model_final.pth")
    if case.method == "labelenc_kd":
        teacher = dict(teacher_config="config.yaml", teacher_weights="model_final.pth")
        cfg.model.label_enc.update({key: str(data / "retinanet" / name) for key, name in teacher.items()})
    return LazyConfig.apply_overrides(cfg, list(case.overrides))


def train(cases: dict[str, Case], data: Path, folder: Path) -> None:
    """In this process, or together with others."""
    for name, case in cases.items():
        run = LazyRun(make_config(case, data, folder / name))
        run.check_classes()
        save_config(run, str(folder / name))
        loop.train(run, resume=False)


def leaves(value, path="") -> dict[str, torch.Tensor]:
    """Tensors and numbers in nested dicts and lists, by path; without what Detectron2's synchronised batch norm has
    otherwise: it does not count batches, and its variance is the biased one."""
    if path.endswith(("num_batches_tracked", "running_var")):
        return {}
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, x in items for k, v in leaves(x, f"{path}/{key}").items()}
    return {path: torch.as_tensor(value, dtype=torch.float64)} if isinstance(value, torch.Tensor | float) else {}


def state(run: Path) -> dict[str, torch.Tensor]:
    """The averaged weights and the trained ones with all buffers, the optimizer's momenta, and the normalizers of the
    whole batch: those of all processes together."""
    content = torch.load(run / "model_final.pth", weights_only=True)
    processes = content["run"]["processes"]
    numbers = processes[0]["model"]["numbers"]
    parts = (content["model"], content["ema"]["trained_model"], content["trainer"]["optimizer"]["state"], numbers)
    found = leaves(dict(zip(("model", "trained", "momentum", "numbers"), parts)))
    return {k: v * len(processes) if k.endswith("normalizer") else v for k, v in found.items()}


def difference(one: Path, several: Path) -> Found:
    """The largest of all entries, in units of the entry's largest value or 1, and where."""
    a, b = state(one), state(several)
    assert a.keys() == b.keys() and len(a) > 40
    assert all(torch.equal(a[k].isnan(), b[k].isnan()) for k in a)
    a, b = ({k: v.nan_to_num() for k, v in x.items()} for x in (a, b))
    return max((((a[k] - b[k]).abs().max() / a[k].abs().max().clamp(min=1)).item(), k) for k in a)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def compare(names: Iterable[str], data: Path, folder: Path, processes: int, cases=CASES) -> dict[str, Found]:
    """The largest difference of each case."""
    chosen = {name: cases[name] for name in names}
    for world_size in (1, processes):
        run_forked(world_size, train, folder, chosen, data, folder / str(world_size))
    return {name: difference(folder / "1" / name, folder / str(processes) / name) for name in chosen}


def assert_equal(found: dict[str, Found], processes: int) -> None:
    print(f"\n{processes} processes:")
    for name, (worst, where) in found.items():
        print(f"{name:<22}{worst:.1e}  {where}")
    assert {name: worst for name, worst in found.items() if worst[0] > TOLERANCE[name]} == {}


def test_two_processes(data, tmp_path):
    assert_equal(compare(SHORT, data, tmp_path, 2), 2)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_all_methods(data, tmp_path, processes):
    before = {name: CASES[name] for name in ("retinanet", "labelenc_step1")}  # of step 2, and the teacher
    if not (data / "retinanet").exists():
        run_forked(1, train, tmp_path, before, data, data)
    assert_equal(compare(CASES, data, tmp_path, processes), processes)


@pytest.mark.slow
def test_without_the_settings_they_differ(data, tmp_path):
    found = compare(OWN, data, tmp_path, 2, OWN)
    assert {name: worst for name, worst in found.items() if worst[0] < FAR} == {}
