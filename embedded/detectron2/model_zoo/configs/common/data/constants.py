from .......configs.common.data.constants import constants  # the collection's own
