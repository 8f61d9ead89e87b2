from .......configs.common.models.mask_rcnn_fpn import model  # the collection's own
