"""Parameters and multiply-adds of a config's model, counted on the meta device: nothing is computed.

Multiply-adds are those of convolutions (deformable ones included), linear layers and matrix products in one inference.
What depends on the content of an image is fixed, so that a count is a property of the config: an R-CNN has as many
RoIs as its RPN keeps at inference, and a mask or grid head as many boxes as the detector reports. Sampling, poolings,
resizing and activations count nothing. `with_norms` adds what fvcore counts besides, and papers on classifiers print:
two for each value that a batch norm reads (five for instance, group and layer norm), one for each that a mean reads.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from copy import deepcopy
from unittest import mock

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair
from torch.utils.flop_counter import FlopCounterMode

from detectron2.config import CfgNode, instantiate
from detectron2.layers import DeformConv, FrozenBatchNorm2d, ModulatedDeformConv
from detectron2.modeling import GeneralizedRCNN, build_model, poolers
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers, fast_rcnn
from detectron2.structures import Boxes, Instances
from shared.ops import library
from shared.training_only import training_only_prefixes

Size = tuple[int, int]
CIFAR_SIDE = 32  # its test images are taken as they are
BATCH_NORMS = (nn.modules.batchnorm._BatchNorm, FrozenBatchNorm2d)
OTHER_NORMS = (nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm)


def build(cfg: DictConfig | CfgNode) -> nn.Module:
    """The config's model on the meta device."""
    if isinstance(cfg, CfgNode):
        cfg = cfg.clone()
        cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg) if isinstance(cfg, CfgNode) else instantiate(cfg.model)


def parameters(model: nn.Module) -> tuple[int, int]:
    """Of the model in training, frozen ones included, and of what inference needs."""
    spare = tuple(training_only_prefixes(model))
    counts = {name: p.numel() for name, p in model.named_parameters()}
    return sum(counts.values()), sum(n for name, n in counts.items() if not name.startswith(spare))


def mmdetection_parameters(cfg: DictConfig) -> int:
    """ "#Param" as MMDetection prints it: what trains, with the affine values of res3 to res5's batch norms.

    Stem and res2 are frozen; elsewhere norm="BN" stands in for frozen norms. For ResNets of LazyConfigs.
    """
    node = deepcopy(cfg.model)
    bottom_up = node.backbone.bottom_up
    bottom_up.stem.norm = bottom_up.stages.norm = "BN"
    with torch.device("meta"):
        return sum(p.numel() for p in instantiate(node).parameters() if p.requires_grad)


def image_size(cfg: DictConfig | CfgNode) -> Size:
    """(H, W) of test images: a classifier's crop, the largest landscape image that a detector's resize lets through."""
    if isinstance(cfg, CfgNode):
        return cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    mapper = cfg.dataloader.test.mapper
    for resize in mapper.get("augmentations") or []:
        if "max_size" in resize:
            short = resize.short_edge_length
            short = short if isinstance(short, int) else min(short)
            return short, max(short, resize.max_size)
    sizes = [t.size for t in mapper.get("transforms") or [] if "size" in t]
    side = sizes[-1] if sizes else CIFAR_SIDE
    return side, side


@torch.no_grad()
def multiply_adds(model: nn.Module, size: Size) -> tuple[float, float]:
    """G multiply-adds of one inference on an image of `size` (H, W), without and `with_norms`; see the module."""
    model.eval()
    norms, deformable = [], []
    mapping = {
        torch.ops.aten.mean: lambda x, *_, **__: norms.append(math.prod(x)) or 0,
        torch.ops.torchvision.deform_conv2d: _deform_conv_flops,
    }
    image = {"image": torch.zeros(3, *size, device="meta"), "height": size[0], "width": size[1]}
    hooks = list(_count_norms(model, norms))
    try:
        with _fixed_shapes(model, deformable), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            if isinstance(model, GeneralizedRCNN):
                model.inference([image], do_postprocess=False)
            else:
                model([image])
    finally:
        for hook in hooks:
            hook.remove()
    plain = counter.get_total_flops() / 2 + sum(deformable)  # torch counts a multiply-add twice
    return plain / 1e9, (plain + sum(norms)) / 1e9


def _deform_conv_flops(x, weight, *_, out_shape, **__) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def _count_norms(model: nn.Module, counts: list[int]) -> Iterator:
    for module in model.modules():
        if isinstance(module, BATCH_NORMS + OTHER_NORMS):
            each = 2 if isinstance(module, BATCH_NORMS) else 5
            yield module.register_forward_hook(lambda _, inputs, __, each=each: counts.append(each * inputs[0].numel()))


@contextmanager
def _fixed_shapes(model: nn.Module, deformable: list[int]) -> Iterator[None]:
    """Inside, nothing in the model looks at values, and deformable convolutions put their multiply-adds into the list.

    Plain PyTorch stands for the native ops, whose kernels the counter cannot look into.
    """
    replaced: dict[nn.Module, tuple[str, Callable]] = {}
    for module in model.modules():
        if isinstance(module, RPN):
            replaced[module] = "predict_proposals", _proposals_of(module)
        elif isinstance(module, ROIPooler):
            replaced[module] = "forward", _pool_of(module)
        elif isinstance(module, FastRCNNOutputLayers):
            replaced[module] = "inference", _detections_of(module)
        elif isinstance(module, DenseDetector):
            replaced[module] = "forward_inference", lambda *_: []
        elif isinstance(module, (DeformConv, ModulatedDeformConv)):
            replaced[module] = "forward", _deformed_of(module, deformable)
    with ExitStack() as patches:
        for patch in (
            *_everywhere(fast_rcnn.fast_rcnn_inference, _detections_of_cascade),
            *_everywhere(poolers.convert_boxes_to_pooler_format, _rois),
            mock.patch.object(Boxes, "clip", lambda *_: None),  # asserts finite values
            mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()),  # meta has none
            mock.patch.object(F, "interpolate", _resized),  # meta's own takes seconds a model
            mock.patch.object(library, "use_reference", lambda: True),
        ):
            patches.enter_context(patch)
        for module, (name, function) in replaced.items():
            vars(module)[name] = function
        try:
            yield
        finally:
            for module, (name, _) in replaced.items():
                del vars(module)[name]


def _resized(x: Tensor, size=None, scale_factor=None, *_, **__) -> Tensor:
    size = _pair(size) if size is not None else [math.floor(n * f) for n, f in zip(x.shape[2:], _pair(scale_factor))]
    return x.new_zeros(*x.shape[:2], *size)


def _everywhere(function: Callable, other: Callable) -> Iterator:
    """Patches that put `other` into every module that has imported `function`."""
    name = function.__name__
    for module in list(sys.modules.values()):
        if getattr(module, "__dict__", {}).get(name) is function:
            yield mock.patch.object(module, name, other)


def _boxes(count: int) -> Boxes:
    return Boxes(torch.zeros(count, 4, device="meta"))


def _proposals_of(rpn: RPN) -> Callable:
    def predict_proposals(anchors, logits, deltas, image_sizes):
        count = rpn.post_nms_topk[False]
        logits = torch.zeros(count, device="meta")
        return [Instances(s, proposal_boxes=_boxes(count), objectness_logits=logits) for s in image_sizes]

    return predict_proposals


def _pool_of(pooler: ROIPooler) -> Callable:
    def forward(maps: list[Tensor], box_lists: list[Boxes], *_):
        return maps[0].new_zeros(sum(map(len, box_lists)), maps[0].shape[1], *pooler.output_size)

    return forward


def _detections(image_sizes: list[Size], count: int) -> list[Instances]:
    """As many detections an image as are reported at most."""
    scores, classes = torch.zeros(count, device="meta"), torch.zeros(count, dtype=torch.int64, device="meta")
    return [Instances(s, pred_boxes=_boxes(count), scores=scores, pred_classes=classes) for s in image_sizes]


def _detections_of(predictor: FastRCNNOutputLayers) -> Callable:
    def inference(predictions, proposals):
        return _detections([p.image_size for p in proposals], predictor.test_topk_per_image), []

    return inference


def _rois(box_lists: list[Boxes]) -> Tensor:
    return torch.zeros(sum(map(len, box_lists)), 5, device="meta")


def _detections_of_cascade(boxes, scores, image_sizes, score_thresh, nms_thresh, topk_per_image):
    return _detections(image_sizes, topk_per_image), []


def _deformed_of(conv: DeformConv | ModulatedDeformConv, counts: list[int]) -> Callable:
    def forward(x: Tensor, *_):
        geometry = zip(x.shape[2:], *map(_pair, (conv.padding, conv.dilation, conv.kernel_size, conv.stride)))
        cells = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, p, d, k, s in geometry]
        out = x.new_zeros(len(x), conv.out_channels, *cells)
        counts.append(out.numel() * conv.weight[0].numel())
        out = out if conv.norm is None else conv.norm(out)
        return out if conv.activation is None else conv.activation(out)

    return forward
