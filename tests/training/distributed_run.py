"""A small run of the trainer, started by torch's or accelerate's launcher in as many processes as a test wants.

python -m torch.distributed.run --nproc-per-node 2 tests/training/distributed_run.py OUTPUT [NAME=JSON ...]
"""

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from diffusers import DiTTransformer2DModel
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from diffusers_ucgm import files
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.training import preparation
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import UCGMTrainer


def network():
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        sample_size=2,
        patch_size=1,
        num_embeds_ada_norm=2,
    )


def data():
    generator = torch.Generator().manual_seed(0)
    return LatentDataset(torch.randn(40, 4, 2, 2, generator=generator), torch.arange(40) % 2)


class ShardingAccelerator(Accelerator):
    """Shards the weights as accelerate does with FSDP2, which it does on accelerators only, not on a CPU."""

    @property
    def distributed_type(self):
        return DistributedType.FSDP

    def prepare(self, model, optimizer):
        mesh = init_device_mesh("cpu", (self.num_processes,))
        names = {id(value): name for name, value in model.named_parameters()}
        # Whole: this model's last layer calls into its first block, which a shard of its own would not allow.
        fully_shard(model, mesh=mesh)
        sharded = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [sharded[names[id(value)]] for value in group["params"]]
        return model, AcceleratedOptimizer(optimizer)


def use_deepspeed(stage):
    """What `accelerate launch --use_deepspeed` sets, on processors, for which it makes no groups of processes."""
    import deepspeed.comm.torch  # noqa: F401

    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    del os.environ["ACCELERATE_USE_CPU"]
    # A faster way between processes of one machine, which it would compile now.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    backend = InitProcessGroupKwargs(backend="gloo")

    class Launched(Accelerator):
        def __init__(self, kwargs_handlers, **options):
            super().__init__(kwargs_handlers=[*kwargs_handlers, backend], **options)

    preparation.Accelerator = Launched


def full_disk(*_):
    raise OSError("No space left on device")


def main():
    output, *settings = sys.argv[1:]
    changes = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in settings)}
    if changes.pop("shard", False):
        preparation.Accelerator = ShardingAccelerator
    if stage := changes.pop("zero_stage", 0):
        use_deepspeed(stage)
    if changes.pop("full_disk", False):
        files.write_tensors = full_disk
    config = UCGMTrainingConfig(
        output,
        **{
            "consistency_ratio": 1.0,
            "enhancement_ratio": 1.3,
            "huber_c": 5.0,
            "teacher_decay": 1.0,
            "label_dropout": 0.2,
            "train_batch_size": 8 // int(os.environ.get("WORLD_SIZE", 1)),
            "max_train_steps": 6,
            "checkpointing_steps": 3,
            "logging_steps": 2,
            "learning_rate": 1e-3,
            # Where a second moment is almost 0, rounding decides the sign of Adam's step.
            "adam_epsilon": 1e-3,
            "ema_decay": 0.9,
            **changes,
        },
    )
    trainer = UCGMTrainer(config, network(), data())
    trainer.train()
    whole = trainer.backend.whole_weights()
    if trainer.accelerator.is_main_process:
        save_file(
            {name: value.contiguous().clone() for name, value in whole.items()}, Path(output) / "last.safetensors"
        )
        kind = str(trainer.accelerator.distributed_type)
        (Path(output) / "how.json").write_text(json.dumps([kind, trainer.accelerator.num_processes]))
    # gloo may wait for ever in a process whose peer is busy while it leaves the group.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
    # torch's caches of sharded tensors keep the process group, so gloo's threads outlive its end, and one that lets go
    # of its last tensor while the interpreter ends aborts the process (pytorch/pytorch#179291): end without that.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
