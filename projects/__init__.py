"""The collection. Importing it chooses the engine and registers every part with Detectron2."""

from shared import engine

engine.activate()

from shared import classification, predictor  # noqa: E402  register ImageClassifier and LazyConfigModel
from shared.data import register_digits  # noqa: E402

from . import DEPLA, LIP, MSFM, Detectors, InterNet, LabelEnc, MuSu  # noqa: E402  each registers its parts

register_digits()
