"""Grids and losses of the validation, which change nothing of a run."""

import pytest
import torch
from option_runs import settings

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.training import export
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def classes(folder, **options):
    """A trainer of a bundled pipeline that draws a grid."""
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    items = LatentDataset(torch.randn(4, 4, 8, 8), torch.arange(4))
    drawn = {"validation_inputs": ("Sneaker",), "validation_num_inference_steps": (1,), "max_train_steps": 1}
    return UCGMTrainer.from_pipeline(settings(folder, **drawn, **options), pipe, items)


def test_a_grid_is_drawn_with_the_whole_pipeline_on_the_networks_device(tmp_path, monkeypatch):
    trainer = classes(tmp_path)
    moves = []
    monkeypatch.setattr(trainer.pipeline.vae, "to", lambda place: moves.append(str(place)))
    monkeypatch.setattr(type(trainer.accelerator), "device", torch.device("cuda", 0))
    monkeypatch.setattr(export, "validation_grid", lambda *_, **__: moves.append("drawn"))
    export.sample_grid(trainer)
    assert moves == ["cuda:0", "drawn", "cpu"]
    assert {value.device.type for value in trainer.transformer.parameters()} == {"cpu"}  # it alone is there already


def test_a_grid_that_fails_costs_neither_the_run_nor_the_weights(tmp_path, monkeypatch):
    trainer = classes(tmp_path, validation_steps=1)

    def fail(*_, **__):
        raise TypeError("this pipeline wants an image")

    monkeypatch.setattr(export, "validation_grid", fail)
    assert trainer.train() == tmp_path / "transformer"
    folder = trainer.save_pipeline()
    assert UCGMPipeline.from_pretrained(folder).num_classes == 10
    assert not (folder / "validation.png").exists()


def test_grids_and_losses_reach_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = classes(tmp_path, validation_steps=1, report_to="tensorboard")
    trainer.train()
    assert (tmp_path / "validation" / "step-0000001.png").is_file()
    events = accumulator.EventAccumulator(str(tmp_path / "ucgm"))
    events.Reload()
    assert events.Images("validation/0" if "validation/0" in events.Tags()["images"] else "validation")[0].step == 1
    assert {"loss", "images_per_second"} <= set(events.Tags()["scalars"])


def test_validation_changes_no_bit_of_the_run(tmp_path):
    def run(folder, **options):
        pipe = UCGMPipeline.from_pretrained("fashion-mnist")
        items = LatentDataset(torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4))
        trainer = UCGMTrainer.from_pipeline(settings(folder, **options), pipe, items)
        trainer.train()
        assert trainer.transformer.training
        return trainer.transformer.state_dict()

    plain = run(tmp_path / "plain")
    drawn = run(tmp_path / "drawn", validation_steps=1, validation_inputs=(3,), validation_num_inference_steps=(1,))
    torch.testing.assert_close(drawn, plain, rtol=0, atol=0)
