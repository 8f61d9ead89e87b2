from .......configs.common.data.coco import dataloader  # the collection's own
