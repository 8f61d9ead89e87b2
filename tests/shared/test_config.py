import pytest
from omegaconf import OmegaConf

from shared.config import apply_overrides, load_config
from shared.errors import UserError, nearest
from tests.paths import ROOT

LAZY = str(ROOT / "configs/baselines/faster_rcnn_r50_fpn_1x.py")
YAML = str(ROOT / "configs/baselines/faster_rcnn_r50_fpn_1x.yaml")


def test_overrides_change_the_config():
    cfg = load_config(LAZY, ["train.max_iter=7", "model.roi_heads.box_head.fc_dims=[64]"])
    assert cfg.train.max_iter == 7
    assert list(cfg.model.roi_heads.box_head.fc_dims) == [64]


def test_override_through_an_index_and_an_interpolation():
    cfg = load_config(
        str(ROOT / "configs/baselines/cascade_rcnn_r50_fpn_1x.py"), ["model.roi_heads.box_heads.1.fc_dims=[8]"]
    )
    assert [list(h.fc_dims) for h in cfg.model.roi_heads.box_heads] == [[1024] * 2, [8], [1024] * 2]


@pytest.mark.parametrize(
    "override, wanted",
    [
        ("train.max_itre=7", "'train.max_itre'; did you mean train.max_iter"),
        ("model.backbone.bottom_up.stages.dpeth=18", "model.backbone.bottom_up.stages.depth"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("train.max_iter", "has no value: write train.max_iter=VALUE"),
        ("train.max_iter=many", "train.max_iter=many: the value must be a number"),
        ("train.amp.enabled=3", "the value must be true or false"),
        ("model.roi_heads.box_head.fc_dims.5=1", "Unknown config key"),
        ("train.max_iter=[1", "Overrides"),
    ],
)
def test_misspelt_lazy_override_stops_and_names_the_nearest(override, wanted):
    with pytest.raises(UserError) as e:
        load_config(LAZY, [override])
    assert wanted in str(e.value)


def test_plus_adds_a_new_key():
    cfg = apply_overrides(OmegaConf.create({"a": 1}), ["+b=2"])
    assert cfg == {"a": 1, "b": 2}


def test_yaml_overrides_in_both_forms():
    cfg = load_config(YAML, ["SOLVER.MAX_ITER=7", "SOLVER.BASE_LR", "0.5"])
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 0.5)
    assert cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone"  # from the base file


@pytest.mark.parametrize(
    "overrides, wanted",
    [
        (["SOLVER.MAX_ITRE=7"], "'SOLVER.MAX_ITRE'; did you mean SOLVER.MAX_ITER"),
        (["MODEL.ROI_HEAD.NUM_CLASSES=3"], "MODEL.ROI_HEADS.NUM_CLASSES"),
        (["SOLVER.MAX_ITER"], "has no value"),
        (["SOLVER.MAX_ITER=many"], "SOLVER.MAX_ITER=many"),
    ],
)
def test_misspelt_yaml_override_stops_and_names_the_nearest(overrides, wanted):
    with pytest.raises(UserError) as e:
        load_config(YAML, overrides)
    assert wanted in str(e.value)


def test_unknown_key_in_a_yaml_file(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("VERSION: 2\nSOLVER:\n  MAX_ITRE: 3\n")
    with pytest.raises(UserError, match="SOLVER.MAX_ITRE.*did you mean SOLVER.MAX_ITER"):
        load_config(str(file))


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="faster_rcnn_r50_fpn_1.py.*did you mean faster_rcnn"):
        load_config(LAZY.replace("1x.py", "1.py"))
    with pytest.raises(UserError, match="add --config-file"):
        load_config("")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="must end in .py"):
        load_config(str(tmp_path / "a.txt"))
    (tmp_path / "a.py").write_text("model = {}\n")
    with pytest.raises(UserError, match="defines no train, dataloader, optimizer"):
        load_config(str(tmp_path / "a.py"))
    (tmp_path / "b.py").write_text("model = {\n")
    with pytest.raises(UserError, match="SyntaxError"):
        load_config(str(tmp_path / "b.py"))
    (tmp_path / "c.yaml").write_text("MODEL: [\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_config(str(tmp_path / "c.yaml"))


def test_saved_lazy_yaml_is_told_from_a_cfgnode_yaml(tmp_path):
    from detectron2.config import LazyConfig

    cfg = load_config(LAZY, ["train.max_iter=7"])
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    again = load_config(str(tmp_path / "config.yaml"))
    assert again.train.max_iter == 7
    assert again.lr_multiplier.max_iter == 7  # still computed from it


def test_yaml_with_code_is_refused(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text("VERSION: 2\nOUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="a.yaml"):
        load_config(str(file))


def test_nearest():
    assert nearest("max_itre", ["max_iter", "seed"]) == "; did you mean max_iter?"
    assert nearest("xyz", ["max_iter"]) == ""
