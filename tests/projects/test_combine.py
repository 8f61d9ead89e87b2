"""Methods as functions of a host: the projects' own configs, knobs, order, refusals."""

import pytest
import torch
from omegaconf import OmegaConf

from detectron2.config import LazyConfig, instantiate
from detectron2.utils.events import EventStorage
from projects import hosts
from projects.combine import METHODS, combine, describe
from projects.InterNet.combine import with_internet
from projects.LabelEnc.combine import LabelEncMuSu, LabelEncPaddingMaskRCNN, LabelEncRepPoints, with_labelenc
from projects.LIP.combine import with_lip
from projects.MSFM.combine import with_msfm
from shared.errors import UserError
from shared.modeling.changed_resnet import changed_resnet
from tests.paths import ROOT
from tools.pairs import make_batch

BASE, PROJECTS = "configs/baselines/", "projects/"
MSFM, LABELENC, DEPLA = (f"projects/{name}/configs/" for name in ("MSFM", "LabelEnc", "DEPLA"))
DETECTORS, INTERNET = "projects/Detectors/configs/", "projects/InterNet/configs/"
BOTTLENECK, QUICK, RETINANET_QUICK = (
    "configs/quickstart_bottleneck",
    "configs/quickstart",
    "configs/quickstart_retinanet",
)
DEFAULT = {  # of OWN; the others are slow
    "faster_rcnn_msfm_r50_dcn_fpn_1x",
    "faster_rcnn_lip_r50_fpn_1x",
    "faster_rcnn_lip_densenet121_fpn_1x",
    "mask_rcnn_depla_r50_depla_fpn_1x",
    "mask_rcnn_depla_fishnet150_fpn_24e",
    "internet_mask_rcnn_r50_fpn_512",
    "internet_cascade_rcnn_r50_fpn_512",
    "fcos_step2_r50",
    "faster_rcnn_quick_step1",
    "musu_r50_fpn_1x",
    "dynamic_rcnn_r50_fpn_1x",
    "reppoints_r50_fpn_1x",
}
OWN = [  # host, methods, knobs, the project's own config of the same
    *((f"{MSFM}{d}_r50_fpn_1x", "msfm", {}, f"{MSFM}{d}_msfm_r50_fpn_1x") for d in ("faster_rcnn", "mask_rcnn")),
    (f"{MSFM}retinanet_r50_fpn_1x", "msfm", {}, f"{MSFM}retinanet_msfm_r50_fpn_1x"),
    (f"{MSFM}faster_rcnn_r50_dcn_fpn_1x", "msfm", {}, f"{MSFM}faster_rcnn_msfm_r50_dcn_fpn_1x"),
    (f"{MSFM}cascade_rcnn_r50_fpn_1x", "msfm", {}, f"{MSFM}cascade_rcnn_msfm_r50_fpn_1x"),
    (f"{DETECTORS}reppoints_r50_fpn_1x", "msfm", {}, f"{MSFM}reppoints_msfm_r50_fpn_1x"),
    (f"{MSFM}faster_rcnn_r50_fpn_1x", "msfm dynamic", {}, f"{MSFM}dynamic_rcnn_msfm_r50_fpn_1x"),
    (f"{MSFM}faster_rcnn_r50_fpn_1x", "msfm grid", {}, f"{MSFM}grid_rcnn_msfm_r50_fpn_1x"),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "lip", {}, "projects/LIP/configs/faster_rcnn_lip_r50_fpn_1x"),
    (f"{BASE}retinanet_r50_fpn_1x", "lip", {}, "projects/LIP/configs/retinanet_lip_r50_fpn_1x"),
    (
        f"{BASE}faster_rcnn_r50_fpn_1x",
        "lip_densenet",
        {"lip_densenet": {"norm": "FrozenBN"}},
        "projects/LIP/configs/faster_rcnn_lip_densenet121_fpn_1x",
    ),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "depla_fpn", {}, f"{DEPLA}mask_rcnn_r50_depla_fpn_1x"),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "depla_fpn depla", {}, f"{DEPLA}mask_rcnn_depla_r50_depla_fpn_1x"),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "fishnet", {}, f"{DEPLA}mask_rcnn_fishnet150_fpn_24e"),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "depla_fishnet", {}, f"{DEPLA}mask_rcnn_depla_fishnet150_fpn_24e"),
    (f"{DEPLA}mask_rcnn_r50_fpn_1x", "fishnet depla", {}, f"{DEPLA}mask_rcnn_depla_fishnet150_fpn_24e"),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "internet", {}, f"{INTERNET}internet_r50_fpn_512"),
    (f"{BASE}mask_rcnn_r50_fpn_1x", "internet", {}, f"{INTERNET}internet_mask_rcnn_r50_fpn_512"),
    (f"{BASE}cascade_rcnn_r50_fpn_1x", "internet", {}, f"{INTERNET}internet_cascade_rcnn_r50_fpn_512"),
    (f"{BASE}faster_rcnn_r101_fpn_1x", "internet_ot", {}, f"{INTERNET}internet_r101_fpn_512_d_ot"),
    (f"{LABELENC}retinanet_r50_fpn_1x", "labelenc", {}, f"{LABELENC}retinanet_step1_r50"),
    (f"{LABELENC}faster_rcnn_r50_fpn_1x", "labelenc", {}, f"{LABELENC}faster_rcnn_step1_r50"),
    (f"{LABELENC}fcos_r50_fpn_1x", "labelenc", {"labelenc": {"mode": "step2"}}, f"{LABELENC}fcos_step2_r50"),
    (f"{BASE}retinanet_r50_fpn_1x", "musu", {}, "projects/MuSu/configs/musu_r50_fpn_1x"),
    (f"{BASE}fcos_r50_fpn_1x", "musu", {}, "projects/MuSu/configs/musu_r50_fpn_1x"),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "dynamic", {}, f"{DETECTORS}dynamic_rcnn_r50_fpn_1x"),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "grid", {}, f"{DETECTORS}grid_rcnn_r50_fpn_1x"),
    (f"{BASE}retinanet_r50_fpn_1x", "reppoints", {}, f"{DETECTORS}reppoints_r50_fpn_1x"),
    (f"{BASE}faster_rcnn_r50_fpn_1x", "reppoints", {}, f"{DETECTORS}reppoints_r50_fpn_1x"),
    (f"{MSFM}retinanet_quick", "msfm", {}, f"{MSFM}retinanet_msfm_quick"),
    (BOTTLENECK, "depla_fishnet", {"depla_fishnet": {"depth": 99}}, f"{DEPLA}faster_rcnn_depla_fishnet_quick"),
    (QUICK, "labelenc", {}, f"{LABELENC}faster_rcnn_quick_step1"),
]


def load(name):
    return LazyConfig.load(str(ROOT / f"{name}.py"))


def own_case(case):
    own = case[3].rpartition("/")[2]
    marks = () if own in DEFAULT else (pytest.mark.slow,)
    return pytest.param(*case, marks=marks, id=f"{case[1]}-{own}")


def on_meta(cfg):
    with torch.device("meta"):
        return instantiate(cfg.model)


@pytest.mark.parametrize("host, names, knobs, own", list(map(own_case, OWN)))
def test_alone_it_is_the_projects_own(host, names, knobs, own):
    """The same class, with the same entries of the same shapes."""
    cfg, wanted = load(host), load(own)
    cfg.model = combine(cfg.model, *names.split(), **knobs)
    ours, theirs = on_meta(cfg), on_meta(wanted)
    assert type(ours) is type(theirs)
    shapes = [{k: tuple(v.shape) for k, v in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


SAME_FUNCTION = [
    (BOTTLENECK, "lip", {}, "projects/LIP/configs/faster_rcnn_lip_quick"),
    (BOTTLENECK, "msfm", {}, f"{MSFM}faster_rcnn_msfm_quick"),
    (
        BOTTLENECK,
        "depla depla_fpn",
        {"depla": {"mask_padding": True}, "depla_fpn": {"mask_padding": True}},
        f"{DEPLA}faster_rcnn_depla_quick",
    ),
    (QUICK, "internet_ot", {}, f"{INTERNET}quick_d_ot"),
    (QUICK, "grid", {"grid": {"max_samples": 64, "grid_head": {"num_convs": 4}}}, f"{DETECTORS}grid_rcnn_quick"),
    (RETINANET_QUICK, "labelenc", {}, f"{LABELENC}retinanet_quick_step1"),
    (RETINANET_QUICK, "musu", {"musu": {"anchor_generator": {"scale": 4.0}}}, "projects/MuSu/configs/quick"),
]


@pytest.mark.parametrize("host, names, knobs, own", SAME_FUNCTION, ids=[x[3].rpartition("/")[2] for x in SAME_FUNCTION])
def test_with_the_same_weights_it_has_the_same_losses(host, names, knobs, own):
    cfg, wanted = load(host), load(own)
    cfg.model = combine(cfg.model, *names.split(), **knobs)
    torch.manual_seed(0)
    theirs, ours = instantiate(wanted.model), instantiate(cfg.model)
    ours.load_state_dict(theirs.state_dict())
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(1)
        with EventStorage(400):
            losses.append(model(make_batch(10)))
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(loss, losses[1][name], msg=lambda text, name=name: f"{name}: {text}")


def test_the_host_is_not_changed():
    for host in (BOTTLENECK, f"{MSFM}retinanet_quick"):
        cfg = load(host)
        before = OmegaConf.to_yaml(cfg)
        for name in METHODS:
            try:
                combine(cfg.model, name)
            except UserError:
                assert "retinanet" in host
        assert OmegaConf.to_yaml(cfg) == before


def test_the_order_of_names_and_of_functions_does_not_matter():
    host = load(BOTTLENECK).model
    names = ["labelenc", "internet", "msfm", "depla_fpn", "dynamic", "lip"]
    first = combine(host, *names)
    assert combine(host, *reversed(names)) == first and combine(host, *names[3:], *names[:3]) == first
    assert with_lip(with_msfm(host)) == with_msfm(with_lip(host))
    assert combine(host, "labelenc", "musu", "fishnet", "depla") == combine(
        host, "fishnet", "musu", "depla", "labelenc"
    )
    a, b = (on_meta(load_with(m)) for m in (with_labelenc(with_internet(host)), with_internet(with_labelenc(host))))
    assert [(k, v.shape) for k, v in a.named_parameters()] == [(k, v.shape) for k, v in b.named_parameters()]
    assert a.roi_heads.makeup.units[0].norm.num_groups == b.roi_heads.makeup.units[0].norm.num_groups == 32


def load_with(model):
    cfg = load(BOTTLENECK)
    cfg.model = model
    return cfg


def test_knobs_change_the_methods_own():
    host = load(BOTTLENECK).model
    knobs = {"lip": {"pooling": {"width": 8}, "kernel_after": 3}, "msfm": {"scales": [1.0], "ratios": [2, 4, 8]}}
    bottom_up = combine(host, "lip", "msfm", **knobs).backbone.bottom_up
    assert (bottom_up.lip.pooling.width, bottom_up.lip.pooling.kind, bottom_up.lip.kernel_after) == (8, "lip", 3)
    assert list(bottom_up.msfm.scales) == [1.0] and list(bottom_up.msfm.ratios) == [2, 4, 8]
    assigner = load("projects/MuSu/configs/atss_r50_fpn_1x").model.assigner
    assert combine(host, "musu", musu={"assigner": assigner}).assigner == {"topk": 9, "_target_": assigner._target_}
    densenet = combine(host, "lip_densenet", lip_densenet={"growth": 8, "sites": []}).backbone.bottom_up
    assert (densenet.growth, list(densenet.sites), densenet.norm) == (8, [], "BN")


def test_what_follows_the_host():
    """Widths, levels and sizes of a narrow host with small anchors; the papers' for one of ResNet-50's width."""
    narrow, full = load(BOTTLENECK).model, load(f"{BASE}faster_rcnn_r50_fpn_1x").model
    for host, factor, base in ((narrow, 4, 168), (full, 1, 224)):
        model = combine(host, "lip", "msfm", "internet", "grid", "labelenc")
        bottom_up, heads = model.backbone.bottom_up, model.roi_heads
        assert bottom_up.lip.pooling.width == 128 // factor
        assert list(bottom_up.msfm.ratios) == [16 // factor, 32 // factor, 64 // factor]
        assert (heads.critic.hidden, heads.critic.dim) == (512 // factor, 1024 // factor)
        assert (heads.box_pooler.assigner.base, heads.grid_head.point_channels) == (base, 64 // factor)
        assert (model.label_enc.stem_out, model.label_enc.res2_out) == (128 // factor, 256 // factor)
        assert combine(host, "fishnet").backbone.bottom_up.width == 64 // factor
    assert combine(narrow, "fishnet").backbone.bottom_up.norm == "BN"
    for name in ("fishnet", "lip_densenet"):  # the host's is frozen, and so are its first stages
        new = combine(full, name).backbone.bottom_up
        assert full.backbone.bottom_up.freeze_at == 2 and (new.norm, new.freeze_at) == ("SyncBN", 0)
    assert combine(narrow, "musu").anchor_generator.scale == 8 * 24 / 32
    assert combine(narrow, "reppoints").point_scale == 4 * 24 / 32
    assert list(combine(narrow, "depla").backbone.bottom_up.depla.blocks) == [-1]
    assert list(combine(full, "depla").backbone.bottom_up.depla.blocks) == [-3, -2, -1]


def test_the_width_of_a_resnet_read_up_to_res4():
    for file, narrow in ((BOTTLENECK, 4), (f"{BASE}faster_rcnn_r50_fpn_1x", 1)):
        node = load(file).model.backbone.bottom_up
        for node.out_features in (["res5"], ["res4"], ["stem", "res2"]):
            assert hosts.narrowness(hosts.built(node)) == narrow


def test_another_backbone_keeps_the_pyramid_whole():
    """RetinaNet's P6 comes from the last map of what stands below."""
    host = load(f"{MSFM}retinanet_quick").model
    for name, last, channels in (("fishnet", "fish5", 33 * 16), ("lip_densenet", "dense5", 1024)):
        fpn = combine(host, name).backbone
        assert list(fpn.in_features) == list(fpn.bottom_up.out_features) and fpn.in_features[-1] == last
        assert (fpn.top_block.in_feature, fpn.top_block.in_channels) == (last, channels)
    rcnn = combine(load(BOTTLENECK).model, "lip_densenet", "reppoints").backbone
    assert list(rcnn.in_features) == ["dense3", "dense4", "dense5"] and rcnn.top_block.in_feature == "dense5"


def test_hosts_that_are_a_projects_own_configs():
    """What a host has built in stays: LIP and MSFM in one ResNet by two ways, gates in a DEPLA-ResNet."""
    lip = load("projects/LIP/configs/faster_rcnn_lip_r50_fpn_1x")
    msfm = load(f"{MSFM}faster_rcnn_msfm_r50_fpn_1x")
    lip.model, msfm.model = combine(lip.model, "msfm"), combine(msfm.model, "lip")
    shapes = [{k: tuple(v.shape) for k, v in on_meta(cfg).state_dict().items()} for cfg in (lip, msfm)]
    assert shapes[0] == shapes[1]
    depla = load(f"{DEPLA}mask_rcnn_depla_r50_depla_fpn_1x")
    depla.model = combine(depla.model, "se_resnet")
    blocks = on_meta(depla).backbone.bottom_up.res4
    assert all(block.se is not None for block in blocks)
    assert [block.depla is not None for block in blocks] == [False] * 3 + [True] * 3


def test_a_classifier_takes_what_stands_in_a_resnet():
    cfg = load("configs/classification/digits_resnet_bottleneck")
    cfg.model = combine(cfg.model, "lip", "msfm", "se_resnet", "depla")
    block = on_meta(cfg).backbone.res4[0]
    assert all(hasattr(block, name) for name in ("main_pool", "msfm2", "se", "depla"))


def test_labelenc_is_around_every_meta_architecture():
    host = load(BOTTLENECK).model
    for names, knobs, wanted in (
        (("musu",), {}, LabelEncMuSu),
        (("reppoints",), {}, LabelEncRepPoints),
        (("depla_fpn",), {"depla_fpn": {"mask_padding": True}}, LabelEncPaddingMaskRCNN),
    ):
        assert combine(host, *names, "labelenc", **knobs)._target_ is wanted


def test_the_list_of_methods():
    lines = describe().splitlines()
    assert [line.split()[0] for line in lines] == list(METHODS) and "Detectron2" not in lines[0]


# ---------------------------------------------------------------- what does not go together
REFUSED = [
    (BOTTLENECK, "lib", "There is no method 'lib'; did you mean lip?"),
    (BOTTLENECK, "xyz", "There is no method 'xyz': there are fishnet, depla_fishnet, lip_densenet, lip, "),
    (BOTTLENECK, "msfm msfm", "Method msfm is named twice: once is enough."),
    (BOTTLENECK, "musu reppoints", "musu and reppoints both replace the dense head: choose one of the two."),
    (BOTTLENECK, "lip_densenet fishnet", "fishnet and lip_densenet both replace the backbone: choose one of the two."),
    (BOTTLENECK, "internet_ot internet", "internet and internet_ot both replace the RoI features: choose one of"),
    (BOTTLENECK, "lip fishnet", "LIP stands in a ResNet, and the backbone is FishNet: its blocks are pre-activation"),
    (
        BOTTLENECK,
        "depla lip_densenet",
        "DEPLA stands in a ResNet, and the backbone is DenseNet: its layers concatenate",
    ),
    (BOTTLENECK, "msfm lip_densenet", "MSFM stands in a ResNet, and the backbone is DenseNet"),
    (BOTTLENECK, "depla depla_fishnet", "The model has DEPLA in its backbone already."),
    (
        BOTTLENECK,
        "internet musu",
        "InterNet stands in the RoI heads of an R-CNN, and MuSu has none: it is a dense detector.",
    ),
    (BOTTLENECK, "reppoints grid", "Grid R-CNN stands in the RoI heads of an R-CNN, and RepPoints has none"),
    (RETINANET_QUICK, "internet", "InterNet stands in the RoI heads of an R-CNN, and RetinaNet has none"),
    (RETINANET_QUICK, "dynamic", "Dynamic R-CNN stands in the RoI heads of an R-CNN, and RetinaNet has none"),
    (
        QUICK,
        "msfm",
        "MSFM does not fit into this host: BasicBlock is no bottleneck block: take a ResNet of depth 50 or more.",
    ),
    (QUICK, "lip", "LIP does not fit into this host: BasicBlock is no bottleneck block"),
    (f"{BASE}cascade_rcnn_r50_fpn_1x", "grid", "Grid R-CNN stands in RoI heads of one stage, and CascadeROIHeads has"),
    (f"{MSFM}faster_rcnn_msfm_quick", "msfm", "the block has MSFMPieces already"),
    (f"{DEPLA}mask_rcnn_depla_r50_depla_fpn_1x", "depla", "The model has DEPLA in its backbone already."),
    (f"{DEPLA}mask_rcnn_depla_r50_depla_fpn_1x", "depla_fpn", "The model has DEPLA in its FPN already."),
    (f"{INTERNET}quick", "internet_ot", "The model has InterNet already."),
    (f"{LABELENC}retinanet_quick_step1", "labelenc", "The model has LabelEnc already."),
    (f"{LABELENC}retinanet_quick_step1", "musu", "LabelEnc is around this model already, and MuSu changes what it is"),
    (f"{DETECTORS}grid_rcnn_quick", "grid", "The model has Grid's RoI heads already."),
    (
        "projects/LIP/configs/faster_rcnn_lip_quick",
        "fishnet",
        "FishNet replaces the backbone, and model.backbone.bottom_up.stem is LIPStem (projects/LIP/resnet.py): begin "
        "with a config without it, or leave FishNet out.",
    ),
    (
        f"{MSFM}faster_rcnn_msfm_quick",
        "lip_densenet",
        "bottom_up.stages.1.block_class is MSFMBottleneckBlock (projects",
    ),
    (
        f"{DEPLA}faster_rcnn_depla_fishnet_quick",
        "lip_densenet",
        "model.backbone.bottom_up is FishNet (shared/modeling/",
    ),
    ("configs/combined/faster_rcnn_quick", "fishnet", "model.backbone.bottom_up.lip is LIPInResNet (projects/LIP/"),
    (
        f"{INTERNET}quick",
        "musu",
        "MuSu replaces the heads, and model.roi_heads is InterNetROIHeads (projects/InterNet/roi_heads.py): begin with "
        "a config without it, or leave MuSu out.",
    ),
    (f"{DETECTORS}dynamic_rcnn_quick", "reppoints", "RepPoints replaces the heads, and model.roi_heads is Dynamic"),
    ("projects/MuSu/configs/quick_atss", "musu", "The model has MuSu already."),
    ("projects/MuSu/configs/quick_atss", "reppoints", "RepPoints replaces the heads, and model is MuSu (projects/MuSu"),
    (f"{DETECTORS}reppoints_quick", "reppoints", "The model has RepPoints already."),
    (
        f"{DEPLA}faster_rcnn_depla_quick",
        "musu",
        "DEPLA's mask_padding needs a host that PaddingMaskRCNN can replace, a plain R-CNN, and this one is MuSu: "
        "leave mask_padding out.",
    ),
    (f"{INTERNET}internet_r101_levels_voc0712", "depla_fpn", "DEPLA in FPN needs a host with a feature pyramid (FPN)"),
    (f"{INTERNET}internet_r101_levels_voc0712", "labelenc", "LabelEnc needs a host with a feature pyramid (FPN)"),
    ("configs/classification/digits_resnet", "internet", "ImageClassifier has none: it is a classifier."),
    (
        "configs/classification/digits_resnet",
        "labelenc",
        "LabelEnc has no form around ImageClassifier: it knows RetinaNet,",
    ),
    ("configs/classification/digits_resnet", "musu", "MuSu stands in the RoI heads of an R-CNN, and ImageClassifier"),
]


@pytest.mark.parametrize("host, names, sentence", REFUSED, ids=[f"{h.rpartition('/')[2]}-{n}" for h, n, _ in REFUSED])
def test_a_refusal_says_why(host, names, sentence):
    with pytest.raises(UserError) as e:
        combine(load(host).model, *names.split())
    assert sentence in str(e.value)
    if " " in names:
        with pytest.raises(UserError) as again:
            combine(load(host).model, *reversed(names.split()))
        assert str(again.value) == str(e.value)


def test_refused_knobs():
    host = load(BOTTLENECK).model
    for names, knobs, sentence in (
        (["lip"], {"lip": {"kernal_after": 3}}, "LIP has no knob 'kernal_after'; did you mean kernel_after?"),
        (["lip"], {"lip": {"pooling": {"widht": 3}}}, "LIP's pooling has no knob 'widht'; did you mean width?"),
        (["lip"], {"msfm": {}}, "Knobs for msfm are given, but msfm is not among the methods: lip."),
        (
            ["msfm"],
            {"msfm": {"ratios": [7, 7, 7]}},
            "MSFM does not fit into this host: MSFM in res3, position 2: its 32",
        ),
        (["depla"], {"depla": {"blocks": [5]}}, "DEPLA does not fit into this host: DEPLA: blocks must be different"),
    ):
        with pytest.raises(UserError) as e:
            combine(host, *names, **knobs)
        assert sentence in str(e.value)
    with pytest.raises(UserError, match="mask_padding needs a host that PaddingMaskRCNN can replace.*is RetinaNet"):
        combine(load(RETINANET_QUICK).model, "depla_fpn", depla_fpn={"mask_padding": True})
    for head in ("musu", "reppoints"):
        with pytest.raises(UserError, match="DEPLA's mask_padding needs a host"):
            combine(host, "depla", head, depla={"mask_padding": True})
    with pytest.raises(UserError, match="a gate's start must be between 0 and 1, got 1"):
        combine(host, "se_resnet", se_resnet={"start": 1})
    with pytest.raises(UserError, match="applied to a LazyConfig's model with a backbone: this is none"):
        combine(load(BOTTLENECK), "msfm")


def test_a_text_cannot_have_code_run():
    """What a saved config may call takes no names of functions, and reads no files outside the projects."""
    with pytest.raises(ValueError, match="reads files below"):
        hosts.project_node("../tests/tiny/faster_rcnn.py", "model")
    with pytest.raises(TypeError, match="'str' object is not callable"):
        changed_resnet(base="os.getcwd")
