"""UCGMPipeline: what it draws, how often it calls the transformer, and what it refuses."""

import numpy as np
import pytest
import torch
from class_pipelines import autoencoder, pipeline, seeded, transformer
from diffusers import (
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from PIL import Image

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.lora import add_lora, save_lora
from diffusers_ucgm.pipeline import denormalize_latents, normalize_latents


class Recorder:
    """Counts the transformer's calls and keeps what they were given."""

    def __init__(self, pipe):
        self.calls = []
        pipe.transformer.register_forward_pre_hook(self.record, with_kwargs=True)

    def record(self, module, args, kwargs):
        self.calls.append({"sample": args[0].clone(), **{name: kwargs[name] for name in ("timestep", "class_labels")}})


@pytest.mark.parametrize("kind", ["kl", "dc", "tiny", None])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_autoencoder_gives_every_output(kind, output_type):
    pipe = pipeline(kind and autoencoder(kind), in_channels=4 if kind else 3, out_channels=4 if kind else 3)
    images = pipe([1, 2], num_inference_steps=3, generator=seeded(), output_type=output_type).images
    size = 16 if kind else 8
    if output_type == "pil":
        assert [(image.size, image.mode) for image in images] == [((size, size), "RGB")] * 2
    elif output_type == "np":
        assert images.shape == (2, size, size, 3)
        assert isinstance(images, np.ndarray)
        assert images.min() >= 0
        assert images.max() <= 1
    elif output_type == "pt":
        assert images.shape == (2, 3, size, size)
        assert float(images.min()) >= 0
        assert float(images.max()) <= 1
    else:
        assert images.shape == (2, 4 if kind else 3, 8, 8)
        assert images.dtype == torch.float32


def test_one_channel_gives_grey_pictures():
    images = pipeline(autoencoder("kl", channels=1))("Bag", num_inference_steps=2).images
    assert isinstance(images[0], Image.Image)
    assert images[0].mode == "L"


def test_pictures_repeat_under_a_seed_and_differ_by_seed_and_label():
    pipe = pipeline()

    def draw(label, seed):
        return pipe(label, num_inference_steps=4, generator=seeded(seed), output_type="latent").images

    torch.testing.assert_close(draw(1, 0), draw(1, 0), rtol=0, atol=0)
    assert not torch.allclose(draw(1, 0), draw(1, 1))
    assert not torch.allclose(draw(1, 0), draw(2, 0))


def test_a_picture_does_not_depend_on_its_neighbours():
    pipe = pipeline(scheduler=UCGMScheduler(stochasticity=1.0))
    together = pipe([0, 3, 1], num_inference_steps=4, generator=[seeded(i) for i in range(3)], output_type="latent")
    alone = pipe([3], num_inference_steps=4, generator=[seeded(1)], output_type="latent")
    torch.testing.assert_close(together.images[1:2], alone.images)


@pytest.mark.parametrize(("order", "steps", "calls"), [(1, 5, 5), (2, 5, 5), (2, 6, 5), (1, 1, 1)])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_output_carries_the_calls_really_made(order, steps, calls, scale):
    pipe = pipeline(scheduler=UCGMScheduler(solver_order=order))
    recorder = Recorder(pipe)
    output = pipe([1, 2], num_inference_steps=steps, guidance_scale=scale)
    assert output.num_network_calls == len(recorder.calls) == pipe.num_timesteps == calls
    assert {len(call["sample"]) for call in recorder.calls} == {2 if scale == 1 else 4}


def test_null_class_comes_from_the_model():
    pipe = pipeline()
    recorder = Recorder(pipe)
    pipe(["Coat", 3], num_inference_steps=1, guidance_scale=2.0)
    assert recorder.calls[0]["class_labels"].tolist() == [1, 3, 5, 5]


def test_guidance_is_the_formula():
    pipe = pipeline(scheduler=UCGMScheduler(extrapolation_ratio=0.0))
    settings = {"num_inference_steps": 1, "generator": seeded(), "output_type": "latent", "guidance_scale": 3.0}
    guided = pipe(1, **settings).images
    x = torch.randn(1, 4, 8, 8, generator=seeded())
    t = pipe.scheduler.timesteps
    with torch.no_grad():
        conditional, null = (
            pipe.transformer(x, timestep=t, class_labels=torch.tensor([label])).sample for label in (1, 5)
        )
    expected = pipe.scheduler.transport.estimate(null + 3.0 * (conditional - null), x, t / 1000)[0]
    torch.testing.assert_close(guided, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transport", ["linear", "relinear"])
def test_guidance_interval_is_in_canonical_time(transport):
    pipe = pipeline(scheduler=UCGMScheduler(transport=transport, time_warp=(1, 1, 1), time_gaps=(0.1, 0.1)))
    recorder = Recorder(pipe)
    pipe(1, num_inference_steps=5, guidance_scale=2.0, guidance_interval=(0.2, 0.6))
    # Canonical times .9 .7 .5 .3 .1
    assert [len(call["sample"]) for call in recorder.calls] == [1, 1, 2, 2, 1]


def test_guidance_interval_includes_its_ends():
    pipe = pipeline(scheduler=UCGMScheduler(extrapolation_ratio=0.0))
    recorder = Recorder(pipe)
    pipe(1, sigmas=[1.0, 0.75, 0.5, 0.25], guidance_scale=2.0, guidance_interval=(0.5, 0.75))
    assert [len(call["sample"]) for call in recorder.calls] == [1, 2, 2, 1]


def test_transformer_gets_the_scheduler_times_as_float32():
    pipe = pipeline().to(torch.bfloat16)
    recorder = Recorder(pipe)
    latents = pipe(1, timesteps=[999.7, 500.3], output_type="latent").images
    assert latents.dtype == torch.float32
    for call, t in zip(recorder.calls, (999.7, 500.3), strict=True):
        assert call["sample"].dtype == torch.bfloat16
        torch.testing.assert_close(call["timestep"], torch.tensor([t]))


def test_learned_variances_are_cut_off():
    pipe = pipeline(out_channels=8)
    assert pipe(1, num_inference_steps=2, output_type="latent").images.shape == (1, 4, 8, 8)
    assert pipeline(out_channels=None)(1, num_inference_steps=1, output_type="latent").images.shape == (1, 4, 8, 8)


def test_given_latents_are_the_noise():
    pipe, noise = pipeline(), torch.randn(1, 4, 8, 8, generator=seeded(7))
    given = pipe(1, num_inference_steps=3, latents=noise, output_type="latent").images
    drawn = pipe(1, num_inference_steps=3, generator=seeded(7), output_type="latent").images
    torch.testing.assert_close(given, drawn, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"`latents` must have shape \(1, 4, 8, 8\), got \(1, 4, 4, 4\)"):
        pipe(1, latents=torch.zeros(1, 4, 4, 4))


def test_callback_sees_every_call_and_may_replace_latents():
    pipe, seen = pipeline(), []

    def callback(pipe, i, t, tensors):
        seen.append((i, float(t)))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 2 else {}

    latents = pipe(1, num_inference_steps=3, callback_on_step_end=callback, output_type="latent").images
    assert [i for i, _ in seen] == [0, 1, 2]
    torch.testing.assert_close([t for _, t in seen], pipe.scheduler.timesteps.tolist())
    assert float(latents.abs().max()) == 0


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.zeros(2), "`callback_on_step_end` must give a dictionary or None"),
        ({"latents": 3}, r"must give `latents` of the shape of the run's, \(1, 4, 8, 8\), got 3"),
        ({"latents": torch.zeros(1, 4, 4, 4)}, r"\(1, 4, 8, 8\), got \(1, 4, 4, 4\)"),
    ],
    ids=str,
)
def test_bad_results_of_a_callback_are_refused_and_the_run_is_over(result, message):
    pipe = pipeline()
    with pytest.raises(ValueError, match=message):
        pipe(1, num_inference_steps=3, callback_on_step_end=lambda *_: result)
    assert pipe.current_timestep is None


def test_callback_may_interrupt():
    pipe = pipeline()

    def callback(pipe, i, t, tensors):
        pipe._interrupt = i == 1
        return {}

    assert pipe(1, num_inference_steps=5, callback_on_step_end=callback).num_network_calls == 2


def test_stock_flow_schedulers_work_too():
    for scheduler, calls in ((FlowMatchEulerDiscreteScheduler(), 4), (FlowMatchHeunDiscreteScheduler(), 7)):
        pipe = pipeline(scheduler=scheduler)
        assert pipe(1, num_inference_steps=4).num_network_calls == calls


def test_return_dict_false_gives_a_tuple():
    images = pipeline()([1, 2], num_inference_steps=1, return_dict=False)
    assert isinstance(images, tuple)
    assert len(images) == 1
    assert len(images[0]) == 2


@pytest.mark.parametrize(
    ("labels", "ids"),
    [(3, [3]), ("bag", [0]), (["Ankle boot", 1], [4, 1]), (torch.tensor([[2], [0]]), [2, 0]), (np.array([1]), [1])],
)
def test_labels_are_ids_or_names(labels, ids):
    assert pipeline().get_label_ids(labels) == ids


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("boot", r"ids or names of `id2label`, \['Ankle boot', 'Bag', .*got 'boot'"),
        (5, r"`class_labels` must be in \[0, 4\], got 5"),
        (-1, r"`class_labels` must be in \[0, 4\], got -1"),
        ([], "`class_labels` must not be empty"),
        ([1.5], "`class_labels` must be ids or names, got 1.5"),
    ],
)
def test_bad_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        pipeline()(labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "jpg"}, "`output_type` must be"),
        ({"guidance_scale": -1.0}, "`guidance_scale` must be from 0 up, got -1.0"),
        ({"guidance_interval": (0.7, 0.2)}, "`guidance_interval` must be two rising times"),
        ({"callback_on_step_end_tensor_inputs": ["x"]}, "`callback_on_step_end_tensor_inputs` must be in"),
        ({"generator": [torch.Generator()]}, "`generator` must have one entry for each of 2 samples, got 1"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline()([1, 2], **arguments)


NAN, INF = float("nan"), float("inf")
MALFORMED = {
    "class_labels": [
        None,
        {},
        {"a": 1},
        object(),
        1.0,
        NAN,
        True,
        [True],
        [None],
        [[1]],
        ["1.5"],
        -1,
        10**30,
        torch.ones(2),
    ],
    "guidance_scale": [NAN, INF, -INF, "2", True, [2.0], {}, 1e300, 10**400, torch.ones(2)],
    "guidance_interval": [
        0.5,
        "ab",
        (0.1,),
        (0.1, 0.2, 0.3),
        (NAN, 1.0),
        (0.0, INF),
        (True, False),
        {0.1, 0.9},
        ["0", "1"],
    ],
    "num_inference_steps": [-1, 2.0, NAN, "4", True, [4], {}, 10**30],
    "timesteps": ["abc", 5, [], [NAN], [1e9], [1.0, 900.0], [[1.0]], {}, [True]],
    "sigmas": ["abc", 5, [], [NAN], [1e9], [0.1, 0.9], [[1.0]], {}, [True]],
    "generator": [0, "cpu", [], [None, None], [torch.Generator()] * 3, np.random.default_rng(0)],
    "latents": ["x", 1.0, np.zeros((2, 4, 8, 8)), torch.zeros(2, 4, 8, 8).long(), torch.full((2, 4, 8, 8), NAN)],
    "output_type": [None, 1, ["pil"], {}, "PIL"],
    "return_dict": [None, 1, "false"],
    "callback_on_step_end": [1, "x", []],
    "callback_on_step_end_tensor_inputs": [None, "latents", 1, [1], ["x"], {}],
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_arguments_are_refused_by_name(name):
    pipe = pipeline()
    for value in MALFORMED[name]:
        arguments = {"class_labels": [1, 2], "num_inference_steps": None if name in ("timesteps", "sigmas") else 2}
        with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
            pipe(**{**arguments, name: value})


def test_unknown_argument_is_a_type_error():
    with pytest.raises(TypeError, match="num_steps"):
        pipeline()(1, num_steps=3)


def test_non_finite_output_is_an_error():
    pipe = pipeline()
    with torch.no_grad():
        pipe.transformer.proj_out_2.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="The transformer's output was not finite, in torch.float32"):
        pipe(1, num_inference_steps=2)


def test_latent_statistics_follow_the_autoencoder():
    z = torch.randn(2, 4, 3, 3, generator=seeded())
    vae = autoencoder("kl")
    torch.testing.assert_close(normalize_latents(vae, z), (z - 0.25) * 0.5)
    vae.register_to_config(latents_mean=[0.0, 1.0, 2.0, 3.0], latents_std=[1.0, 2.0, 3.0, 4.0], scaling_factor=1.0)
    expected = (z - torch.arange(4.0).reshape(1, 4, 1, 1)) / torch.arange(1.0, 5.0).reshape(1, 4, 1, 1)
    torch.testing.assert_close(normalize_latents(vae, z), expected)
    torch.testing.assert_close(denormalize_latents(vae, normalize_latents(vae, z)), z)


def test_offload_order_names_the_components():
    assert UCGMPipeline.model_cpu_offload_seq == "transformer->vae"
    assert UCGMPipeline._optional_components == ["vae"]


class AnyStepTransformer(DiTTransformer2DModel):
    """A network that is told where its call leads, as diffusers' AnyFlowTransformer3DModel is."""

    def forward(self, hidden_states, timestep=None, class_labels=None, r_timestep=None, return_dict=True):
        self.told.append((float(timestep[0]), float(r_timestep[0])))
        assert r_timestep.shape == timestep.shape == (len(hidden_states),)
        return super().forward(hidden_states, timestep, class_labels, return_dict=return_dict)


@pytest.mark.parametrize(("stochasticity", "targets"), [(0.0, [600.0, 200.0, 0.0]), (1.0, [0.0, 0.0, 0.0])])
def test_any_step_transformers_are_told_where_a_call_leads(stochasticity, targets):
    model = AnyStepTransformer(**dict(transformer().config)).eval()
    pipe = pipeline(scheduler=UCGMScheduler(extrapolation_ratio=0.0, stochasticity=stochasticity))
    pipe.transformer = model
    model.told = []
    pipe([1, 2], sigmas=[1.0, 0.6, 0.2], guidance_scale=2.0, generator=seeded(), output_type="latent")
    assert [told[0] for told in model.told] == pytest.approx([1000.0, 600.0, 200.0])
    assert [told[1] for told in model.told] == pytest.approx(targets)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match="takes `r_timestep`.*Use `UCGMScheduler`"):
        pipe([1], num_inference_steps=2)


@pytest.mark.parametrize("transport", ["discrete_beta", "sigma_space", "scm"])
def test_other_families_are_drawn_with_a_guidance_interval_in_canonical_time(transport):
    pipe = pipeline(scheduler=UCGMScheduler(transport=transport))
    recorder = Recorder(pipe)
    output = pipe([1], num_inference_steps=4, guidance_scale=2.0, guidance_interval=(0.0, 0.5), output_type="latent")
    assert output.images.isfinite().all()
    assert output.num_network_calls == 4
    assert [len(call["sample"]) for call in recorder.calls] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "given",
    [
        {"transformer": torch.nn.Linear(2, 2)},
        {"vae": "kl"},
        {"scheduler": UCGMScheduler},
        {"id2label": {0: "a", "0": "b"}},
        {"id2label": {-1: "a"}},
        {"id2label": {0: 1}},
        {"guided_channels": "2"},
        {"latents_mean": [0.0, float("nan")]},
        {"latents_std": [1.0, -1.0]},
        {"do_normalize": "no"},
        {"call_defaults": 5},
    ],
)
def test_parts_are_refused_by_name(given):
    parts = {"transformer": transformer(), "vae": None, "scheduler": UCGMScheduler()}
    with pytest.raises(ValueError, match=f"`{next(iter(given))}` must be .*, got"):
        UCGMPipeline(**{**parts, **given})


@pytest.mark.parametrize("name", ["num_inference_steps", "guidance_scale", "guidance_interval"])
def test_defaults_of_calls_are_checked_when_they_are_given(name):
    with pytest.raises(ValueError, match=f"`{name}` must be"):
        UCGMPipeline(transformer(), None, UCGMScheduler(), call_defaults={name: "4"})


def test_a_lora_is_loaded_and_taken_off_again(tmp_path):
    tuned, pipe = pipeline(), pipeline()
    add_lora(tuned.transformer, 2)
    with torch.no_grad():
        for name, weight in tuned.transformer.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.1)
    save_lora(tuned.transformer, tmp_path)
    call = {"num_inference_steps": 2, "output_type": "latent"}
    before = pipe(1, generator=seeded(), **call).images
    pipe.load_lora_weights(tmp_path)
    assert not torch.allclose(pipe(1, generator=seeded(), **call).images, before)
    with pytest.raises(ValueError, match="LoRA|adapter"):
        pipe.load_lora_weights(tmp_path)
    pipe.unload_lora_weights()
    assert torch.equal(pipe(1, generator=seeded(), **call).images, before)
    pipe.unload_lora_weights()
    pipe.load_lora_weights(tmp_path)


@pytest.mark.parametrize("output_type", ["pt", "np"])
def test_latents_are_decoded_as_a_call_decodes_them(output_type):
    pipe = pipeline(autoencoder("kl"))
    latents = pipe([1], num_inference_steps=2, generator=seeded(), output_type="latent").images
    images = pipe([1], num_inference_steps=2, generator=seeded(), output_type=output_type).images
    assert np.array_equal(np.asarray(pipe.decode(latents, output_type).tolist()), np.asarray(images.tolist()))
    assert pipe.decode(latents, "latent") is latents
