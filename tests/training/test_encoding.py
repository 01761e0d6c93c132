"""Prompts and pictures through the stock pipelines' own encoders."""

import pytest
import stock_pipelines
import torch
from prompt_pipelines import LENGTHS, with_encoders
from stock_calls import STOCK, recorded_steps, unpacked

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.pipeline import denormalize_latents, normalize_latents
from diffusers_ucgm.training.adapters import adapter_for_pipeline
from diffusers_ucgm.training.encoding import encode_null, encode_pixels, encode_prompts
from diffusers_ucgm.training.network_adapter import convention_of_scheduler


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


ENCODING = [
    *("sd15", "sdxl", "flux", "ltx", "wan", "pixart_sigma"),
    *("sd3", "aura_flow", "cogvideox_2b", "sana", "lumina2", "z_image", "qwen_image"),
]


@pytest.mark.parametrize("name", ENCODING)
def test_prompts_are_encoded_as_the_stock_pipeline_encodes_them(name):
    case, stock = with_encoders(name), STOCK[name]
    pipe = case.pipe
    adapter, convention = adapter_for_pipeline(pipe), convention_of_scheduler(pipe.scheduler)
    condition = encode_prompts(pipe, adapter, ["a red square"], **LENGTHS.get(name, {}))
    (model_output, timestep, sample), *_ = recorded_steps(case, **stock.call)
    t = convention.time(torch.as_tensor(timestep).double().reshape(1))
    if stock.latents:
        like = torch.empty(1, *stock.latents)
        sample, model_output = (unpacked(adapter, value, like) for value in (sample, model_output))
    x_t = (
        sample * convention.transport.gamma(t).reshape(-1, *(1,) * (sample.ndim - 1)) if convention.divides else sample
    )
    with torch.no_grad():
        found = adapter(network_of(pipe), x_t.float(), convention.transport.model_time(t).float(), **condition)
    torch.testing.assert_close(found, model_output[:, : found.shape[1]].float(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ENCODING)
def test_no_prompt_has_the_keywords_and_length_of_a_prompt(name):
    pipe = with_encoders(name).pipe
    adapter = adapter_for_pipeline(pipe)
    lengths = LENGTHS.get(name, {})
    prompts = encode_prompts(pipe, adapter, ["a red square", "a cat"], **lengths)
    null = encode_null(pipe, adapter, **lengths)
    assert set(prompts) == set(null)
    for keyword, value in null.items():
        assert value.shape == (1, *prompts[keyword].shape[1:])
        assert not value.requires_grad
    name, value = next(iter(prompts.items()))
    assert not torch.equal(value[0], null[name][0])
    assert not torch.equal(value[0], value[1])


def test_the_null_of_an_xl_model_is_the_zeros_it_was_trained_with():
    pipe = with_encoders("sdxl").pipe
    assert pipe.config.force_zeros_for_empty_prompt
    null = encode_null(pipe, adapter_for_pipeline(pipe))
    assert all(value.abs().max() == 0 for value in null.values())


def test_the_length_of_texts_can_be_chosen():
    pipe = with_encoders("wan").pipe
    adapter = adapter_for_pipeline(pipe)
    assert encode_prompts(pipe, adapter, ["a cat"])["encoder_hidden_states"].shape[1] == 512
    assert encode_prompts(pipe, adapter, ["a cat"], max_sequence_length=12)["encoder_hidden_states"].shape[1] == 12


def test_texts_of_their_own_lengths_are_filled_up_and_masked(monkeypatch):
    pipe = stock_pipelines.z_image().pipe
    adapter = adapter_for_pipeline(pipe)
    texts = {"a cat": torch.randn(3, 8), "a red square": torch.randn(5, 8), "": torch.randn(1, 8)}
    monkeypatch.setattr(pipe, "_encode_prompt", lambda prompt, **_: [texts[each] for each in prompt])
    condition = encode_prompts(pipe, adapter, ["a cat", "a red square"], max_sequence_length=6)
    assert condition["cap_feats"].shape == (2, 6, 8)
    assert condition["cap_mask"].sum(1).tolist() == [3, 5]
    assert torch.equal(condition["cap_feats"][0, :3], texts["a cat"])
    null = encode_null(pipe, adapter, max_sequence_length=6)
    assert null["cap_mask"].tolist() == [[True] + [False] * 5]
    assert encode_prompts(pipe, adapter, ["a cat"])["cap_feats"].shape == (1, 512, 8)


def test_a_mask_that_the_pipeline_leaves_out_is_made(monkeypatch):
    pipe = stock_pipelines.qwen_image().pipe
    adapter = adapter_for_pipeline(pipe)
    embeddings = torch.randn(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.long)
    monkeypatch.setattr(pipe, "_get_qwen_prompt_embeds", lambda prompt, device: (embeddings, mask))
    condition = encode_prompts(pipe, adapter, ["one", "two"], max_sequence_length=8)
    assert condition["encoder_hidden_states"].shape == (2, 8, 8)
    assert condition["encoder_hidden_states_mask"].sum(1).tolist() == [5, 5]


def test_pipelines_that_encode_no_prompts_say_so():
    pipe = stock_pipelines.dit().pipe
    with pytest.raises(
        ValueError, match=r"`pipe` must have an `encode_prompt` that DiTAdapter knows, got DiTPipeline"
    ):
        encode_prompts(pipe, adapter_for_pipeline(pipe), ["a cat"])


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("sd15", (2, 4, 16, 16)),
        ("sd3", (2, 16, 16, 16)),
        ("flux", (2, 4, 16, 16)),
        ("sana", (2, 4, 16, 16)),
        ("wan", (2, 4, 1, 4, 4)),
        ("qwen_image", (2, 4, 1, 16, 16)),
        ("ltx", (2, 8, 1, 8, 8)),
        ("cogvideox_2b", (2, 4, 1, 4, 4)),
    ],
)
def test_pictures_become_the_networks_latents(name, shape):
    pipe = getattr(stock_pipelines, name)().pipe
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    first, second = (encode_pixels(pipe, pixels, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_latents_are_shifted_and_scaled_as_the_pipeline_undoes_it():
    pipe = stock_pipelines.sd3().pipe
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = encode_pixels(pipe, pixels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = pipe.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
    undone = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor  # as the pipeline has it
    torch.testing.assert_close(undone, raw)
    torch.testing.assert_close(denormalize_latents(pipe.vae, latents), raw)


def test_latents_may_be_the_means_of_the_posterior():
    pipe = stock_pipelines.sd3().pipe
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(encode_pixels(pipe, pixels, posterior_mean=True), normalize_latents(pipe.vae, mean))
    assert not torch.equal(encode_pixels(pipe, pixels), encode_pixels(pipe, pixels, posterior_mean=True))


def test_statistics_in_the_autoencoders_buffers_count():
    pipe = stock_pipelines.ltx().pipe
    pipe.vae.latents_mean.fill_(2.0)
    pipe.vae.latents_std.fill_(4.0)
    z = torch.randn(1, 8, 1, 2, 2)
    undone = pipe._denormalize_latents(z, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor)
    torch.testing.assert_close(denormalize_latents(pipe.vae, z), undone)


def test_a_pipeline_of_pixels_has_nothing_to_encode_with():
    with pytest.raises(ValueError, match=r"`pipe` must have a `vae` to encode pixels, got DDPMPipeline without one"):
        encode_pixels(stock_pipelines.ddpm().pipe, torch.zeros(1, 3, 8, 8))


def test_bundled_latents_have_unit_scale():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    images = pipe(
        [0, 5, 9], num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    latents = encode_pixels(pipe, images * 2 - 1)
    assert 0.5 < latents.std() < 2.0
