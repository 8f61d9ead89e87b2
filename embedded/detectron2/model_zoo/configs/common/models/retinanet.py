from .......configs.common.models.retinanet import model  # the collection's own
