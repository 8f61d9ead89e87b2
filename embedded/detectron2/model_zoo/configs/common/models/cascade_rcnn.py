from .......configs.common.models.cascade_rcnn import model  # the collection's own
