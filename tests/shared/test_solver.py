import pytest
import torch

from detectron2.config import instantiate
from detectron2.solver import LRMultiplier
from shared.config import load_config
from shared.solver import clip_global_norm, cosine_schedule, step_schedule
from tests.paths import ROOT


def rates(schedule, max_iter):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = LRMultiplier(optimizer, schedule, max_iter)
    out = []
    for _ in range(max_iter):
        out.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return out


def test_step_schedule_drops_at_its_fractions():
    lr = rates(step_schedule(18, warmup_iters=0), 18)
    # 2/3 and 8/9 of 18 are 12 and 16
    assert lr == pytest.approx([1.0] * 12 + [0.1] * 4 + [0.01] * 2)


def test_step_schedule_warms_up_linearly():
    lr = rates(step_schedule(18, warmup_iters=4, warmup_factor=0.2), 18)
    assert lr[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_schedule_ends_at_its_end_value():
    lr = rates(cosine_schedule(1000, end_value=0.1, warmup_iters=0), 1000)
    assert lr[0] == pytest.approx(1.0)
    assert lr[500] == pytest.approx(0.55)  # halfway between 1 and 0.1
    assert lr[-1] == pytest.approx(0.1, abs=1e-4)


def test_warm_up_longer_than_the_run_is_cut():
    assert rates(step_schedule(3, warmup_iters=1000), 3)[0] == pytest.approx(0.001)


@pytest.mark.parametrize("name", ["retinanet_r50_fpn_1x", "retinanet_r50_fpn_2x"])
@pytest.mark.parametrize("max_iter", [None, 900])
def test_baseline_schedules_follow_max_iter(name, max_iter):
    overrides = ["lr_multiplier.warmup_iters=0"]
    overrides += [f"train.max_iter={max_iter}"] if max_iter else []
    cfg = load_config(str(ROOT / f"configs/baselines/{name}.py"), overrides)
    total = max_iter or {"1": 90_000, "2": 180_000}[name[-2]]
    assert cfg.train.max_iter == total
    schedule = instantiate(cfg.lr_multiplier)
    assert schedule(0.66) == pytest.approx(1.0)
    assert schedule(0.67) == pytest.approx(0.1)
    assert schedule(0.88) == pytest.approx(0.1)
    assert schedule(0.89) == pytest.approx(0.01)


@pytest.mark.parametrize("drops", [[0.9, 0.5], [0.0, 0.5], [0.5, 1.0]])
def test_bad_drops_are_refused(drops):
    with pytest.raises(ValueError, match="drops must rise"):
        step_schedule(10, drops=drops)
    with pytest.raises(ValueError, match="max_iter must be positive"):
        step_schedule(0)


def test_clip_scales_all_gradients_together():
    a, b = (torch.nn.Parameter(torch.zeros(n)) for n in (2, 1))
    optimizer = clip_global_norm(torch.optim.SGD([a, b], lr=1.0), max_norm=1.0)
    a.grad, b.grad = torch.tensor([2.0, 3.0]), torch.tensor([6.0])
    optimizer.step()
    # norm sqrt(4 + 9 + 36) = 7: each gradient is divided by 7, so directions stay
    torch.testing.assert_close(a.data, torch.tensor([-2 / 7, -3 / 7]))
    torch.testing.assert_close(b.data, torch.tensor([-6 / 7]))
    assert isinstance(optimizer, torch.optim.SGD)


def test_clip_leaves_small_gradients_and_state_alone():
    a = torch.nn.Parameter(torch.zeros(2))
    optimizer = clip_global_norm(torch.optim.SGD([a], lr=1.0, momentum=0.9), max_norm=10.0)
    a.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    torch.testing.assert_close(a.data, torch.tensor([-3.0, -4.0]))
    other = torch.optim.SGD([a], lr=1.0, momentum=0.9)
    other.load_state_dict(optimizer.state_dict())
    torch.testing.assert_close(other.state[a]["momentum_buffer"], torch.tensor([3.0, 4.0]))


def test_clip_refuses_a_norm_of_zero():
    with pytest.raises(ValueError, match="must be positive"):
        clip_global_norm(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 0.0)


def test_config_key_turns_clipping_on():
    from shared.training.run import make_run

    cfg = load_config(str(ROOT / "tests/tiny/faster_rcnn.py"), ["train.clip_grad_norm=35"])
    run = make_run(cfg)
    optimizer = run.build_optimizer(torch.nn.Linear(2, 2))
    assert type(optimizer).__name__ == "SGDWithGlobalNormClip"
    assert "model" not in cfg.optimizer.params
    cfg = load_config(str(ROOT / "tests/tiny/faster_rcnn.yaml"))
    cfg.SOLVER.CLIP_GRADIENTS.GLOBAL_NORM = 35.0
    assert "GlobalNormClip" in type(make_run(cfg).build_optimizer(torch.nn.Linear(2, 2))).__name__
