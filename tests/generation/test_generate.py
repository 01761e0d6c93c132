"""Samples of any pipeline from numbered seeds."""

import inspect
from functools import partial

import pytest
import stock_pipelines
import torch
from diffusers import (
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from exact_pipeline import class_pipeline, exact_pipeline
from prompt_pipelines import prompt_pipeline, with_encoders

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.generation.generate import count_calls, evaluation_mode, generate, sampling_mode


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

PROMPTS, SEEDS = ["a red square", "a cat", "a dog"], [3, 4, 5]


def by_hand(pipe, scheduler, output_type="latent", **call):
    """Samples of one call of the pipeline whose scheduler's steps are given the generators."""
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    pipe.scheduler = scheduler
    if "generator" in inspect.signature(scheduler.step).parameters:
        scheduler.step = partial(scheduler.step, generator=generators)
    return pipe(generator=generators, output_type=output_type, return_dict=False, **call)[0]


@pytest.mark.parametrize("preset", ["multi-step", "few-step", None])
@pytest.mark.parametrize("name", ["sd15", "sd3", "flux", "sana", "wan"])
def test_samples_are_bit_for_bit_those_of_the_pipeline_called_by_hand(name, preset):
    (pipe, call), (twin, _) = prompt_pipeline(name), prompt_pipeline(name)
    config = pipe.scheduler.config
    own = pipe.scheduler if preset is None else UCGMScheduler.from_config(config, preset=preset)
    samples = generate(pipe, PROMPTS, SEEDS, num_inference_steps=2, scheduler=own, call=call)
    expected = by_hand(twin, type(own).from_config(own.config), prompt=PROMPTS, num_inference_steps=2, **call)
    assert torch.equal(samples, expected.float())


@pytest.mark.parametrize(
    "scheduler",
    [
        FlowMatchEulerDiscreteScheduler(stochastic_sampling=True),
        UCGMScheduler(stochasticity=1.0),
        UCGMScheduler(solver_order=2, extrapolation_ratio=0.5),
    ],
)
def test_samples_of_classes_are_bit_for_bit_those_of_the_pipeline_called_by_hand(scheduler):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
    call = {"guidance_scale": 2.0, "guidance_interval": (0.1, 0.8)}
    samples = generate(pipe, [1, 2, 3], SEEDS, num_inference_steps=4, scheduler=scheduler, output_type="pt", call=call)
    twin = type(scheduler).from_config(scheduler.config)
    expected = by_hand(pipe, twin, "pt", class_labels=[1, 2, 3], num_inference_steps=4, **call)
    assert torch.equal(samples, expected)


def test_samples_are_those_of_the_first_version():
    pipe = exact_pipeline()
    few_step = UCGMScheduler.from_config(pipe.scheduler.config, preset="few-step")
    multi_step = generate(pipe, [0, 1, 2], [5, 6, 7], num_inference_steps=4, batch_size=2)
    fresh_noise = generate(pipe, [0, 1, 2], [5, 6, 7], num_inference_steps=2, batch_size=2, scheduler=few_step)
    expected = torch.tensor([[-1.4297465, -1.4431285], [-0.6236639, -0.8807079], [0.9716588, 1.1709486]])
    torch.testing.assert_close(multi_step.flatten(1)[:, :2], expected, rtol=1e-5, atol=1e-6)
    expected = torch.tensor([[0.2797286, -0.2676859], [0.8260210, 0.9893458], [0.3961287, -0.2552101]])
    torch.testing.assert_close(fresh_noise.flatten(1)[:, :2], expected, rtol=1e-5, atol=1e-6)


def test_noise_of_the_steps_does_not_depend_on_the_batch():
    pipe, call = prompt_pipeline("sd15")
    ancestral = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    settings = {"num_inference_steps": 3, "scheduler": ancestral, "call": call}
    state = torch.get_rng_state()
    whole = generate(pipe, PROMPTS, SEEDS, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    parts = generate(pipe, PROMPTS, SEEDS, batch_size=2, **settings)
    torch.testing.assert_close(whole, parts, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(whole, generate(pipe, PROMPTS, [3, 4, 6], **settings))


def test_images_of_the_class_conditional_stock_pipeline_have_their_channels_first():
    case = stock_pipelines.dit()
    images = generate(case.pipe, [0, 1], [0, 1], num_inference_steps=2, output_type="pt")
    assert images.shape[:2] == (2, 3)


@pytest.mark.parametrize("negative", ["a dark thing", ["a dark thing"] * 3])
def test_one_negative_prompt_holds_for_all_samples(negative):
    pipe, call = prompt_pipeline("sana")
    call |= {"guidance_scale": 4.0}
    samples = [
        generate(pipe, PROMPTS, SEEDS, num_inference_steps=2, batch_size=2, call=call | {"negative_prompt": text})
        for text in (negative, "a dark thing")
    ]
    assert torch.equal(*samples)


def test_embeddings_take_the_place_of_prompts():
    case = stock_pipelines.sd15()
    call = {name: value for name, value in case.arguments.items() if name != "output_type"}
    first, second = (
        generate(case.pipe, prompts, [0, 1], num_inference_steps=2, batch_size=1, call=call)
        for prompts in (["a", "b"], ["c", "d"])
    )
    assert torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_seeds_are_as_many_as_conditions():
    with pytest.raises(ValueError, match="`seeds` must be one for each of 2 conditions, got 1"):
        generate(exact_pipeline(), [0, 1], [0])
    with pytest.raises(ValueError, match="`seeds` must be one for each of 0 conditions, got 0"):
        generate(exact_pipeline(), [], [])


def test_the_pipeline_is_left_as_it_was():
    pipe, call = prompt_pipeline("sd3")
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    pipe.transformer.train()
    scheduler, config, other = pipe.scheduler, dict(pipe.config), FlowMatchEulerDiscreteScheduler()
    bar = pipe._progress_bar_config
    generate(pipe, PROMPTS, SEEDS, num_inference_steps=2, scheduler=other, call=call)
    assert pipe.transformer.training
    assert pipe.scheduler is scheduler
    assert dict(pipe.config) == config
    assert pipe._progress_bar_config is bar
    assert not {"step", "_step"} & (set(vars(scheduler)) | set(vars(other)))
    with pytest.raises(ValueError, match="`call` must be arguments that .* takes, got nonsense=1"):
        generate(pipe, PROMPTS, SEEDS, call={"nonsense": 1})
    assert pipe.scheduler is scheduler


def test_an_observer_sees_every_step_of_every_batch():
    steps = []
    pipe = exact_pipeline()
    samples = generate(pipe, [0, 1, 2], SEEDS, num_inference_steps=4, batch_size=2, on_step=steps.append)
    pipe.scheduler.set_timesteps(4)
    assert [step.timestep for step in steps] == 2 * pipe.scheduler.timesteps.tolist()
    assert [len(step.sample) for step in steps] == [2] * 4 + [1] * 4
    assert torch.equal(torch.cat([steps[3].sample, steps[7].sample]), samples)
    assert torch.equal(samples, generate(pipe, [0, 1, 2], SEEDS, num_inference_steps=4, batch_size=2))


def test_modes_and_the_progress_bar_are_put_back():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
    pipe.transformer.train()
    frozen = pipe.transformer.transformer_blocks[0].eval()
    pipe.set_progress_bar_config(desc="mine")
    scheduler = pipe.scheduler
    with sampling_mode(pipe):
        assert not any(module.training for module in pipe.transformer.modules())
        assert pipe._progress_bar_config == {"disable": True}
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    assert pipe.scheduler is scheduler
    assert pipe._progress_bar_config == {"desc": "mine"}
    assert pipe.transformer.training
    assert not frozen.training
    with evaluation_mode([pipe.transformer, None, "no network"]):
        assert not pipe.transformer.training
    assert pipe.transformer.training


def test_calls_of_both_networks_are_counted():
    pipe = exact_pipeline()
    pipe.transformer_2 = torch.nn.Identity()
    with count_calls(pipe) as number:
        pipe.transformer_2(torch.zeros(1))
        pipe.transformer(torch.zeros(1, 2, 2, 2), torch.tensor([500.0]))
    assert (number.calls, number.evaluations) == (2, 1)
    assert not pipe.transformer._forward_hooks


def test_a_guided_call_has_two_evaluations_of_each_sample():
    pipe = class_pipeline()
    for interval, evaluations in (((0.0, 1.0), 24), ((0.0, 0.0), 12)):
        with count_calls(pipe) as number:
            generate(
                pipe,
                [0, 1, 2],
                [0, 1, 2],
                num_inference_steps=4,
                batch_size=2,
                call={"guidance_scale": 2.0, "guidance_interval": interval},
            )
        assert (number.calls, number.evaluations) == (8, evaluations)


@pytest.mark.parametrize("stock", [UniPCMultistepScheduler, FlowMatchHeunDiscreteScheduler])
def test_a_scheduler_that_the_pipeline_does_not_run_with_is_named(stock):
    case = with_encoders("flux")
    with pytest.raises(
        ValueError, match=rf"`scheduler` must be one with which FluxPipeline runs, got {stock.__name__}"
    ):
        generate(case.pipe, ["a"], [0], num_inference_steps=3, scheduler=stock())


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"height": 17}, r"height=17, .*divisible by 8"),
        ({"prompt_embeds": 1}, r"prompt_embeds=1: .*'int' object has no attribute"),
        ({"callback_on_step_end": 1}, r"callback_on_step_end=1: 'int' object is not callable"),
    ],
)
def test_what_a_pipeline_refuses_names_its_arguments(call, reason):
    case = with_encoders("sd15")
    with pytest.raises(
        ValueError, match=rf"`call` must be arguments that StableDiffusionPipeline takes, got .*{reason}"
    ):
        generate(case.pipe, ["a cat"], [0], num_inference_steps=1, call={"height": 16, "width": 16, **call})
