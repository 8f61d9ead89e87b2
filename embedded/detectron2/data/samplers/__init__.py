"""Infinite samplers for training and the sharded one for inference."""

from .distributed_sampler import InferenceSampler, RepeatFactorTrainingSampler, TrainingSampler
