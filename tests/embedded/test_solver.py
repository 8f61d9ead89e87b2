"""Parameter groups, optimizers and gradient clipping."""

import json
import sys

import pytest
import torch
from torch import nn

from detectron2.config import get_cfg
from detectron2.layers import get_norm
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import (
    GradientClipType,
    _expand_param_groups,
    _generate_optimizer_class_with_gradient_clipping,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from tests.paths import SHARED_FILES


def make_model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LayerNorm(4), nn.Linear(4, 2))


def named(model, groups):
    """Groups with names in place of parameters."""
    names = {p: n for n, p in model.named_parameters()}
    return [{**g, "params": [names[p] for p in g["params"]]} for g in groups]


def test_groups_are_merged_in_order_and_hold_only_what_was_given():
    model = make_model()
    everything = [n for n, _ in model.named_parameters()]
    assert named(model, get_default_optimizer_params(model)) == [{"params": everything}]
    assert named(model, get_default_optimizer_params(model, weight_decay_norm=0.0)) == [
        {"params": ["0.weight", "0.bias", "3.weight", "3.bias"]},
        {"params": ["1.weight", "1.bias", "2.weight", "2.bias"], "weight_decay": 0.0},
    ]


def test_bias_settings_win_over_those_of_norm_layers():
    model = make_model()
    groups = get_default_optimizer_params(
        model, base_lr=0.1, weight_decay=0.5, weight_decay_norm=0.25, bias_lr_factor=2.0,
        weight_decay_bias=0.0,
    )  # fmt: skip
    assert named(model, groups) == [
        {"params": ["0.weight", "3.weight"], "lr": 0.1, "weight_decay": 0.5},
        {"params": ["0.bias", "1.bias", "2.bias", "3.bias"], "lr": 0.2, "weight_decay": 0.0},
        {"params": ["1.weight", "2.weight"], "lr": 0.1, "weight_decay": 0.25},
    ]


def test_channel_first_layer_norm_is_no_norm_layer_here():
    model = nn.Sequential(get_norm("LN", 4), get_norm("GN", 32), get_norm("BN", 4))
    groups = get_default_optimizer_params(model, weight_decay_norm=0.0)
    assert named(model, groups) == [
        {"params": ["0.weight", "0.bias"]},
        {"params": ["1.weight", "1.bias", "2.weight", "2.bias"], "weight_decay": 0.0},
    ]


def test_shared_parameters_come_once_and_frozen_ones_never():
    model = make_model()
    model.add_module("again", model[3])
    tied = nn.LayerNorm(4)
    tied.weight = model[1].bias = model[0].bias  # the first place counts, which is no norm layer
    model.add_module("tied", tied)
    model[0].weight.requires_grad = False
    groups = get_default_optimizer_params(model, weight_decay_norm=0.0)
    assert named(model, groups) == [
        {"params": ["0.bias", "3.weight", "3.bias"]},
        {"params": ["1.weight", "2.weight", "2.bias", "tied.bias"], "weight_decay": 0.0},
    ]


def test_lr_factor_gets_full_names_and_overrides_win():
    model = make_model()
    groups = get_default_optimizer_params(
        model,
        base_lr=1.0,
        lr_factor_func=lambda name: 0.1 if name.startswith("3.") else 1.0,
        overrides={"bias": {"lr": 7.0, "momentum": 0.0}},
    )
    assert named(model, groups) == [
        {"params": ["0.weight", "1.weight", "2.weight"], "lr": 1.0},
        {"params": ["0.bias", "1.bias", "2.bias", "3.bias"], "lr": 7.0, "momentum": 0.0},
        {"params": ["3.weight"], "lr": 0.1},
    ]


@pytest.mark.embedded_only
def test_given_overrides_are_not_changed():
    overrides = {"weight": {"lr": 3.0}}
    get_default_optimizer_params(make_model(), weight_decay_bias=0.0, overrides=overrides)
    assert overrides == {"weight": {"lr": 3.0}}


@pytest.mark.parametrize(
    "kwargs, match",
    [
        (dict(bias_lr_factor=2.0), "bias_lr_factor requires base_lr"),
        (dict(lr_factor_func=lambda n: 1.0), "lr_factor_func requires base_lr"),
        (dict(weight_decay_bias=0.0, overrides={"bias": {"lr": 1.0}}), "Conflicting overrides for 'bias'"),
    ],
)
def test_contradictions_are_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        get_default_optimizer_params(make_model(), **kwargs)


def test_expand_lets_later_settings_update_and_keeps_names():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(2))
    groups = _expand_param_groups(
        [
            {"params": [a, b], "lr": 1, "param_names": ["a", "b"]},
            {"params": [a], "lr": 2, "weight_decay": 3, "param_names": ["a"]},
        ]
    )
    assert groups == [
        {"params": [a], "lr": 2, "weight_decay": 3, "param_names": ["a"]},
        {"params": [b], "lr": 1, "param_names": ["b"]},
    ]


def test_reduce_keeps_the_order_of_first_appearance_and_names():
    a, b, c = (nn.Parameter(torch.zeros(n)) for n in (1, 2, 3))
    groups = reduce_param_groups(
        [
            {"params": [a], "lr": 1, "param_names": ["a"]},
            {"params": [b], "lr": 2, "param_names": ["b"]},
            {"params": [c], "lr": 1, "param_names": ["c"]},
        ]
    )
    assert groups == [
        {"params": [a, c], "lr": 1, "param_names": ["a", "c"]},
        {"params": [b], "lr": 2, "param_names": ["b"]},
    ]


def test_build_optimizer_reads_the_config():
    cfg = get_cfg()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.NESTEROV = 0.3, 0.8, True
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.01, 0.02
    cfg.SOLVER.WEIGHT_DECAY_BIAS, cfg.SOLVER.BIAS_LR_FACTOR = 0.04, 2.0
    optimizer = build_optimizer(cfg, nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)))
    assert type(optimizer) is torch.optim.SGD
    conv, bias, norm = optimizer.param_groups
    for group in (conv, bias, norm):
        assert (group["momentum"], group["nesterov"], group["foreach"]) == (0.8, True, True)
    assert [g["lr"] for g in (conv, bias, norm)] == [0.3, 0.6, 0.3]
    assert [g["weight_decay"] for g in (conv, bias, norm)] == [0.01, 0.04, 0.02]


def clip_cfg(kind, value, norm_type=2.0):
    cfg = get_cfg()
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE, cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = kind, value
    cfg.SOLVER.CLIP_GRADIENTS.NORM_TYPE = norm_type
    return cfg


def step_with_gradients(optimizer_class, *grads):
    """Negative change of zero parameters by one SGD step of rate 1: the clipped gradients."""
    params = [nn.Parameter(torch.zeros(len(g))) for g in grads]
    optimizer = optimizer_class(params, lr=1.0)
    for p, g in zip(params, grads):
        p.grad = torch.tensor(g)
    optimizer.step()
    return [[round(-v, 4) + 0.0 for v in p.tolist()] for p in params]


@pytest.mark.parametrize(
    "cfg, expected",
    [
        (clip_cfg("value", 1.0), [[1.0, -1.0], [0.3, 0.4]]),
        # each parameter by itself: |(3, -4)| = 5 -> (0.6, -0.8); |(0.3, 0.4)| = 0.5 stays
        (clip_cfg("norm", 1.0), [[0.6, -0.8], [0.3, 0.4]]),
        # largest magnitude 4 -> 2
        (clip_cfg("norm", 2.0, float("inf")), [[1.5, -2.0], [0.3, 0.4]]),
    ],
)
def test_gradients_are_clipped_per_parameter(cfg, expected):
    clipping = maybe_add_gradient_clipping(cfg, torch.optim.SGD)
    assert clipping.__name__ == "SGDWithGradientClip" and issubclass(clipping, torch.optim.SGD)
    assert step_with_gradients(clipping, [3.0, -4.0], [0.3, 0.4]) == expected


def test_clipping_over_the_whole_model():
    clipping = _generate_optimizer_class_with_gradient_clipping(
        torch.optim.SGD, global_clipper=lambda ps: nn.utils.clip_grad_norm_(ps, 1.0)
    )
    # |(0, 12, 5)| = 13
    assert step_with_gradients(clipping, [0.0, 12.0], [5.0]) == [[0.0, 0.9231], [0.3846]]


def test_two_kinds_of_clipping_exclude_each_other():
    with pytest.raises(AssertionError, match="per-parameter clipping and global clipping"):
        _generate_optimizer_class_with_gradient_clipping(torch.optim.SGD, per_param_clipper=print, global_clipper=print)


def test_an_instance_changes_its_class_and_disabled_clipping_changes_nothing():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters())
    assert maybe_add_gradient_clipping(get_cfg(), optimizer) is optimizer
    assert type(optimizer) is torch.optim.AdamW
    assert maybe_add_gradient_clipping(clip_cfg("value", 1.0), optimizer) is optimizer
    assert type(optimizer).__name__ == "AdamWWithGradientClip"
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    called = []
    optimizer.step(lambda: called.append(1))  # a closure still runs
    assert called


@pytest.mark.embedded_only
@pytest.mark.parametrize("kind", ["value", "norm"])
def test_parameters_without_gradient_are_not_clipped(kind):
    clipping = maybe_add_gradient_clipping(clip_cfg(kind, 1.0), torch.optim.SGD)
    param = nn.Parameter(torch.ones(1))
    clipping([param], lr=1.0).step()
    assert param.item() == 1.0


def test_clip_types():
    assert [t.value for t in GradientClipType] == ["value", "norm"]
    with pytest.raises(ValueError, match="full_model"):
        maybe_add_gradient_clipping(clip_cfg("full_model", 1.0), torch.optim.SGD)


def test_recorded_numbers_of_upstream():
    folder = SHARED_FILES / "golden"
    if not folder.is_dir():
        pytest.skip("the recorded numbers are not on this machine")
    sys.path.insert(0, str(folder))
    try:
        import golden
    finally:
        sys.path.remove(str(folder))
    expected = json.loads((folder / "upstream.json").read_text())["solver"]
    differences = []
    golden.walk(expected, json.loads(json.dumps(golden.case_solver())), "solver", differences)
    assert not differences
