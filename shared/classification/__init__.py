"""Classification of whole images; importing it registers the meta-architecture and the CIFAR backbone."""

from .cifar_resnet import cifar_resnet
from .data import ClassificationMapper, MixBatch, register_cifar10, register_digit_images, register_image_folder
from .evaluator import ClassificationEvaluator
from .model import ImageClassifier
