"""RetinaNet, MobileNetV2-FPN, 1x: Table 6's student without a teacher."""

from ....configs.common.data.constants import constants as _constants
from .common.mobilenet import bottom_up as _bottom_up
from .retinanet_r50_fpn_1x import dataloader, lr_multiplier, model, optimizer, train

model.backbone.bottom_up = _bottom_up
model.backbone.top_block.in_channels = 320
model.update(pixel_mean=_constants.imagenet_rgb256_mean, pixel_std=_constants.imagenet_rgb256_std, input_format="RGB")
dataloader.train.mapper.image_format = "RGB"
train.init_checkpoint = "mobilenet_v2-b0353104.pth"  # torchvision's MobileNetV2, IMAGENET1K_V1
train.output_dir = "./output/labelenc/retinanet_mobilenetv2_fpn_1x"
