"""Converted networks give the outputs of the published ones."""

import pytest
import torch
from checkpoint_files import write
from networks import NAMES, SETTINGS, TOLERANCE, error, golden

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.conversion.convert import convert_checkpoint
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network, network_plan
from diffusers_ucgm.loading import DTYPE
from diffusers_ucgm.network_calls import guide


@pytest.fixture(scope="module", params=NAMES)
def converted(request, tmp_path_factory):
    """A golden network, converted, saved and loaded again by the pipeline."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    case = golden(name)
    checkpoint = write(folder / "0000000.pt", {"ema": case.weights, "model": {"x": torch.zeros(1)}, "steps": 3})
    convert_checkpoint(checkpoint, folder / "pipeline", **SETTINGS[name])
    pipe = UCGMPipeline.from_pretrained(folder / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return name, case, pipe


@torch.no_grad()
def predicted(pipe, x, t, y):
    return pipe.transformer(x, t, y).sample


def test_a_converted_network_gives_the_published_ones_outputs(converted):
    name, case, pipe = converted
    found = [key.removesuffix(".output") for key in case.cases if key.endswith(".output") and "forward" in key]
    assert "forward" in found
    for each in found:
        source = "forward" if each == "forward_uncond" else each
        x, t, y = (case.cases[f"{source}.{part}"] for part in "xty")
        output = predicted(pipe, x, t, None if each == "forward_uncond" else y)
        assert error(output, case.cases[f"{each}.output"]) < TOLERANCE, each


def guided_case(case, each):
    x, t, y = (case.cases[f"{each['name']}.{part}"] for part in "xty")
    half = len(x) // 2
    return torch.cat([x[:half]] * 2), t, y, case.cases[f"{each['name']}.output"][:half]


def test_guidance_is_the_published_one(converted):
    name, case, pipe = converted
    assert pipe.config.guided_channels == (3 if name == "lightningdit" else None)
    for each in case.config["cfg_cases"]:
        x, t, y, expected = guided_case(case, each)
        both = predicted(pipe, x, t, y)
        output = both.chunk(2)[0]
        if each["guidance_active"]:
            output = guide(*both.chunk(2), each["cfg_scale"], pipe.config.guided_channels)
        assert error(output, expected) < TOLERANCE, each["name"]


def test_a_call_of_the_pipeline_guides_within_the_interval_of_canonical_times(converted):
    name, case, pipe = converted
    checked = 0
    for each in case.config["cfg_cases"]:
        x, t, y, expected = guided_case(case, each)
        if len(set(t.tolist())) > 1:
            continue
        half, (start, stop) = len(x) // 2, each["cfg_interval"]
        # The reference gives bounds in the network's own time.
        interval = (1.0 - stop, 1.0 - start) if ARCHITECTURES[name].transport == "relinear" else (start, stop)
        seen = []
        step = pipe.scheduler.step

        def record(output, *args, seen=seen, step=step, **kwargs):
            seen.append(output)
            return step(output, *args, **kwargs)

        pipe.scheduler.step = record
        if t[0].item() not in (0.0, 1.0):  # the last of a schedule's times
            latents = x[:half] / pipe.scheduler.init_noise_sigma
            arguments = {"guidance_scale": each["cfg_scale"], "guidance_interval": interval, "output_type": "latent"}
            pipe(y[:half], timesteps=[t[0].item()], latents=latents, **arguments)
            assert error(seen[0], expected) < TOLERANCE, each["name"]
            checked += 1
        del pipe.scheduler.step
    assert checked


def test_guidance_in_bf16_stays_close(converted, tmp_path):
    name, case, pipe = converted
    pipe.save_pretrained(tmp_path)
    half = UCGMPipeline.from_pretrained(tmp_path, **{DTYPE: torch.bfloat16})
    half.set_progress_bar_config(disable=True)
    for each in case.config["cfg_cases"]:
        if not each["guidance_active"]:
            continue
        x, t, y, expected = guided_case(case, each)
        both = predicted(half, x.to(torch.bfloat16), t, y).float()
        output = guide(*both.chunk(2), each["cfg_scale"], pipe.config.guided_channels)
        assert error(output, expected) < 0.08, each["name"]  # measured: 0.012 to 0.052
    arguments = {"num_inference_steps": 4, "guidance_scale": 2.0, "output_type": "latent"}
    exact, found = (
        each([1, 2], generator=torch.Generator().manual_seed(0), **arguments).images for each in (pipe, half)
    )
    assert error(found, exact) < 0.14  # measured: 0.014 (TiT, LightningDiT, EDM2), 0.064 (SiT), 0.090 (DDT)


def test_a_guided_call_of_scale_below_1_leans_to_the_null_class(converted):
    _, _, pipe = converted
    arguments = {"num_inference_steps": 2, "output_type": "latent"}
    plain, leaning, off = (
        pipe([1], guidance_scale=scale, generator=torch.Generator().manual_seed(0), **arguments).images
        for scale in (1.0, 0.5, 0.0)
    )
    assert torch.equal(plain, off)
    assert error(leaning, plain) > 1e-4


def test_another_rotation_is_refused():
    weights = golden("tit").weights
    weights["feat_rope.freqs_cos"] = weights["feat_rope.freqs_cos"].roll(1, 0)
    with pytest.raises(ValueError, match="the rotation of the published networks in feat_rope.freqs_cos"):
        network_plan(weights)


@pytest.mark.parametrize("name", NAMES)
def test_conversion_frees_the_checkpoint_and_keeps_or_casts_weights(name):
    weights = golden(name).weights
    model = convert_network(weights, torch.bfloat16, **SETTINGS[name])
    assert not weights
    dtypes = {key: value.dtype for key, value in model.state_dict().items()}
    # EDM2's frequencies, of up to 30 and more, would turn the features.
    kept = {"time_proj.freqs", "time_proj.phases"} if name == "edm2" else set()
    assert {key for key, dtype in dtypes.items() if dtype == torch.float32} == kept
    assert set(dtypes.values()) <= {torch.float32, torch.bfloat16}
    if kept:
        assert torch.equal(model.time_proj.freqs, golden(name).weights["emb_fourier.freqs"])
    assert {each.device.type for each in [*model.parameters(), *model.buffers()]} == {"cpu"}
