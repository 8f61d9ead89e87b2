"""LIP-ResNet: sizes of the paper's and the repository's tables, the start, gradients, freezing."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.solver.build import get_default_optimizer_params
from projects.LIP.pooling import LIPPool2d, Pooling
from projects.LIP.resnet import LIPBottleneckBlock, lip_resnet
from tests.projects.lip.cost import ROUNDED, cost
from tests.projects.lip.nets import ALL, images, narrow_lip_resnet, three_blocks

IMAGENET = {"norm": "BN", "num_classes": 1000}
BLOCKS = ["res3", "res4", "res5"]
PROJECTION = Pooling(logit="projection")


@pytest.mark.parametrize(
    "kwargs, parameters, conv_and_fc, total",
    [
        ({"depth": 50}, 23_864_232, 5.300, 5.342),
        ({"depth": 50, "pooling": Pooling(width=64)}, 23_244_968, 4.620, 4.659),
        ({"depth": 50, "pooling": PROJECTION}, 24_534_440, 4.603, 4.640),
        ({"depth": 50, "sites": []}, 25_557_032, 4.089, 4.112),
        ({"depth": 101}, 42_856_360, 9.012, 9.064),
        # controls: average pooling in the blocks, max pooling at the stem
        ({"depth": 50, "pooling": Pooling(kind="average"), "sites": BLOCKS}, 22_804_520, 3.781, 3.803),
    ],
)
def test_parameters_and_flops(kwargs, parameters, conv_and_fc, total):
    """At 224 x 224; the official models' are 23.9 M, 5.33 G and 42.9 M, 9.06 G."""
    measured = cost(lip_resnet(**kwargs, **IMAGENET))
    assert measured[0] == parameters
    assert measured[1:] == pytest.approx((conv_and_fc, total), abs=ROUNDED)


@pytest.mark.parametrize(
    "kwargs, parameters",
    [
        ({"depth": 50, "pooling": Pooling(width=256)}, 25_766_312),
        ({"depth": 101, "pooling": Pooling(width=64)}, 42_237_096),
        ({"depth": 101, "pooling": Pooling(width=256)}, 44_758_440),
        ({"depth": 101, "pooling": PROJECTION}, 43_526_568),
        ({"depth": 101, "sites": []}, 44_549_160),
        ({"depth": 50, "pooling": Pooling(kind="average"), "sites": BLOCKS, "kernel_after": 3}, 25_557_032),
        # the 3x3 convolutions stay 3x3: 8 (128^2 + 256^2 + 512^2) more than with 1x1
        ({"depth": 50, "kernel_after": 3}, 23_864_232 + 8 * (128**2 + 256**2 + 512**2)),
        # without the stem's 3x3 logit module of 64 channels and its norm
        ({"depth": 50, "sites": BLOCKS}, 23_864_232 - 36_992),
        ({"depth": 50, "pooling": Pooling(gate=None)}, 23_864_232),
        # scale and shift alone differ from the plain convolution's bias: 1x1 with bias at seven maps
        (
            {"depth": 50, "pooling": Pooling(logit="plain")},
            22_804_520 + sum(c * c + c for c in (64, 128, 256, 256, 512, 512, 1024)),
        ),
    ],
)
def test_parameters_of_ablations(kwargs, parameters):
    with torch.device("meta"):
        net = lip_resnet(**kwargs, **IMAGENET)
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize("size", [(224, 224), (800, 1344), (97, 131)])
def test_shapes_equal_the_plain_backbones(size):
    with torch.device("meta"):
        lip, plain = lip_resnet(out_features=ALL), lip_resnet(sites=[], out_features=ALL)
        x = torch.zeros(1, 3, *size)
    assert lip.output_shape() == plain.output_shape()
    assert lip.output_shape()["res4"] == ShapeSpec(channels=1024, stride=16)
    outputs = {name: y.shape for name, y in lip(x).items()}
    assert outputs == {name: y.shape for name, y in plain(x).items()}
    h, w = (-(-side // 16) for side in size)
    assert outputs["res4"] == (1, 1024, h, w)


def test_sites():
    """Names of the modules that pool with LIP; a branch that does not keeps its strided convolution."""

    def pools(sites):
        net = narrow_lip_resnet(sites=sites)
        return net, [name for name, m in net.named_modules() if isinstance(m, LIPPool2d)]

    _, every = pools(["stem", "res3", "res4", "res5"])
    assert sorted(every) == sorted(["stem.pool"] + [f"{s}.0.{b}_pool" for s in BLOCKS for b in ("main", "shortcut")])
    net, some = pools(["res3.main", "res5.shortcut", "res4.main", "res4.shortcut"])
    assert sorted(some) == ["res3.0.main_pool", "res4.0.main_pool", "res4.0.shortcut_pool", "res5.0.shortcut_pool"]
    assert isinstance(net.stem.pool, nn.MaxPool2d)
    assert net.res3[0].shortcut.stride == (2, 2) and net.res3[0].conv2.kernel_size == (1, 1)
    assert net.res5[0].conv2.stride == (2, 2) and net.res5[0].conv2.kernel_size == (3, 3)
    x = images()
    assert {k: v.shape for k, v in net(x).items()} == {k: v.shape for k, v in narrow_lip_resnet()(x).items()}


@pytest.mark.parametrize("init", ["zero_conv", "zero_gamma"])
def test_starts_as_the_net_with_average_pooling(init):
    lip = narrow_lip_resnet(pooling=Pooling(width=8, init=init)).eval()
    average = narrow_lip_resnet(pooling=Pooling(kind="average")).eval()
    left = average.load_state_dict(lip.state_dict(), strict=False)
    assert not left.missing_keys and left.unexpected_keys
    assert all("logit" in key for key in left.unexpected_keys)
    x = images(2, 75, 97)
    with torch.no_grad():
        for name, y in lip(x).items():
            torch.testing.assert_close(y, average(x)[name], rtol=1e-4, atol=1e-4)


def test_gradients_of_the_first_two_steps():
    """All parameters get one; the scales behind zero convolutions have none at first and one after the first step."""
    torch.manual_seed(0)
    net = three_blocks(num_classes=5)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    zero = [m.logit for m in net.modules() if isinstance(m, LIPPool2d)]
    assert len(zero) == 3 and all(m.weight.abs().max() == 0 for m in zero)
    for step in range(2):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images())["linear"], torch.tensor([1, 3])).backward()
        assert [n for n, p in net.named_parameters() if p.grad is None] == []
        for logit in zero:
            assert logit.weight.grad.abs().max() > 0
            assert (logit.norm.weight.grad.abs().max() == 0) == (step == 0)
        optimizer.step()


def trainable(module):
    return [p.requires_grad for p in module.parameters()]


def test_freezing():
    """Stem and res2 stop, the stem's LIP unless told otherwise; instance norms elsewhere stay as they are."""
    for freeze_stem_pool in (True, False):
        net = narrow_lip_resnet(freeze_at=2, freeze_stem_pool=freeze_stem_pool)
        assert not any(trainable(net.stem.conv1)) and not any(trainable(net.res2))
        assert isinstance(net.stem.conv1.norm, FrozenBatchNorm2d)
        assert set(trainable(net.stem.pool)) == {not freeze_stem_pool}
        assert isinstance(net.stem.pool.logit.norm, nn.InstanceNorm2d)
        assert all(trainable(net.res3))
    net = narrow_lip_resnet(freeze_at=2, norm="FrozenBN")
    assert not [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    logits = net.res3[0].shortcut_pool.logit
    assert isinstance(logits.norm, nn.InstanceNorm2d) and all(trainable(logits))


def test_instance_norms_survive_conversion_eval_and_ddp(tmp_path):
    """Output for equal-size images is the same in a batch, alone, frozen, in eval mode and inside DDP."""
    torch.manual_seed(0)
    net = three_blocks(init="random").eval()
    x = images()
    expected = net(x)["res3"]
    torch.testing.assert_close(torch.cat([net(x[i : i + 1])["res3"] for i in (0, 1)]), expected)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(net)
        y = wrapped(x)["res3"]
        y.square().sum().backward()
    finally:
        dist.destroy_process_group()
    torch.testing.assert_close(y, expected)
    assert net.stem.pool.logit.norm.weight.grad.abs().max() > 0
    names = [name for name, m in net.named_modules() if isinstance(m, nn.InstanceNorm2d)]
    frozen = FrozenBatchNorm2d.convert_frozen_batchnorm(net)
    assert names == [name for name, m in frozen.named_modules() if isinstance(m, nn.InstanceNorm2d)] and names
    torch.testing.assert_close(frozen(x)["res3"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(frozen.train()(x)["res3"], expected, rtol=1e-4, atol=1e-4)
    frozen.freeze(3)
    torch.testing.assert_close(frozen(x)["res3"], expected, rtol=1e-4, atol=1e-4)


def test_instance_norms_decay_as_norms():
    """WEIGHT_DECAY_NORM counts them: their parameters are in no group that decays."""
    net = three_blocks()
    groups = get_default_optimizer_params(net, weight_decay=0.5, weight_decay_norm=0.0)
    decays = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    logit = net.stem.pool.logit
    assert decays[id(logit.norm.weight)] == decays[id(logit.norm.bias)] == 0.0
    assert decays[id(logit.weight)] == 0.5


def test_shared_trunk_sees_the_block_input():
    """Both heads read one trunk's features of the block's input; by hand from the block's own parts."""
    torch.manual_seed(0)
    block = LIPBottleneckBlock(16, 32, bottleneck_channels=8, norm="BN", pooling=Pooling(width=4, init="random")).eval()
    x = torch.randn(2, 16, 10, 12)
    features = block.logit_trunk(x)
    main = block.main_pool(block.conv1(x).relu(), features)
    main = block.conv3(block.conv2(main).relu())
    expected = (main + block.shortcut(block.shortcut_pool(x, features))).relu()
    torch.testing.assert_close(block(x), expected)
    assert block.main_pool.logit.weight.shape == (8, 4, 1, 1) and block.shortcut_pool.logit.weight.shape == (
        16,
        4,
        1,
        1,
    )


@pytest.mark.parametrize("kind", ["lip", "softpool", "detail", "average", "max"])
def test_overfits_two_images(kind):
    torch.manual_seed(0)
    net = three_blocks(num_classes=2, kind=kind)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(20):
        loss = nn.functional.cross_entropy(net(images())["linear"], torch.tensor([0, 1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_finite(device, dtype):
    torch.manual_seed(0)
    net = three_blocks(num_classes=2).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    x, labels = images().to(device), torch.tensor([0, 1], device=device)
    for _ in range(5 if (device, dtype) == ("cpu", torch.float16) else 50):  # slow there
        with torch.autocast(device, dtype=dtype):
            loss = nn.functional.cross_entropy(net(x)["linear"].float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
    assert all(p.isfinite().all() for p in net.parameters())


def test_deformable_blocks_and_zero_residual():
    net = narrow_lip_resnet(deform_on_per_stage=[False, False, True, True], zero_init_residual=True)
    assert not hasattr(net.res4[0], "conv2_offset") and hasattr(net.res4[1], "conv2_offset")
    last = [block.conv3.norm.weight for stage in net.stages for block in stage]
    assert len(last) == 16 and all(w.abs().max() == 0 for w in last)


def test_refusals():
    with pytest.raises(ValueError, match="depth must be 50, 101 or 152, got 34"):
        lip_resnet(34)
    with pytest.raises(ValueError, match="no site 'res2'"):
        lip_resnet(sites=["res2"])
    with pytest.raises(ValueError, match="no site 'res3.side'"):
        lip_resnet(sites=["res3.side"])
    with pytest.raises(ValueError, match="zero_init_residual needs a trainable norm, got norm='FrozenBN'"):
        narrow_lip_resnet(norm="FrozenBN", zero_init_residual=True)
    with pytest.raises(ValueError, match="stride=1: use BottleneckBlock"):
        LIPBottleneckBlock(8, 8, bottleneck_channels=4, stride=1)
    with pytest.raises(ValueError, match="branches must be among main, shortcut"):
        LIPBottleneckBlock(8, 8, bottleneck_channels=4, branches=["left"])
    with pytest.raises(ValueError, match="kernel_after must be 1 or 3, got 5"):
        LIPBottleneckBlock(8, 8, bottleneck_channels=4, kernel_after=5)
    with pytest.raises(ValueError, match="more than 1 spatial element"):  # torch's own: images of at most 16 px
        narrow_lip_resnet().eval()(torch.zeros(1, 3, 16, 16))
