"""What the settings change about a run: optimizers, memory savers, precision, trackers, pipelines."""

import json
import sys

import pytest
import stock_pipelines
import torch
from accelerate.state import AcceleratorState, GradientState
from distributed_run import data, network

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.training import export
from diffusers_ucgm.training import trainer as trainer_module
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.network_adapter import convention_of_scheduler
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
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


# --- memory and speed ------------------------------------------------------------------------------------------------


def test_activation_checkpointing_changes_no_bit(tmp_path):
    plain = trained(tmp_path / "plain")
    calls = []
    model = network()
    model.transformer_blocks[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    checkpointed = trained(tmp_path / "checkpointed", model, gradient_checkpointing=True)
    torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)
    # Three calls a step, one of them with a gradient, whose forward is done again in the backward pass.
    assert len(calls) == 4 * 4


def test_a_compiled_network_gives_the_same(tmp_path, monkeypatch):
    plain = trained(tmp_path / "plain")
    model = network()
    compile_ = type(model).compile
    monkeypatch.setattr(type(model), "compile", lambda self: compile_(self, backend="aot_eager"))
    compiled = trained(tmp_path / "compiled", model, torch_compile=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_data_loaded_ahead_is_the_same_data(tmp_path):
    torch.testing.assert_close(
        trained(tmp_path / "ahead", dataloader_num_workers=2), trained(tmp_path / "plain"), rtol=0, atol=0
    )


def test_batches_of_one_train(tmp_path):
    before = network().state_dict()
    after = trained(tmp_path, train_batch_size=1, label_dropout=0.1)
    assert not torch.equal(before["proj_out_2.weight"], after["proj_out_2.weight"])
    assert all(value.isfinite().all() for value in after.values())


def test_half_precision_comes_close_and_keeps_float32_weights(tmp_path):
    plain = trained(tmp_path / "plain")
    half = trained(tmp_path / "half", mixed_precision="bf16")
    assert {value.dtype for value in half.values()} == {torch.float32}
    start = network().state_dict()
    moved = sum((plain[name] - start[name]).abs().sum() for name in plain)
    apart = sum((plain[name] - half[name]).abs().sum() for name in plain)
    assert 0 < apart < 0.5 * moved


def test_an_adapter_over_a_half_precision_base_is_trained_in_float32(tmp_path):
    case = stock_pipelines.sd3()
    case.pipe.transformer.to(torch.bfloat16)
    embeddings = case.arguments["prompt_embeds"][0], case.arguments["pooled_prompt_embeds"][0]
    items = [
        {"latents": torch.randn(16, 8, 8), "encoder_hidden_states": embeddings[0], "pooled_projections": embeddings[1]}
        for _ in range(4)
    ]
    config = settings(tmp_path, lora_rank=2, label_dropout=0.0, ema_decay=0.0)
    trainer = UCGMTrainer.from_pipeline(config, case.pipe, items)
    trainer.train()
    assert {value.dtype for value in trainer.trainable.values()} == {torch.float32}
    assert {value.dtype for name, value in trainer.transformer.named_parameters() if "lora" not in name} == {
        torch.bfloat16
    }
    assert any(value.abs().max() > 0 for name, value in trainer.trainable.items() if "lora_B" in name)


def test_a_piecewise_constant_rate_follows_its_rules(tmp_path):
    trained(tmp_path, lr_scheduler="piecewise_constant", lr_step_rules="1:1,0.1:3,0.01", logging_steps=1)
    rates = [json.loads(line)["learning_rate"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rates == pytest.approx([1e-4, 1e-4, 1e-5, 1e-5])


# --- optimizers ------------------------------------------------------------------------------------------------------


def test_optimizers_of_other_packages_are_asked_for_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ImportError, match="`adamw_8bit` needs bitsandbytes: `pip install bitsandbytes`"):
        trained(tmp_path, optimizer="adamw_8bit")
    with pytest.raises(ImportError, match="`adamw_schedule_free` needs schedulefree: `pip install schedulefree`"):
        trained(tmp_path, optimizer="adamw_schedule_free", ema_decay=0.0)


def test_a_schedule_free_run_saves_its_averages_and_resumes_bitwise(tmp_path):
    pytest.importorskip("schedulefree")
    options = {"optimizer": "adamw_schedule_free", "ema_decay": 0.0, "checkpointing_steps": 2, "max_train_steps": 6}
    whole = trained(tmp_path, **options)
    resumed = trained(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-4"), **options)
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    saved = type(network()).from_pretrained(tmp_path / "transformer").state_dict()
    assert not torch.equal(saved["proj_out_2.weight"], whole["proj_out_2.weight"])


def test_a_network_without_trainable_weights_is_refused(tmp_path):
    with pytest.raises(ValueError, match="must have parameters with `requires_grad`, got none"):
        trained(tmp_path, network().requires_grad_(False))


# --- pipelines -------------------------------------------------------------------------------------------------------


def test_path_and_time_follow_the_pipelines_scheduler(tmp_path):
    case = stock_pipelines.sd15()
    items = [
        {"latents": torch.randn(4, 8, 8), "encoder_hidden_states": case.arguments["prompt_embeds"][0]}
        for _ in range(4)
    ]
    null = {"encoder_hidden_states": case.arguments["negative_prompt_embeds"]}
    config = settings(tmp_path, max_train_steps=2, label_dropout=0.5)
    trainer = UCGMTrainer.from_pipeline(config, case.pipe, items, null_condition=null)
    t = torch.tensor([0.1, 0.6, 1.0])
    expected = convention_of_scheduler(case.pipe.scheduler).transport
    assert torch.equal(trainer.loss.transport.alpha(t), expected.alpha(t))
    told = []
    case.pipe.unet.register_forward_pre_hook(
        lambda _module, _args, kwargs: told.append(kwargs["timestep"]), with_kwargs=True
    )
    folder = trainer.train()
    assert folder == tmp_path / "unet"
    assert export.component_of(trainer) == "unet"
    assert all(((0 <= each) & (each <= 999)).all() for each in told)
    assert all(value.isfinite().all() for value in trainer.trainable.values())


def test_a_transport_that_the_settings_name_wins(tmp_path):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    items = LatentDataset(torch.randn(4, 4, 8, 8), torch.arange(4))
    trainer = UCGMTrainer.from_pipeline(settings(tmp_path, transport="trigflow"), pipe, items)
    assert trainer.loss.transport == "trigflow"


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


def test_results_that_need_a_pipeline_say_so(tmp_path):
    trainer = UCGMTrainer(settings(tmp_path), network(), data())
    with pytest.raises(ValueError, match="`save_pipeline` must have a pipeline and no adapter"):
        trainer.save_pipeline()
    with pytest.raises(ValueError, match="`validation_steps` needs a pipeline and `validation_inputs`"):
        trainer.validate()
    with pytest.raises(ValueError, match="`validation_steps` needs a pipeline and `validation_inputs`"):
        UCGMTrainer(settings(tmp_path, validation_steps=1), network(), data())


def test_the_bar_shows_loss_and_images_per_second(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(trainer_module.tqdm, "set_postfix", lambda _, values, **__: shown.append(values))
    trained(tmp_path)
    assert [set(each) for each in shown] == [{"loss", "images/s"}] * 2
    assert float(shown[0]["images/s"]) > 0.0


def test_a_tracker_is_given_settings_and_losses(tmp_path, monkeypatch):
    from accelerate import tracking

    logged = []

    class Recorder(tracking.GeneralTracker):
        name = "recorder"
        requires_logging_directory = False
        tracker = None

        def store_init_configuration(self, values):
            logged.append(values)

        def log(self, values, step=None, **_):
            logged.append((step, values))

        def finish(self):
            logged.append("finished")

    trainer = UCGMTrainer(settings(tmp_path), network(), data())
    trainer.accelerator.log_with = [Recorder()]
    trainer.config.report_to = "recorder"
    trainer.train()
    assert logged[0]["consistency_ratio"] == 1.0
    assert [entry[0] for entry in logged[1:-1]] == [2, 4]
    names = {"loss", "learning_rate", "consistency_ratio", "nonfinite_steps", "images_per_second", "residual"}
    assert set(logged[1][1]) == names
    assert logged[1][1]["images_per_second"] > 0.0
    assert logged[-1] == "finished"
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[0])["step"] == 2
