from ......configs.common.train import detectron2_train as train  # the collection's own
