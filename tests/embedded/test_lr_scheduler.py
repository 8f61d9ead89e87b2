"""Learning rate schedules."""

import logging

import pytest
import torch
from fvcore.common.param_scheduler import ConstantParamScheduler, CosineParamScheduler, MultiStepParamScheduler
from torch import nn

from detectron2.config import get_cfg
from detectron2.solver import LRMultiplier, LRScheduler, WarmupParamScheduler, build_lr_scheduler


def make_optimizer(lr=0.1):
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def make_cfg(name="WarmupMultiStepLR", **solver):
    cfg = get_cfg()
    cfg.SOLVER.LR_SCHEDULER_NAME = name
    settings = dict(BASE_LR=0.1, MAX_ITER=20, STEPS=(10, 15), WARMUP_ITERS=4, WARMUP_FACTOR=0.001)
    for key, value in {**settings, **solver}.items():
        cfg.SOLVER[key] = value
    return cfg


def rates(scheduler, steps):
    """The rate of each step; `scheduler` is stepped after each."""
    out = []
    for _ in range(steps):
        out.append(round(scheduler.optimizer.param_groups[0]["lr"], 6))
        scheduler.optimizer.step()
        scheduler.step()
    return out


def test_multi_step_with_linear_warmup():
    scheduler = build_lr_scheduler(make_cfg(), make_optimizer())
    # 0.1 * (0.001 + i/4 * 0.999), then 0.1, a tenth of it from 10 and again from 15 on
    warmup = [0.0001, 0.025075, 0.05005, 0.075025]
    assert rates(scheduler, 20) == warmup + [0.1] * 6 + [0.01] * 5 + [0.001] * 5


def test_constant_warmup():
    cfg = make_cfg(WARMUP_METHOD="constant", WARMUP_FACTOR=0.5)
    expected = [0.05] * 4 + [0.1] * 6 + [0.01] * 5 + [0.001] * 5
    assert rates(build_lr_scheduler(cfg, make_optimizer()), 20) == expected


def test_cosine_ends_at_base_lr_end():
    cfg = make_cfg("WarmupCosineLR", WARMUP_ITERS=0, BASE_LR_END=0.02)
    scheduler = build_lr_scheduler(cfg, make_optimizer())
    values = rates(scheduler, 20)
    # 0.02 + 0.08 * (1 + cos(pi * i / 20)) / 2; cos(pi / 4) = 0.707107
    assert values[0] == 0.1 and values[5] == 0.088284 and values[10] == 0.06
    assert scheduler.get_last_lr() == [pytest.approx(0.02)]


def test_warmup_ends_on_the_curve_it_leads_to():
    cfg = make_cfg("WarmupCosineLR", WARMUP_ITERS=10, WARMUP_FACTOR=0.0)
    values = rates(build_lr_scheduler(cfg, make_optimizer()), 20)
    # cosine at 10 of 20 is 0.05: the warm-up goes there, not to 0.1
    assert values[5] == 0.025 and values[10] == 0.05


def test_rescaled_interval_squeezes_the_schedule_behind_the_warmup():
    cosine = CosineParamScheduler(1.0, 0.0)
    scheduler = WarmupParamScheduler(cosine, 0.1, 0.5, "linear", rescale_interval=True)
    # up to cosine(0) = 1 at the half, then all of it: cosine(0.5) = 0.5 at three quarters
    assert [round(scheduler(w), 6) for w in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        0.1, 0.55, 1.0, 0.5, 0.0,
    ]  # fmt: skip


def fixed_gamma_cfg():
    return make_cfg("WarmupStepWithFixedGammaLR", WARMUP_ITERS=0, NUM_DECAYS=3, GAMMA=0.5)


def test_fixed_gamma_decays_after_equal_parts():
    scheduler = build_lr_scheduler(fixed_gamma_cfg(), make_optimizer())
    values = rates(scheduler, 19)
    assert values == [0.1] * 5 + [0.05] * 5 + [0.025] * 5 + [0.0125] * 4


@pytest.mark.embedded_only
def test_fixed_gamma_survives_the_step_after_the_last_iteration():
    assert len(rates(build_lr_scheduler(fixed_gamma_cfg(), make_optimizer()), 20)) == 20


def test_steps_beyond_the_end_are_ignored_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        scheduler = build_lr_scheduler(make_cfg(STEPS=(10, 25)), make_optimizer())
    assert "larger than SOLVER.MAX_ITER" in caplog.text
    assert rates(scheduler, 20)[4:] == [0.1] * 6 + [0.01] * 10


def test_warmup_longer_than_training_is_cut():
    values = rates(build_lr_scheduler(make_cfg(STEPS=(), WARMUP_ITERS=40), make_optimizer()), 20)
    assert values[0] == 0.0001 and values[10] == 0.05005  # half way to 0.1


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="Unknown LR scheduler: StepLR"):
        build_lr_scheduler(make_cfg("StepLR"), make_optimizer())
    with pytest.raises(ValueError, match="Unknown warmup method: exponential"):
        WarmupParamScheduler(ConstantParamScheduler(1.0), 0.1, 0.1, "exponential")


def test_multiplier_refuses_torch_schedulers():
    optimizer = make_optimizer()
    with pytest.raises(ValueError, match="ParamScheduler"):
        LRMultiplier(optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 1), 10)


def test_multiplier_state_has_no_schedule_and_groups_keep_their_own_base_rate():
    params = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 0.4))])
    schedule = MultiStepParamScheduler([1.0, 0.5], num_updates=4, milestones=[2])
    scheduler = LRMultiplier(optimizer, schedule, max_iter=4)
    assert isinstance(scheduler, LRScheduler)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == [0.05, 0.2]
    assert scheduler.state_dict() == {"base_lrs": [0.1, 0.4], "last_epoch": 2}


def test_multiplier_started_at_a_later_iteration():
    optimizer = make_optimizer()
    optimizer.param_groups[0]["initial_lr"] = 0.1
    schedule = MultiStepParamScheduler([1.0, 0.5], num_updates=4, milestones=[2])
    LRMultiplier(optimizer, schedule, max_iter=4, last_iter=1)  # iteration 2 comes next
    assert optimizer.param_groups[0]["lr"] == 0.05
