"""Padding stays out of the softmaxes: an image's result does not depend on its batch mates."""

import pytest
import torch
from torch import nn

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import GeneralizedRCNN
from projects.DEPLA import DEPLA, DEPLASpec, PaddingMaskRCNN, image_sizes
from projects.DEPLA.padding import cell_mask, extend_border, valid_cells
from shared.config import get_collection_cfg, load_config
from tests.paths import ROOT
from tests.projects.depla.nets import SMALL, X, Y, make_depla, make_inputs


def padded(x, rows, columns, fill):
    return torch.nn.functional.pad(x, (0, columns, 0, rows), value=fill)


@pytest.mark.parametrize("back_filling", ["plain", "adaptive"])
@pytest.mark.parametrize("impl", ["fused", "reference", "sdpa"])
@pytest.mark.parametrize("map_scale", ["peak", "area", "none"])
def test_valid_cells_of_the_output_do_not_depend_on_the_padding(back_filling, impl, map_scale):
    """X of stride 4, Y of stride 8, an image of 22 x 30 pixels: 6 x 8 and 3 x 4 cells. Padding holds large values."""
    kwargs = {"back_filling": back_filling, "impl": impl, "map_scale": map_scale}
    depla = make_depla(mask_padding=True, **kwargs)
    x, y = make_inputs((6, 8), (3, 4), n=1)
    with image_sizes([(22, 30)], (24, 32)):
        alone = depla(x, y)
    with image_sizes([(22, 30)], (40, 56)):
        wide = depla(padded(x, 4, 6, 9.0), padded(y, 2, 3, -7.0))
    torch.testing.assert_close(wide[:, :, :6, :8], alone)
    assert torch.equal(wide[:, :, 6:], torch.full_like(wide[:, :, 6:], 9.0))  # nothing is written into padding
    unmasked = make_depla(**kwargs)
    torch.testing.assert_close(unmasked(x, y), alone)
    assert not torch.allclose(unmasked(padded(x, 4, 6, 9.0), padded(y, 2, 3, -7.0))[:, :, :6, :8], alone, rtol=0.1)


def test_cells_by_hand():
    """33 x 64 pixels at stride 16: 3 rows, the last with one row of pixels, and 4 columns."""
    x = torch.arange(2.0 * 15).view(2, 1, 3, 5)
    with image_sizes([(33, 64), (7, 80)], (48, 80)):
        assert valid_cells(x) == [(3, 4), (1, 5)]
        mask, extended = cell_mask(x), extend_border(x)
        assert extend_border(x[:0]).shape == (0, 1, 3, 5)
    assert mask.sum(dim=(1, 2)).tolist() == [12, 5] and mask[0, :3, :4].all() and mask[1, 0].all()
    assert torch.equal(extended[0, 0, :, 4], x[0, 0, :, 3]) and torch.equal(extended[0, 0, :, :4], x[0, 0, :, :4])
    assert torch.equal(extended[1, 0], x[1, 0, :1].expand(3, 5))


def test_strides_from_sizes():
    """A map of stride s of P pixels has ceil(P / s) cells; 96 pixels have 2 cells of stride 64."""
    for pixels in (32, 75, 96, 160, 1333):
        for stride in (2, 4, 8, 16, 32, 64):
            x = torch.zeros(1, 1, -(-pixels // stride), -(-pixels // stride))
            for side in (1, pixels // 2, pixels - 1, pixels):
                with image_sizes([(side, pixels)], (pixels, pixels)):
                    assert valid_cells(x) == [(-(-side // stride), x.shape[3])], (pixels, stride, side)


def test_refuses_without_sizes():
    depla = DEPLA(X, Y, spec=DEPLASpec(**SMALL, mask_padding=True))
    x, y = (t.float() for t in make_inputs())
    with pytest.raises(ValueError, match="needs the sizes of the images: use PaddingMaskRCNN"):
        depla(x, y)
    with image_sizes([(6, 8)], (6, 8)), pytest.raises(ValueError, match="1 image sizes for a batch of 2"):
        depla(x, y)


def detector(mask_padding):
    """The quick detector with random weights and statistics of norms, and DEPLA that does something."""
    cfg = load_config(str(ROOT / "projects/DEPLA/configs/faster_rcnn_depla_quick.py"))
    for spec in (cfg.model.backbone.bottom_up.stages[2].depla, cfg.model.backbone.depla):
        spec.update(zero_init=False, mask_padding=mask_padding)
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            for value in (module.running_mean, module.weight, module.bias):
                nn.init.normal_(value, mean=float(value is module.weight), std=0.2)
        if isinstance(module, DEPLA):
            with torch.no_grad():
                module.refine.weight *= 1e-3  # an update of about the size of X
    for conv in (model.proposal_generator.rpn_head.objectness_logits, model.proposal_generator.rpn_head.conv):
        nn.init.normal_(conv.weight, std=0.1)
    return model


def image_of(height, width, seed):
    rng = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), generator=rng, dtype=torch.uint8)
    return {"image": image, "height": height, "width": width}


def difference(model):
    """(Largest difference in scores and boxes / 100 px of an image alone and beside a larger one, number of boxes)."""
    image, mate = image_of(100, 126, 0), image_of(192, 256, 1)
    with torch.no_grad():
        alone, together = model([image])[0]["instances"], model([image, mate])[0]["instances"]
    if len(alone) != len(together):
        return float("inf"), len(alone)
    boxes = (alone.pred_boxes.tensor - together.pred_boxes.tensor).abs().max() / 100
    return max((alone.scores - together.scores).abs().max(), boxes).item(), len(alone)


def test_detections_do_not_depend_on_the_batch():
    largest, number = difference(detector(True))
    assert number > 10 and largest < 1e-5
    assert difference(detector(False))[0] > 1e-4


def test_without_mask_padding_it_is_generalized_rcnn():
    model, image = detector(False), image_of(100, 126, 0)
    assert not model.masks_padding and detector(True).masks_padding
    with torch.no_grad():
        expected = GeneralizedRCNN.forward(model, [image])[0]["instances"]
        found = model([image])[0]["instances"]
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor) and len(found) > 10


def test_wrapper_in_both_forms():
    cfg = get_collection_cfg()
    assert isinstance(cfg, CfgNode)
    cfg.merge_from_file(str(ROOT / "projects/DEPLA/configs/mask_rcnn_r50_depla_fpn_1x.yaml"))
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "PaddingMaskRCNN", "MODEL.DEPLA_FPN.MASK_PADDING", True])
    cfg.MODEL.DEVICE = "meta"
    lazy = load_config(str(ROOT / "projects/DEPLA/configs/mask_rcnn_r50_depla_fpn_masked_1x.py"))
    with torch.device("meta"):
        ours, theirs = PaddingMaskRCNN(cfg), instantiate(lazy.model)
    for model in (ours, theirs):
        assert type(model) is PaddingMaskRCNN and model.backbone.fpn_depla2.spec.mask_padding
    assert list(ours.state_dict()) == list(theirs.state_dict())
