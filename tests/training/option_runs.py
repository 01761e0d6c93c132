"""Short runs of a small DiT with the settings that a test gives."""

from accelerate.state import AcceleratorState, GradientState
from distributed_run import data, network

from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import UCGMTrainer


FEW_STEP = {"consistency_ratio": 1.0, "enhancement_ratio": 1.3, "huber_c": 5.0, "teacher_decay": 1.0}


def settings(folder, **options):
    return UCGMTrainingConfig(
        str(folder),
        **{
            "max_train_steps": 4,
            "train_batch_size": 4,
            "learning_rate": 1e-3,
            "ema_decay": 0.9,
            "logging_steps": 2,
            **FEW_STEP,
            **options,
        },
    )


def trained(folder, model=None, **options):
    GradientState._reset_state()
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = UCGMTrainer(settings(folder, **options), model or network(), data())
    trainer.train()
    return {name: value.clone() for name, value in trainer.transformer.state_dict().items()}
