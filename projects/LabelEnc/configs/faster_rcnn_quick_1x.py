"""The quickstart's Faster R-CNN in steps of the learning rate, the plain host of the faster_rcnn_quick configs, 1x."""

from ....configs.quickstart import dataloader, model, optimizer
from .retinanet_quick_1x import lr_multiplier, train

train.output_dir = "./output/labelenc/faster_rcnn_quick_1x"
