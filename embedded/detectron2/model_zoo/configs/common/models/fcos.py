from .......configs.common.models.fcos import model  # the collection's own

model.pop("box2box_transform")  # the zoo's has the default one
