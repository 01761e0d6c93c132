"""Adapters of video networks: tokens and rotary positions as the stock pipelines give them."""

import diffusers
import pytest
import stock_pipelines
import tiny_transformers as tiny
import torch
from stock_calls import stock_case

from diffusers_ucgm.training.adapters import adapter_for_pipeline


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


def test_packing_is_the_pipelines_own():
    pipe = stock_case("ltx").pipe
    x = torch.randn(2, 8, 3, 4, 6)
    packed = adapter_for_pipeline(pipe).pack(x)
    assert isinstance(packed, torch.Tensor)
    assert torch.equal(packed, pipe._pack_latents(x, 1, 1))


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (3, 2, 1)])
def test_packing_keeps_every_value(patch):
    adapter = adapter_for_pipeline(stock_case("ltx").pipe)
    adapter.patch = patch
    x = torch.randn(2, 8, 3, 4, 6)
    packed = adapter.pack(x)
    size = patch[0] * patch[1] * patch[2]
    assert packed.shape == (2, 3 * 4 * 6 // size, 8 * size)
    assert torch.equal(adapter.unpack(packed, x), x)


def test_latents_are_placed_in_seconds_and_pixels():
    pipe = stock_case("ltx").pipe
    keywords = adapter_for_pipeline(pipe, frame_rate=30.0).keywords(torch.randn(2, 8, 3, 4, 6), {})
    assert (keywords["num_frames"], keywords["height"], keywords["width"]) == (3, 4, 6)
    frames, side = pipe.vae_temporal_compression_ratio, pipe.vae_spatial_compression_ratio
    assert keywords["rope_interpolation_scale"] == (frames / 30.0, side, side)


def test_rotary_positions_are_the_pipelines():
    for frame_size in (None, 1):
        pipe = stock_case("cogvideox_5b").pipe
        transformer = diffusers.CogVideoXTransformer3DModel(
            **{
                **pipe.transformer.config,
                "use_rotary_positional_embeddings": True,
                "attention_head_dim": 16,
                "patch_size_t": frame_size,
            }
        )
        pipe.transformer = transformer
        x = torch.randn(1, 4, 2, 8, 6)
        ours = adapter_for_pipeline(pipe).keywords(x, {})["image_rotary_emb"]
        assert isinstance(ours, tuple)
        scale = pipe.vae_scale_factor_spatial
        theirs = pipe._prepare_rotary_positional_embeddings(8 * scale, 6 * scale, 2, x.device)
        for mine, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_the_smallest_cogvideox_has_no_rotary_positions():
    adapter = adapter_for_pipeline(stock_case("cogvideox_2b").pipe)
    assert adapter.keywords(torch.randn(1, 4, 2, 8, 6), {}) == {"image_rotary_emb": None}


def any_flow():
    """AnyFlow's pipeline, and the arguments of a call."""
    scheduler = diffusers.FlowMapEulerDiscreteScheduler()
    network = tiny.build("AnyFlowTransformer3DModel")
    pipe = diffusers.AnyFlowPipeline(None, None, network, stock_pipelines.wan_vae(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "num_frames": 5, "output_type": "latent"}
    return pipe, {"prompt_embeds": torch.randn(1, 6, 8), "guidance_scale": 1.0, **size}


@pytest.mark.parametrize("use_mean_velocity", [False, True])
@torch.no_grad()
def test_any_flow_is_called_with_both_times_as_its_pipeline_calls_it(use_mean_velocity):
    torch.manual_seed(0)
    pipe, call = any_flow()
    seen, given = [], []
    pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, output: seen.append((kwargs, output[0])), with_kwargs=True
    )
    pipe(**call, num_inference_steps=3, use_mean_velocity=use_mean_velocity)
    adapter = adapter_for_pipeline(pipe)
    calls = list(seen)
    pipe.transformer.register_forward_pre_hook(lambda module, args, kwargs: given.append(kwargs), with_kwargs=True)
    assert len(calls) == 3
    for kwargs, expected in calls:
        t, r = kwargs["timestep"][:, 0] / 1000.0, kwargs["r_timestep"][:, 0] / 1000.0
        assert torch.equal(t, r) != use_mean_velocity
        told = {"target_time": r} if use_mean_velocity else {}
        x_t = kwargs["hidden_states"].transpose(1, 2)
        found = adapter(pipe.transformer, x_t, t, encoder_hidden_states=kwargs["encoder_hidden_states"], **told)
        torch.testing.assert_close(found.transpose(1, 2), expected, rtol=1e-4, atol=1e-5)
        for name in ("timestep", "r_timestep"):
            torch.testing.assert_close(given[-1][name], kwargs[name], rtol=1e-5, atol=1e-3)
