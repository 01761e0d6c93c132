"""A tuned pipeline is saved whole."""

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from distributed_run import network
from option_runs import settings
from stock_pipelines import vae

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.loading import load_pipeline
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def test_a_tuned_pipeline_is_saved_whole_and_draws_in_few_steps(tmp_path):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    items = LatentDataset(torch.randn(4, 4, 8, 8), torch.arange(4))
    config = settings(
        tmp_path,
        validation_steps=2,
        validation_inputs=("Sneaker", 8),
        validation_num_inference_steps=(1, 2),
        max_train_steps=3,
    )
    trainer = UCGMTrainer.from_pipeline(config, pipe, items)
    stock = pipe.scheduler
    trainer.train()
    before = {name: value.clone() for name, value in trainer.transformer.state_dict().items()}
    folder = trainer.save_pipeline()
    assert folder == tmp_path / "pipeline"
    # The run itself goes on from the last weights, with the scheduler it had.
    torch.testing.assert_close(trainer.transformer.state_dict(), before, rtol=0, atol=0)
    assert pipe.scheduler is stock
    loaded = UCGMPipeline.from_pretrained(folder)
    assert loaded.scheduler.config.stochasticity == 1.0
    shadow = trainer.ema.shadow_params[0]
    torch.testing.assert_close(next(iter(loaded.transformer.parameters())).data, shadow, rtol=0, atol=0)
    grids = sorted(path.name for path in (tmp_path / "validation").iterdir())
    assert grids == ["step-0000002.png", "step-0000003.png"]
    assert (folder / "README.md").is_file()
    assert '"consistency_ratio": 1.0' in (folder / "README.md").read_text()


def test_the_names_of_classes_are_saved_with_a_pipeline_that_saves_none(tmp_path):
    torch.manual_seed(0)
    names = {0: "tench, Tinca tinca", 1: "goldfish"}
    pipe = DiTPipeline(network(), vae(), DDIMScheduler(), id2label=names)
    items = LatentDataset(torch.randn(4, 4, 2, 2), torch.arange(4) % 2)
    trainer = UCGMTrainer.from_pipeline(settings(tmp_path, max_train_steps=1), pipe, items)
    trainer.train()
    loaded = load_pipeline(str(trainer.save_pipeline()))
    assert loaded.labels == pipe.labels == {"tench": 0, "Tinca tinca": 0, "goldfish": 1}
    # And once more, from what was loaded, as `ucgm tune-sampler` saves it.
    loaded.save_pretrained(tmp_path / "again")
    assert DiTPipeline.from_pretrained(tmp_path / "again").labels == pipe.labels
