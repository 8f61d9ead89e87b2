"""The collection. Importing it chooses the engine and registers every part with Detectron2."""

from shared import engine

engine.activate()

from shared import predictor  # noqa: E402  registers LazyConfigModel
from shared.data import register_digits  # noqa: E402

register_digits()
