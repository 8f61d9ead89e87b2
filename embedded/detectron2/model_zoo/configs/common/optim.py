from ......configs.common.optim import SGD, AdamW  # the collection's own
