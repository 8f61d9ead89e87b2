"""Settings of the training loop that are not of the model, the data or the optimiser."""

from omegaconf import OmegaConf

# what Detectron2's own training configs have
detectron2_train = dict(
    output_dir="./output",
    init_checkpoint="",
    max_iter=90000,
    amp=dict(enabled=False),
    ddp=dict(broadcast_buffers=False, find_unused_parameters=False, fp16_compression=False),
    checkpointer=dict(period=5000, max_to_keep=100),
    eval_period=5000,
    log_period=20,
    device="cuda",
)

# what train_net.py reads besides
train = OmegaConf.merge(
    detectron2_train,
    dict(
        amp=dict(dtype="float16"),  # or "bfloat16", which needs no loss scale and runs on a CPU as well
        sync_normalizers=False,  # of a dense detector's losses: from the images of all processes; see shared.modeling
        seed=-1,  # below 0: a random one, written to the log
        cudnn_benchmark=False,
        float32_precision="",  # "highest", "high" or "medium"; "" leaves torch's setting
        clip_grad_norm=None,  # upper bound of the norm over all gradients together
        ema=dict(enabled=False, decay=0.9999),  # average of the weights: evaluated, and saved as the model
    ),
)
