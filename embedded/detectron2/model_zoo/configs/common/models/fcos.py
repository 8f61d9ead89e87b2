from .......configs.common.models.fcos import model  # the collection's own
