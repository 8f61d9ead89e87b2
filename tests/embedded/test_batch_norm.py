"""Frozen, synchronised and cyclic batch norm, LayerNorm, get_norm."""

import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from detectron2.layers import CycleBatchNormList, FrozenBatchNorm2d, NaiveSyncBatchNorm, get_norm
from detectron2.layers.batch_norm import LayerNorm

CONVERT = FrozenBatchNorm2d.convert_frozen_batchnorm


def randomised(norm):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(torch.rand(norm.num_features, generator=g) + 0.5)
    return norm


# ------------------------------------------------------------------------------ FrozenBatchNorm2d
def test_frozen_state_and_repr():
    norm = FrozenBatchNorm2d(4)
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    assert not list(norm.parameters()) and repr(norm) == "FrozenBatchNorm2d(num_features=4, eps=1e-05)"
    assert norm.running_var.tolist() == (torch.ones(4) - 1e-5).tolist()
    assert norm.state_dict()._metadata[""]["version"] == 3


@pytest.mark.parametrize("requires_grad", [False, True])
def test_frozen_untouched_is_exactly_affine(device, requires_grad):
    norm = FrozenBatchNorm2d(3, eps=1e-3).to(device)
    norm.weight.copy_(torch.tensor([1.0, 2, 3]))
    norm.bias.copy_(torch.tensor([0.0, 5, -1]))
    x = torch.arange(24.0, device=device).view(2, 3, 2, 2).requires_grad_(requires_grad)
    expected = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, rtol=1e-6, atol=1e-6)


def test_frozen_both_paths_equal_batch_norm_in_eval():
    bn = randomised(nn.BatchNorm2d(3, eps=1e-2)).eval()
    frozen = CONVERT(bn).train()  # training mode changes nothing
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(frozen(x), bn(x))
    x.requires_grad_()
    out = frozen(x)
    torch.testing.assert_close(out, bn(x))
    (grad,) = torch.autograd.grad(out.sum(), x)
    scale = frozen.weight / (frozen.running_var + 1e-2).sqrt()
    torch.testing.assert_close(grad, scale[:, None, None].expand_as(grad))
    half = frozen(x.half())  # the affine is cast to the dtype of x
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), out, rtol=0.01, atol=0.01)


def test_frozen_loads_old_files_without_statistics():
    norm = randomised(FrozenBatchNorm2d(2))
    norm.load_state_dict({"weight": torch.tensor([2.0, 3]), "bias": torch.zeros(2)})  # no version
    assert norm.running_mean.tolist() == [0, 0] and norm.running_var.tolist() == [1, 1]
    assert norm.weight.tolist() == [2, 3]
    state = FrozenBatchNorm2d(2).state_dict()  # version 3
    del state["running_mean"]
    with pytest.raises(RuntimeError, match="running_mean"):
        FrozenBatchNorm2d(2).load_state_dict(state)


def test_convert_the_tree():
    tree = nn.Sequential(
        nn.Sequential(randomised(nn.BatchNorm2d(3, eps=0.1)), nn.GroupNorm(1, 3)),
        nn.SyncBatchNorm(3),
        nn.BatchNorm1d(3),
        nn.BatchNorm3d(3),
        NaiveSyncBatchNorm(3),
        nn.BatchNorm2d(3, affine=False),
    )
    bn = tree[0][0]
    assert CONVERT(tree) is tree
    kinds = [type(m).__name__ for m in tree]
    frozen = "FrozenBatchNorm2d"
    assert kinds == ["Sequential", frozen, "BatchNorm1d", "BatchNorm3d", frozen, frozen]
    assert type(tree[0][1]) is nn.GroupNorm
    new = tree[0][0]
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert torch.equal(getattr(new, name), getattr(bn, name))
    assert new.eps == 0.1 and not list(new.parameters())
    assert "num_batches_tracked" in new.state_dict()  # only after a conversion
    assert CONVERT(nn.BatchNorm2d(3).double()).weight.dtype == torch.float64
    assert tree[5].weight.tolist() == [1, 1, 1] and tree[5].bias.tolist() == [0, 0, 0]


def test_convert_a_root_and_back():
    bn = randomised(nn.BatchNorm2d(3, eps=0.1))
    bn.num_batches_tracked += 7
    frozen = CONVERT(bn)
    assert isinstance(frozen, FrozenBatchNorm2d) and frozen.num_batches_tracked == 7
    assert CONVERT(frozen) is frozen
    back = FrozenBatchNorm2d.convert_frozenbatchnorm2d_to_batchnorm2d(nn.Sequential(frozen))[0]
    assert type(back) is nn.BatchNorm2d and back.eps == 0.1
    assert all(torch.equal(v, back.state_dict()[k]) for k, v in bn.state_dict().items())
    assert all(p.requires_grad for p in back.parameters())
    back.weight.data += 1
    assert not torch.equal(back.weight, frozen.weight)  # copies


# ---------------------------------------------------------------------------------- other norms
def test_get_norm():
    assert get_norm(None, 8) is None and get_norm("", 8) is None
    expected = {
        "BN": nn.BatchNorm2d,
        "SyncBN": nn.SyncBatchNorm,
        "nnSyncBN": nn.SyncBatchNorm,
        "FrozenBN": FrozenBatchNorm2d,
        "GN": nn.GroupNorm,
        "naiveSyncBN": NaiveSyncBatchNorm,
        "naiveSyncBN_N": NaiveSyncBatchNorm,
        "LN": LayerNorm,
    }
    for name, kind in expected.items():
        assert type(get_norm(name, 64)) is kind
    assert get_norm("GN", 64).num_groups == 32
    assert get_norm("naiveSyncBN", 64)._stats_mode == ""
    assert get_norm("naiveSyncBN_N", 64)._stats_mode == "N"
    assert get_norm(lambda channels: nn.GroupNorm(4, channels), 8).num_groups == 4
    with pytest.raises(KeyError, match="BatchNorm"):
        get_norm("BatchNorm", 8)


def test_cycle_batch_norm_list():
    torch.manual_seed(0)
    norms = CycleBatchNormList(2, num_features=3, momentum=1.0)
    keys = list(norms.state_dict())
    assert keys[:4] == ["weight", "bias", "0.running_mean", "0.running_var"] and len(keys) == 8
    nn.init.constant_(norms.weight, 2.0)
    nn.init.constant_(norms.bias, 1.0)
    a, b = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4) + 5
    out = norms(a)
    torch.testing.assert_close(out, 2 * nn.functional.batch_norm(a, None, None, training=True) + 1)
    norms(b)
    mean_a, mean_b = a.mean((0, 2, 3)), b.mean((0, 2, 3))
    torch.testing.assert_close(norms[0].running_mean, mean_a)  # momentum 1
    torch.testing.assert_close(norms[1].running_mean, mean_b)
    norms(b)  # the third call uses norm 0 again
    torch.testing.assert_close(norms[0].running_mean, mean_b)
    plain = CycleBatchNormList(2, bn_class=nn.BatchNorm2d, num_features=3, affine=False)
    assert not list(plain.parameters()) and "weight" not in plain.state_dict()
    assert plain(a).std().item() == pytest.approx(1, abs=0.02)


def test_layer_norm_over_channels():
    norm = LayerNorm(2)
    assert {k: tuple(v.shape) for k, v in norm.state_dict().items()} == {"weight": (2,), "bias": (2,)}
    assert norm.eps == 1e-6
    # channels 1 and 5: mean 3, biased variance 4, so -1 and 1
    x = torch.randn(1, 2, 2, 3)
    x[..., 0, 0] = x[..., 1, 2] = torch.tensor([1.0, 5.0])
    assert norm(x)[0, :, 1, 2].tolist() == pytest.approx([-1, 1], abs=1e-5)
    nn.init.constant_(norm.weight, 3.0)
    norm.bias.data = torch.tensor([0.0, 10])
    assert norm(x)[0, :, 0, 0].tolist() == pytest.approx([-3, 13], abs=1e-5)


# ---------------------------------------------------------------------------- NaiveSyncBatchNorm
def test_naive_sync_alone_is_plain_batch_norm():
    x = torch.randn(2, 3, 4, 4)
    for training in (True, False):
        sync, plain = NaiveSyncBatchNorm(3).train(training), nn.BatchNorm2d(3).train(training)
        assert torch.equal(sync(x), plain(x))
        assert torch.equal(sync.running_var, plain.running_var)  # unbiased here


def test_naive_sync_refuses_other_modes():
    with pytest.raises(AssertionError):
        NaiveSyncBatchNorm(3, stats_mode="mean")


def _batch():
    return torch.randn(6, 3, 4, 5, generator=torch.Generator().manual_seed(1)) * 2 + 1


def _forward_backward(norm, x):
    """Weights differ per position, so that the gradient is not trivially zero."""
    x = x.clone().requires_grad_()
    out = norm(x)
    (out * torch.linspace(0, 1, 3 * 4 * 5).view(3, 4, 5)).sum().backward()
    stats = [norm.running_mean, norm.running_var]
    return [t.detach().numpy() for t in (out, x.grad, norm.weight.grad, norm.bias.grad, *stats)]


CASES = {"even": ("", 3), "uneven": ("N", 2), "one_empty": ("N", 0)}  # mode, images of rank 0


def _far_half_batch():
    """In half precision the mean of x^2 (about 2600) minus mean^2 would be off by units."""
    return (_batch() + 50).half()


def _worker(rank, port, queue):
    address = f"tcp://127.0.0.1:{port}"
    torch.distributed.init_process_group("gloo", address, rank=rank, world_size=2)
    torch.set_num_threads(1)
    results = {}
    for name, (mode, split) in CASES.items():
        x = _batch()[:split] if rank == 0 else _batch()[split:]
        results[name] = _forward_backward(randomised(NaiveSyncBatchNorm(3, stats_mode=mode)), x)
    half = _far_half_batch()[rank::2]
    results["half"] = _forward_backward(randomised(NaiveSyncBatchNorm(3)), half)
    norm = randomised(NaiveSyncBatchNorm(3, stats_mode="N"))
    results["all_empty"] = _forward_backward(norm, _batch()[:0])
    norm = randomised(NaiveSyncBatchNorm(3)).eval()
    results["eval"] = _forward_backward(norm, _batch())
    try:
        NaiveSyncBatchNorm(3)(_batch()[:0])
        results["error"] = ""
    except AssertionError as e:
        results["error"] = f"refused: {e}"
    queue.put((rank, results))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    method = "spawn" if torch.cuda.is_initialized() else "fork"  # fork starts without imports
    queue = mp.get_context(method).Queue()
    context = mp.start_processes(_worker, args=(port, queue), nprocs=2, join=False, start_method=method)
    results = dict(queue.get(timeout=120) for _ in range(2))
    while not context.join():
        pass
    return [results[0], results[1]]


def _whole_batch(momentum_var):
    """One process with the whole batch; running_var with the biased variance."""
    norm = randomised(nn.BatchNorm2d(3))
    start = norm.running_var.clone()
    result = _forward_backward(norm, _batch())
    biased = _batch().var(dim=(0, 2, 3), correction=0)
    result[-1] = (start + momentum_var * (biased - start)).numpy()
    return result


@pytest.mark.parametrize("name", sorted(CASES))
def test_two_ranks_equal_one_process(two_ranks, name):
    zero, one = (torch_list(r[name]) for r in two_ranks)
    out, grad, weight_grad, bias_grad, mean, var = torch_list(_whole_batch(momentum_var=0.1))
    tol = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(torch.cat([zero[0], one[0]]), out, **tol)
    torch.testing.assert_close(torch.cat([zero[1], one[1]]), grad, **tol)
    assert grad.abs().max() > 0.01
    torch.testing.assert_close(zero[2] + one[2], weight_grad, rtol=1e-4, atol=1e-3)  # batch sums
    torch.testing.assert_close(zero[3] + one[3], bias_grad, rtol=1e-4, atol=1e-3)
    for rank in (zero, one):
        torch.testing.assert_close(rank[4:], [mean, var], **tol)


def test_half_input_is_computed_in_float32(two_ranks):
    expected = randomised(nn.BatchNorm2d(3))(_far_half_batch().float())
    for rank, results in enumerate(two_ranks):
        out = torch.from_numpy(results["half"][0])
        assert out.dtype == torch.float16
        torch.testing.assert_close(out.float(), expected[rank::2], rtol=1e-2, atol=1e-2)


def torch_list(arrays):
    return [torch.from_numpy(a) for a in arrays]


def test_no_image_anywhere_leaves_the_statistics_alone(two_ranks):
    start = randomised(nn.BatchNorm2d(3))
    for results in two_ranks:
        out, grad, weight_grad, _, mean, var = torch_list(results["all_empty"])
        assert out.shape == grad.shape == (0, 3, 4, 5) and weight_grad.abs().sum() == 0
        assert torch.equal(mean, start.running_mean) and torch.equal(var, start.running_var)


def test_eval_on_two_ranks_is_plain(two_ranks):
    expected = torch_list(_forward_backward(randomised(nn.BatchNorm2d(3)).eval(), _batch()))
    torch.testing.assert_close(torch_list(two_ranks[0]["eval"]), expected)


def test_default_mode_refuses_an_empty_batch(two_ranks):
    for results in two_ranks:
        assert results["error"].startswith("refused")
