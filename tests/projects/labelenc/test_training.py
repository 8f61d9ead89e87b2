"""Both steps in the training loop: what checkpoints hold, the start of step 2, resuming."""

import pytest
import torch

from detectron2.config import LazyConfig
from detectron2.utils.env import seed_all_rng
from shared.config import get_collection_cfg
from shared.errors import UserError
from shared.training import loop
from shared.training.run import make_run
from tests.paths import ROOT
from tests.scenes import make_coco

from .hosts import enc_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    file, images = map(str, make_coco(tmp_path_factory.mktemp("data")))
    return dict(train_json=file, train_images=images, val_json=file, val_images=images)


def make(folder, data, max_iter=4, ema=False, **options):
    """A run of RetinaNet with LabelEnc, a checkpoint every two steps."""
    cfg = LazyConfig.load(str(ROOT / "tests/tiny/faster_rcnn.py"))
    cfg.model = enc_config("retinanet", **options)
    cfg.train.update(output_dir=str(folder), max_iter=max_iter, eval_period=0, ema={"enabled": ema, "decay": 0.5})
    cfg.optimizer.update(lr=1e-4, weight_decay=0.1)
    run = make_run(cfg)
    run.use_own_data(**data)
    return run


def weights(folder, name="model_final.pth"):
    return torch.load(folder / name, weights_only=True)["model"]


def under(state, prefix):
    found = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    assert found
    return found


def same(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def test_two_steps_and_resume(data, tmp_path):
    """Step 1's adaption net rests in the warm-up, 2 of 4 iterations; step 2, with an average of its weights, begins
    from step 1's checkpoint and leaves the encoder as it is; --resume reads no step-1 file."""
    run = make(tmp_path / "one", data)
    run.seed = 3
    seed_all_rng(run.seed)
    initial = under(run.build_model().state_dict(), "label_enc.adapt.")
    loop.train(run, resume=False)
    warm, final = weights(tmp_path / "one", "model_0000001.pth"), weights(tmp_path / "one")
    assert same(under(warm, "label_enc.adapt."), initial) and not same(under(final, "label_enc.adapt."), initial)

    options = dict(mode="step2", step1_weights=str(tmp_path / "one/model_final.pth"))
    loop.train(make(tmp_path / "two", data, ema=True, **options), resume=False)
    two = weights(tmp_path / "two")
    assert same(under(two, "label_enc.encoder."), under(final, "label_enc.encoder."))
    shift = (two["head.cls_score.weight"] - final["head.cls_score.weight"]).abs().max()
    assert 0 < shift < 0.01  # another start would lie 0.03 and more away: it is drawn with a deviation of 0.01

    gone = dict(mode="step2", step1_weights="gone.pth")
    loop.train(make(tmp_path / "two", data, max_iter=6, ema=True, **gone), resume=True)
    assert same(under(weights(tmp_path / "two"), "label_enc.encoder."), under(two, "label_enc.encoder."))
    assert not same(weights(tmp_path / "two"), two)


def test_step2_without_step1(data, tmp_path):
    for step in (lambda run: loop.train(run, resume=False), loop.dry_run):
        with pytest.raises(UserError, match="set model.label_enc.step1_weights"):
            step(make(tmp_path, data, mode="step2"))


@pytest.mark.parametrize("meta_architecture", ["LabelEncRetinaNet", "RepPoints", "MuSu"])
def test_class_count_of_the_yaml_form_is_the_dense_hosts(data, meta_architecture):
    """MODEL.RETINANET's, as for RetinaNet itself."""
    cfg = get_collection_cfg()
    cfg.merge_from_file(str(ROOT / "configs/Base-RetinaNet.yaml"))
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    run = make_run(cfg)
    run.use_own_data(**data)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    assert len(run.check_classes()) == 3
    cfg.MODEL.RETINANET.NUM_CLASSES = 7
    with pytest.raises(UserError, match="MODEL.RETINANET.NUM_CLASSES is 7"):
        run.check_classes()
