"""Short runs of a small network, for the tests of interruptions and of collapse."""

import json

from distributed_run import data, network

from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import UCGMTrainer


def trainer(folder, **settings):
    config = UCGMTrainingConfig(
        str(folder),
        **{
            "max_train_steps": 12,
            "train_batch_size": 4,
            "checkpointing_steps": 4,
            "logging_steps": 1,
            "learning_rate": 1e-3,
            "teacher_decay": 0.99,
            "ema_decay": 0.9,
            **settings,
        },
    )
    return UCGMTrainer(config, network(), data())


def weights(run):
    return {name: value.clone() for name, value in run.transformer.state_dict().items()}


def lines(folder):
    """The log but for its speed, which is that of the machine."""
    found = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in found:
        del line["images_per_second"]
    return found
