"""What the settings change about a run: optimizers, memory savers, precision, trackers, pipelines."""

import json

import pytest
import stock_pipelines
import torch
from distributed_run import data, network
from option_runs import settings, trained

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.training import export
from diffusers_ucgm.training import trainer as trainer_module
from diffusers_ucgm.training.network_adapter import convention_of_scheduler
from diffusers_ucgm.training.preparation import compile_network
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


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
    # Attention does not depend on a bias of its keys: its gradient is rounding, which Adam makes as large as another.
    for name in [name for name in plain if name.endswith("attn1.to_k.bias")]:
        del plain[name], compiled[name]
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


def test_blocks_that_a_network_repeats_are_compiled_one_by_one(monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: compiled.append(type(self).__name__))
    compile_network(stock_pipelines.flux().pipe.transformer)
    assert set(compiled) == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
    compiled.clear()
    compile_network(network())
    assert compiled == ["DiTTransformer2DModel"]


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


# --- a guided teacher ------------------------------------------------------------------------------------------------


def test_a_teacher_of_scale_one_is_the_teacher_without_guidance(tmp_path):
    options = {"enhancement_ratio": 1.0, "teacher_decay": 1.0}
    plain = trained(tmp_path / "plain", **options)
    torch.testing.assert_close(trained(tmp_path / "one", **options, teacher_guidance_scale=1.0), plain, rtol=0, atol=0)
    guided = trained(tmp_path / "guided", **options, teacher_guidance_scale=3.0)
    assert any(not torch.equal(guided[name], plain[name]) for name in plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_decay": 0.9}, "`teacher_guidance_scale` must go with a frozen teacher"),
        ({"enhancement_ratio": 0.0}, "must go with an `enhancement_ratio` above 0, got 2.0 without it"),
        ({"consistency_ratio": 0.0}, "must go with consistency ratios above 0, got 0.0"),
        ({"second_time": "any"}, "must go with velocity='teacher', got 2.0 without it"),
        ({"second_time": "any", "velocity": "teacher"}, "must be 1 where `enhancement_ratio` guides the target"),
        ({"teacher_guidance_scale": -1.0}, "`teacher_guidance_scale` must not be negative"),
    ],
)
def test_guidance_of_a_teacher_that_nothing_asks_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        settings(
            tmp_path, **{"enhancement_ratio": 1.0, "teacher_decay": 1.0, "teacher_guidance_scale": 2.0, **options}
        )
