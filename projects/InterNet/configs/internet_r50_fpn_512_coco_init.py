"""InterNet from a detector trained on COCO, as the authors' released config starts."""

from .internet_r50_fpn_512 import dataloader, lr_multiplier, model, optimizer, train

train.init_checkpoint = "detectron2://COCO-Detection/faster_rcnn_R_50_FPN_1x/137257794/model_final_b275ba.pkl"
