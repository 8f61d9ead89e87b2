"""The training script's parts: what `train_net.py` puts together."""
