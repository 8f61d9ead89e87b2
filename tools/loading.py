"""A config's model with a checkpoint's weights, for tools that look into it."""

from torch import nn

from shared.checkpoint import WeightsCheckpointer
from shared.config import load_config
from shared.errors import UserError
from shared.training.run import Run, make_run
from shared.training.setup import check_device


def load_trained(config_file: str, weights: str, opts: list[str], inference: bool = True) -> tuple[Run, nn.Module]:
    """The run that `config_file` describes, its data registered, and its model with `weights` (default: the config's).

    UserError unless every entry that inference needs (every one, without `inference`) is in the file.
    """
    run = make_run(load_config(config_file, opts))
    run.register_data()
    model = trained_model(run, weights, inference)
    run.leave_out_bad_records(None, train=True)
    return run, model


def trained_model(run: Run, weights: str, inference: bool = True) -> nn.Module:
    """The model alone, which needs no data."""
    check_device(run.device, 1, run.device_key)
    weights = weights or run.weights
    if not weights:
        raise UserError("No weights: add --weights FILE.")
    model = run.build_model()
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(weights, checkpointables=[])
    checkpointer.require(weights, every=True, inference=inference)
    return model
