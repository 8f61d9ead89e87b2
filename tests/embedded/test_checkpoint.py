"""Checkpoints: names of other libraries, matching by suffix, and files that must not run code."""

import logging
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.modeling.backbone import BasicStem, ResNet
from detectron2.utils.file_io import PathManager

C2_NAMES = {
    "conv1_w": "stem.conv1.weight",
    "conv1_b": "stem.conv1.bias",
    "conv1_gn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_b": "stem.conv1.norm.bias",
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch1_bn_s": "res2.0.shortcut.norm.weight",
    "res2_0_branch1_bn_b": "res2.0.shortcut.norm.bias",
    "res3_1_branch2a_w": "res3.1.conv1.weight",
    "res3_1_branch2b_bn_s": "res3.1.conv2.norm.weight",
    "res3_1_branch2b_bn_b": "res3.1.conv2.norm.bias",
    "res5_2_branch2c_gn_s": "res5.2.conv3.norm.weight",
    "res5_2_branch2c_gn_b": "res5.2.conv3.norm.bias",
    "res2_0_branch2a_bn_rm": "res2.0.conv1.norm.running_mean",
    "res2_0_branch2a_bn_running_mean": "res2.0.conv1.norm.running_mean",
    "res2_0_branch2a_bn_riv": "res2.0.conv1.norm.running_var",
    "res2_0_branch2a_bn_running_var": "res2.0.conv1.norm.running_var",
    "res2_0_branch2a_bn_gamma": "res2.0.conv1.norm.weight",
    "res2_0_branch2a_bn_beta": "res2.0.conv1.norm.bias",
    "pred_w": "linear.weight",
    "pred_b": "linear.bias",
    "fc1000_w": "fc1000.weight",
    "fpn_inner_res5_2_sum_w": "fpn_lateral5.weight",
    "fpn_inner_res4_22_sum_lateral_b": "fpn_lateral4.bias",
    "fpn_inner_res5_2_sum_gn_s": "fpn_lateral5.norm.weight",
    "fpn_inner_res4_5_sum_lateral_gn_b": "fpn_lateral4.norm.bias",
    "fpn_res5_2_sum_w": "fpn_output5.weight",
    "fpn_res2_2_sum_gn_b": "fpn_output2.norm.bias",
    "conv_rpn_fpn2_w": "proposal_generator.rpn_head.conv.weight",
    "conv_rpn_b": "proposal_generator.rpn_head.conv.bias",
    "rpn_cls_logits_fpn2_w": "proposal_generator.rpn_head.objectness_logits.weight",
    "rpn_cls_logits_b": "proposal_generator.rpn_head.objectness_logits.bias",
    "rpn_bbox_pred_fpn2_w": "proposal_generator.rpn_head.anchor_deltas.weight",
    "rpn_bbox_pred_b": "proposal_generator.rpn_head.anchor_deltas.bias",
    "fc6_w": "box_head.fc1.weight",
    "fc7_b": "box_head.fc2.bias",
    "head_conv1_w": "box_head.conv1.weight",
    "head_conv4_gn_s": "box_head.conv4.norm.weight",
    "cls_score_w": "cls_score.weight",
    "bbox_pred_b": "bbox_pred.bias",
    "_[mask]_fcn1_w": "mask_head.mask_fcn1.weight",
    "_[mask]_fcn4_gn_b": "mask_head.mask_fcn4.norm.bias",
    "conv5_mask_w": "mask_head.deconv.weight",
    "mask_fcn_logits_b": "mask_head.predictor.bias",
}


@pytest.mark.parametrize("name", C2_NAMES)
def test_caffe2_names(name):
    new = align_and_update_state_dicts({"x": torch.zeros(1)}, {name: torch.zeros(8)})
    assert list(new) == [C2_NAMES[name]]


@pytest.mark.parametrize(
    "name, expected",
    [
        ("cls_score", [1, 2, 3, 4, 5, 6, 7, 0]),  # background: from first to last
        ("bbox_pred", [4, 5, 6, 7]),  # its 4 rows are dropped
        ("mask_fcn_logits", [1, 2, 3, 4, 5, 6, 7]),
        ("rpn_cls_logits", [0, 1, 2, 3, 4, 5, 6, 7]),
        ("rpn_bbox_pred", [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_background_moves(name, expected):
    for suffix, shape in (("_w", (8, 1)), ("_b", (8,))):
        rows = torch.arange(8.0).reshape(shape)
        (new,) = align_and_update_state_dicts({}, {name + suffix: rows}).values()
        assert new.flatten().tolist() == expected


def ones(*keys, size=2):
    return {k: torch.ones(size) for k in keys}


def align(model, checkpoint):
    return align_and_update_state_dicts(model, checkpoint, c2_conversion=False)


def test_the_longest_suffix_after_a_dot_matches():
    checkpoint = {"b.w": torch.tensor(1.0), "c.b.w": torch.tensor(2.0), "rest": torch.tensor(3.0)}
    model = {k: torch.tensor(0.0) for k in ("a.b.w", "a.c.b.w", "ab.w", "unknown")}
    assert align(model, checkpoint) == {"a.b.w": 1.0, "a.c.b.w": 2.0, "rest": 3.0}


def test_a_key_that_fits_two_parameters_is_refused():
    with pytest.raises(ValueError, match="Cannot match one checkpoint key to multiple keys"):
        align(ones("a.b.w", "c.b.w"), ones("b.w"))


def test_other_shapes_are_skipped_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        new = align(ones("a.b.w", "x"), {**ones("b.w", size=3), **ones("x")})
    assert {k: len(v) for k, v in new.items()} == {"b.w": 3, "x": 2}
    assert "a.b.w" in caplog.text and "3" in caplog.text
    # so one key may fit two parameters of which only one has its shape
    assert list(align({**ones("a.w"), **ones("c.w", size=3)}, ones("w"))) == ["a.w"]


def test_nothing_matched_leaves_the_names(caplog):
    with caplog.at_level(logging.WARNING):
        assert list(align(ones("ab.w"), ones("b.w", "k"))) == ["b.w", "k"]
    assert "No weights in checkpoint matched with model." in caplog.text


class Wrapper(nn.Module):
    """A ResNet-18 where a detector has it."""

    def __init__(self):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = ResNet(
            BasicStem(norm="FrozenBN"),
            ResNet.make_default_stages(18, norm="FrozenBN"),
            out_features=["res2", "res3", "res4", "res5"],
        )


def rename_torchvision(state):
    """torchvision's ResNet names as DetectionCheckpointer's heuristics understand them."""
    new = {}
    for key, value in state.items():
        if "layer" not in key:
            key = "stem." + key
        for t in (1, 2, 3, 4):
            key = key.replace(f"layer{t}", f"res{t + 1}").replace(f"bn{t}", f"conv{t}.norm")
        key = key.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        new[key] = value.numpy()
    return new


def test_torchvision_weights_give_torchvision_features(tmp_path, caplog):
    theirs = torchvision.models.resnet18(weights=None).eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in theirs.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    with open(tmp_path / "r18.pkl", "wb") as f:
        weights = rename_torchvision(theirs.state_dict())
        pickle.dump({"model": weights, "__author__": "torchvision", "matching_heuristics": True}, f)
    ours = Wrapper().eval()
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(ours).load(str(tmp_path / "r18.pkl"))
    assert "not found in the checkpoint" not in caplog.text
    image = torch.randn(1, 3, 40, 64, generator=generator)
    with torch.no_grad():
        features = ours.backbone.bottom_up(image)
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        for t in (1, 2, 3, 4):
            x = getattr(theirs, f"layer{t}")(x)
            torch.testing.assert_close(features[f"res{t + 1}"], x)


def save_pickle(folder, data, protocol=2):
    file = folder / "weights.pkl"
    file.write_bytes(pickle.dumps(data, protocol=protocol))
    return str(file)


@pytest.mark.parametrize("protocol", [2, 5])
def test_caffe2_pickle(tmp_path, caplog, protocol):
    model = Wrapper()
    blobs = {
        "conv1_w": np.full((64, 3, 7, 7), 2.0, np.float32),
        "res_conv1_bn_s": np.full(64, 3.0, np.float32),
        "res_conv1_bn_b": np.full(64, 4.0, np.float32),
        "conv1_w_momentum": np.zeros(1, np.float32),
    }
    rest = DetectionCheckpointer(model).load(save_pickle(tmp_path, {"blobs": blobs}, protocol))
    conv = model.backbone.bottom_up.stem.conv1
    assert conv.weight.unique() == 2 and conv.norm.weight.unique() == 3
    assert conv.norm.bias.unique() == 4
    # a frozen norm without statistics in the file: those that do nothing
    assert conv.norm.running_mean.unique() == 0 and conv.norm.running_var.unique() == 1
    assert rest["__author__"] == "Caffe2" and "momentum" not in caplog.text


def test_zoo_pickle_is_taken_as_it_is(tmp_path):
    model = nn.Linear(2, 1)
    data = {"model": {"weight": np.ones((1, 2), np.float32)}, "__author__": "Zoo", "x": 3}
    assert DetectionCheckpointer(model).load(save_pickle(tmp_path, data))["x"] == 3
    assert model.weight.tolist() == [[1.0, 1.0]]


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.embedded_only
@pytest.mark.parametrize("kind", ["pkl", "pth"])
def test_files_that_would_run_code_are_refused(tmp_path, kind):
    data = {"model": {"weight": Evil(tmp_path / "touched")}, "__author__": "x"}
    if kind == "pkl":
        file = save_pickle(tmp_path, data)
    else:
        file = str(tmp_path / "weights.pth")
        torch.save(data, file)
    with pytest.raises(pickle.UnpicklingError, match="open"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(file)
    assert not (tmp_path / "touched").exists()


@pytest.mark.embedded_only
@pytest.mark.parametrize("evil", ["builtins eval", "os system", "numpy.core.multiarray array"])
def test_names_beside_the_allowed_ones_are_refused(tmp_path, evil):
    module, name = evil.split()
    file = tmp_path / "weights.pkl"
    file.write_bytes(f"c{module}\n{name}\n(S'1'\ntR.".encode())
    with pytest.raises(pickle.UnpicklingError, match=f"{module}.{name}"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(file))


@pytest.mark.embedded_only
def test_trainer_state_and_numpy_values_survive(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    saved = DetectionCheckpointer(model, str(tmp_path), optimizer=optimizer)
    extra = {
        "iteration": np.int64(3),
        "scale": np.float32(0.5),
        "anchors": np.arange(6.0).reshape(2, 3),
        "hooks": OrderedDict(LRScheduler={"base_lrs": [0.1], "last_epoch": 4}),
        "names": ("a", {1, 2}),
    }
    saved.save("model_x", **extra)
    other = nn.Linear(2, 1)
    fresh = torch.optim.SGD(other.parameters(), lr=0.3, momentum=0.9)
    checkpointer = DetectionCheckpointer(other, str(tmp_path), optimizer=fresh)
    rest = checkpointer.resume_or_load("", resume=True)
    assert np.array_equal(rest.pop("anchors"), extra.pop("anchors")) and rest == extra
    assert torch.equal(other.weight, model.weight) and fresh.param_groups[0]["lr"] == 0.1
    momentum = fresh.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, torch.ones(1, 2))


def test_files_of_a_save(tmp_path):
    checkpointer = DetectionCheckpointer(nn.Linear(1, 1), str(tmp_path))
    assert not checkpointer.has_checkpoint()
    checkpointer.save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.pth"
    assert checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 4}
    assert checkpointer.path_manager is PathManager


def test_resume_falls_back_to_the_given_weights_without_their_checkpointables(tmp_path):
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    DetectionCheckpointer(model, str(tmp_path / "a"), save_to_disk=False).save("nothing")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    DetectionCheckpointer(model, str(tmp_path / "b"), optimizer=optimizer).save("w")
    other = torch.optim.SGD(model.parameters(), lr=0.25)
    checkpointer = DetectionCheckpointer(model, str(tmp_path / "c"), optimizer=other)
    checkpointer.resume_or_load(str(tmp_path / "b" / "w.pth"), resume=True)
    assert other.param_groups[0]["lr"] == 0.25


def test_an_empty_path_loads_nothing():
    assert DetectionCheckpointer(nn.Linear(1, 1)).load("") == {}


def test_bare_state_dict_prefixes_and_data_parallel(tmp_path):
    model = nn.DataParallel(nn.Linear(2, 1))
    state = {"module.weight": np.full((1, 2), 5.0, np.float32), "module.bias": torch.ones(1)}
    torch.save({k: torch.as_tensor(v) for k, v in state.items()}, tmp_path / "bare.pth")
    DetectionCheckpointer(model).load(str(tmp_path / "bare.pth"))
    assert model.module.weight.tolist() == [[5.0, 5.0]] and model.module.bias == 1


def test_heuristics_by_query_also_for_data_parallel(tmp_path):
    model = nn.DataParallel(nn.Sequential(OrderedDict(head=nn.Linear(2, 1))))
    torch.save({"weight": torch.full((1, 2), 6.0)}, tmp_path / "part.pth")
    file = str(tmp_path / "part.pth")
    DetectionCheckpointer(model).load(file)
    assert model.module.head.weight.unique().numel() == 2
    DetectionCheckpointer(model).load(file + "?matching_heuristics=True")
    assert model.module.head.weight.tolist() == [[6.0, 6.0]]


def test_other_queries_are_refused(tmp_path):
    torch.save(nn.Linear(1, 1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="Unsupported query"):
        DetectionCheckpointer(nn.Linear(1, 1)).load(str(tmp_path / "w.pth?strict=1"))


class WithConstants(nn.Linear):
    def __init__(self):
        super().__init__(1, 1)
        self.register_buffer("pixel_mean", torch.zeros(1))
        self.register_buffer("pixel_std", torch.zeros(1))


def test_what_is_not_reported(tmp_path, caplog):
    state = {
        **nn.Linear(1, 1).state_dict(),
        "anchor_generator.cell_anchors.0": torch.zeros(1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(1),
    }
    torch.save({"model": state}, tmp_path / "old.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(WithConstants()).load(str(tmp_path / "old.pth"))
        assert caplog.text == ""
        state["strange"] = state.pop("bias")
        torch.save({"model": state}, tmp_path / "old.pth")
        DetectionCheckpointer(WithConstants()).load(str(tmp_path / "old.pth"))
    assert "strange" in caplog.text and "bias" in caplog.text
    assert "pixel" not in caplog.text and "cell_anchors" not in caplog.text


def test_tensors_of_another_shape_are_dropped_with_a_warning(tmp_path, caplog):
    model = nn.Linear(2, 1)
    before = model.weight.tolist()
    torch.save({"weight": torch.ones(3, 2), "bias": torch.ones(1)}, tmp_path / "w.pth")
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(model).load(str(tmp_path / "w.pth"))
    assert model.weight.tolist() == before and model.bias == 1 and "weight" in caplog.text


@pytest.mark.parametrize(
    "name, file",
    [
        ("MSRA/R-50", "MSRA/R-50.pkl"),
        ("MSRA/R-101", "MSRA/R-101.pkl"),
        ("FAIR/R-50-GN", "47261647/R-50-GN.pkl"),
        ("FAIR/R-101-GN", "47592356/R-101-GN.pkl"),
        ("FAIR/X-101-32x8d", "20171220/X-101-32x8d.pkl"),
    ],
)
def test_catalog_paths(name, file, tmp_path, monkeypatch):
    """Found in the cache, which is where a download would have put it."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    cached = tmp_path / "detectron" / "ImageNetPretrained" / file
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"x")
    assert PathManager.get_local_path(f"catalog://ImageNetPretrained/{name}") == str(cached)


@pytest.mark.parametrize(
    "name", ["Nobody/R-50", pytest.param("ImageNetPretrained/Nobody/R-50", marks=pytest.mark.embedded_only)]
)
def test_unknown_catalog_names_are_refused(name):
    with pytest.raises(RuntimeError, match="Nobody/R-50"):
        PathManager.get_local_path(f"catalog://{name}")
