"""Pipelines with two networks, each for its part of the times: Wan 2.2."""

import copy

import diffusers
import pytest
import stock_pipelines
import torch

from diffusers_ucgm import UCGMScheduler, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.fingerprint import fingerprint
from diffusers_ucgm.generation.generate import count_calls
from diffusers_ucgm.loading import load_pipeline_lora
from diffusers_ucgm.lora import LORA_WEIGHTS_NAME, lora_notes
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.training.batches import DrawnSamples
from diffusers_ucgm.training.experts import expert_of


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

BOUNDARY = 0.875


def two_experts(boundary=BOUNDARY, **changes):
    """A Wan whose second network has other weights than its first."""
    case = stock_pipelines.wan()
    torch.manual_seed(1)
    second = copy.deepcopy(case.pipe.transformer)
    for value in second.parameters():
        value.data = value.data + 0.05 * torch.randn(value.shape)
    parts = {**case.pipe.components, "transformer_2": second, **changes}
    case.pipe = diffusers.WanPipeline(**parts, boundary_ratio=boundary)
    case.pipe.set_progress_bar_config(disable=True)
    return case


def videos(case, number=4):
    torch.manual_seed(2)
    text = case.arguments["prompt_embeds"][0]
    return [{"latents": torch.randn(4, 2, 4, 4), "encoder_hidden_states": text} for _ in range(number)]


def settings(folder, **options):
    options = {"label_dropout": 0.0, "max_train_steps": 3, "train_batch_size": 2, "learning_rate": 1e-2, **options}
    return UCGMTrainingConfig(str(folder), **options)


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(before, network):
    return all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("name", "other"), [("transformer", "transformer_2"), ("transformer_2", "transformer")])
def test_one_network_is_trained_on_its_own_times_and_saved_in_its_place(tmp_path, name, other):
    case = two_experts()
    before = {each: weights(getattr(case.pipe, each)) for each in (name, other)}
    trainer = UCGMTrainer.from_pipeline(settings(tmp_path, expert=name, ema_decay=0.0), case.pipe, videos(case))
    times = []
    adapter = trainer.adapter

    def noted(network, x_t, t, **condition):
        times.extend(t.tolist())
        return adapter(network, x_t, t, **condition)

    noted.null_condition = adapter.null_condition
    trainer.adapter = noted
    assert trainer.train() == tmp_path / name
    assert f"{name}={name})" in (tmp_path / name / "README.md").read_text()
    assert len(times) == 6
    # As the pipeline asks which network a time is for.
    calls_first = [1000.0 * t >= BOUNDARY * 1000 for t in times]
    assert calls_first == [name == "transformer"] * 6
    assert not same(before[name], getattr(case.pipe, name))
    assert same(before[other], getattr(case.pipe, other))
    saved = diffusers.WanPipeline.from_pretrained(trainer.save_pipeline(), text_encoder=None, tokenizer=None)
    assert same(weights(getattr(case.pipe, name)), getattr(saved, name))
    assert same(before[other], getattr(saved, other))
    assert saved.config.boundary_ratio == BOUNDARY
    assert saved.scheduler.config.stochasticity == 0.0


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_the_boundary_is_a_time_of_the_network_whatever_the_shift(shift):
    case = two_experts()
    case.pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    first, second = (expert_of(case.pipe, name).time_range for name in ("transformer", "transformer_2"))
    assert first == (pytest.approx(BOUNDARY), 1.0)
    assert second[0] == 0.0
    assert first[0] - 1e-6 < second[1] < first[0]


@pytest.mark.parametrize("distribution", [(1.0, 1.0, 1.0), (0.8, 1.0, 1.0), (2.0, 2.0, 1.2)])
@pytest.mark.parametrize("time_range", [(0.0, 1.0), (0.875, 1.0), (0.0, 0.875)])
def test_times_keep_to_their_range_and_fill_it(distribution, time_range):
    samples = DrawnSamples([{"latents": torch.zeros(1)}], 0, distribution, 0.0, time_range)
    times = torch.stack([samples[0, i, 0]["t"] for i in range(200)])
    first, last = time_range
    assert times.min() >= first
    assert times.max() <= last
    assert times.max() - times.min() > 0.8 * (last - first)


@pytest.mark.parametrize("name", [None, "unet"])
def test_the_network_has_to_be_named(tmp_path, name):
    case = two_experts()
    with pytest.raises(ValueError, match=r"`expert` must name one of the two networks of WanPipeline, 'tr"):
        UCGMTrainer.from_pipeline(settings(tmp_path, expert=name), case.pipe, videos(case))


def test_a_network_that_is_not_loaded_is_not_trained(tmp_path):
    case = two_experts(transformer_2=None)
    with pytest.raises(ValueError, match=r"got 'transformer_2' with \['transformer'\] loaded"):
        UCGMTrainer.from_pipeline(settings(tmp_path, expert="transformer_2"), case.pipe, videos(case))
    assert expert_of(case.pipe, "transformer").time_range[0] == pytest.approx(BOUNDARY)


def test_pipelines_with_one_network_take_no_other_name(tmp_path):
    case = stock_pipelines.wan()
    assert expert_of(case.pipe, None).time_range == (0.0, 1.0)
    assert expert_of(case.pipe, "transformer").name == "transformer"
    with pytest.raises(ValueError, match=r"`expert` must be left out or 'transformer', the one network of"):
        UCGMTrainer.from_pipeline(settings(tmp_path, expert="transformer_2"), case.pipe, videos(case))
    with pytest.raises(ValueError, match=r"`expert` must go with a pipeline of two networks, got 'transformer'"):
        UCGMTrainer(settings(tmp_path, expert="transformer"), case.pipe.transformer, videos(case))
    # Without a ratio the pipeline calls its first network alone.
    assert expert_of(two_experts(boundary=None).pipe, None).time_range == (0.0, 1.0)


def test_two_networks_without_a_boundary_are_refused():
    pipe = stock_pipelines.sd3().pipe
    pipe.transformer_2 = copy.deepcopy(pipe.transformer)
    with pytest.raises(ValueError, match=r"`pipeline` must tell the times of `transformer_2` by its `boundary_ratio`"):
        expert_of(pipe, "transformer")


@pytest.mark.parametrize("ratio", [1.0, 0.3, [[0, 0.0], [3, 1.0]], [[0, 1.0], [3, 0.0]]])
def test_one_of_two_networks_is_not_trained_to_few_steps(ratio):
    with pytest.raises(ValueError, match=r"`consistency_ratio` must be 0 with `expert`.*through both networks"):
        settings("run", expert="transformer", consistency_ratio=ratio)


def test_any_steps_of_one_of_two_networks_are_refused():
    with pytest.raises(ValueError, match=r"`second_time` must be 'none' with `expert`, got 'any': .*through both"):
        settings("run", expert="transformer_2", second_time="any")


@pytest.mark.parametrize("name", ["transformer", "transformer_2"])
def test_a_lora_goes_back_to_its_network(tmp_path, name):
    case = two_experts()
    config = settings(tmp_path, expert=name, lora_rank=2, teacher_decay=1.0, ema_decay=0.0)
    UCGMTrainer.from_pipeline(config, case.pipe, videos(case)).train()
    getattr(case.pipe, name).eval()
    tuned = case()
    assert lora_notes(tmp_path / "lora" / LORA_WEIGHTS_NAME).get("network", "transformer") == name
    card = (tmp_path / "lora" / "README.md").read_text()
    assert ("load_into_transformer_2=True" in card) == (name == "transformer_2")
    fresh = two_experts()
    base = fresh()
    load_pipeline_lora(fresh.pipe, tmp_path)
    torch.testing.assert_close(fresh(), tuned, rtol=0, atol=0)
    assert not torch.equal(base, tuned)
    stock = two_experts()
    second = {"load_into_transformer_2": True} if name == "transformer_2" else {}
    stock.pipe.load_lora_weights(tmp_path / "lora", weight_name=LORA_WEIGHTS_NAME, **second)
    torch.testing.assert_close(stock(), tuned, rtol=0, atol=0)
    with pytest.raises(ValueError, match="`pipe` must not have a LoRA yet"):
        load_pipeline_lora(fresh.pipe, tmp_path)


def test_each_network_takes_a_lora_of_its_own(tmp_path):
    case = two_experts()
    for name in ("transformer", "transformer_2"):
        config = settings(tmp_path / name, expert=name, lora_rank=2, teacher_decay=1.0)
        UCGMTrainer.from_pipeline(config, two_experts().pipe, videos(case)).train()
        load_pipeline_lora(case.pipe, tmp_path / name, 0.5)
    assert len(case.pipe.get_list_adapters()) == 2


def test_comparisons_count_and_know_both_networks(tmp_path):
    case = two_experts()
    pipe = case.pipe
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    with count_calls(pipe) as counted:
        case(6, guidance_scale=1.0)
    assert counted.calls == 6
    words = {fingerprint(pipe), fingerprint(two_experts().pipe), fingerprint(two_experts(boundary=0.5).pipe)}
    changed = two_experts().pipe
    next(changed.transformer_2.parameters()).data.add_(1.0)
    assert len(words | {fingerprint(changed)}) == 3
    # The scheduler is no part of this word.
    assert fingerprint(pipe) == fingerprint(two_experts().pipe)
    embeds = {name: value for name, value in case.arguments.items() if name not in ("output_type",)}
    pipe.encode_prompt = lambda prompt=None, **_: (
        embeds["prompt_embeds"].repeat(len(prompt), 1, 1),
        embeds["negative_prompt_embeds"].repeat(len(prompt), 1, 1),
    )
    sizes = {name: value for name, value in embeds.items() if "prompt" not in name}
    found = compare_solvers(
        pipe,
        ["a", "b"],
        [0, 1],
        solvers={"own": pipe.scheduler},
        calls=[4],
        num_solution_calls=8,
        output=tmp_path,
        progress=False,
        call={"guidance_scale": 1.0, **sizes},
    )
    assert found[0].calls_made == 4
