"""Networks of the Hub, and LoRAs for a pipeline of any class, from what people have: runs, folders, files."""

import shutil

import pytest
import stock_pipelines
import torch
import two_time_networks as two_time
from lora_runs import PIPELINES, Texts, settings
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffusers_ucgm import UCGMPipeline, UCGMScheduler, add_second_time
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.fingerprint import fingerprint
from diffusers_ucgm.image_metrics.samples import generate_samples
from diffusers_ucgm.loading import load_network, load_pipeline_lora
from diffusers_ucgm.lora import LORA_WEIGHTS_NAME, NOTES, add_lora, lora_notes, save_lora
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
MULTI_STEP = {"consistency_ratio": 0.0, "enhancement_ratio": 0.0}


def trained(name, folder, **options):
    """A case whose network has just been given a LoRA by the trainer, and the run's folder."""
    names, shape = PIPELINES[name]
    case = getattr(stock_pipelines, name)()
    UCGMTrainer.from_pipeline(settings(folder, lora_rank=2, **options), case.pipe, Texts(case, names, shape)).train()
    network_of(case.pipe).eval()
    return case


def written(network, folder, prefix="transformer", seed=0):
    """An adapter that has an effect, in a folder."""
    add_lora(network, 2)
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        if "lora" in name:
            value.data = torch.randn(value.shape, generator=generator) * 0.5
    return save_lora(network, folder, prefix)


@pytest.mark.parametrize("name", ["sd3", "sd15", "flux", "wan"])
@pytest.mark.parametrize("part", [".", "lora", f"lora/{LORA_WEIGHTS_NAME}"])
def test_what_a_run_leaves_is_loaded(tmp_path, name, part):
    tuned = trained(name, tmp_path, **MULTI_STEP)()
    fresh = getattr(stock_pipelines, name)()
    base = fresh()
    load_pipeline_lora(fresh.pipe, tmp_path / part)
    torch.testing.assert_close(fresh(), tuned, rtol=0, atol=0)
    assert not torch.equal(base, tuned)


def test_the_scale_goes_from_nothing_to_the_whole(tmp_path):
    written(stock_pipelines.sd3().pipe.transformer, tmp_path)
    samples = {}
    for scale in (0.0, 0.5, 1.0):
        fresh = stock_pipelines.sd3()
        load_pipeline_lora(fresh.pipe, tmp_path, scale)
        samples[scale] = fresh()
    torch.testing.assert_close(samples[0.0], stock_pipelines.sd3()(), rtol=0, atol=1e-5)
    assert not torch.allclose(samples[0.5], samples[0.0], atol=1e-4)
    assert not torch.allclose(samples[0.5], samples[1.0], atol=1e-4)
    # The stock pipelines' own words for it mean the same.
    stock = stock_pipelines.sd3()
    stock.pipe.load_lora_weights(tmp_path, weight_name=LORA_WEIGHTS_NAME, adapter_name="a")
    stock.pipe.set_adapters(["a"], [0.5])
    torch.testing.assert_close(stock(), samples[0.5], rtol=0, atol=0)


def test_class_conditional_pipelines_take_a_lora_and_its_scale(tmp_path):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    written(pipe.transformer, tmp_path)
    samples = {}
    for scale in (0.0, 0.5, 1.0):
        fresh = UCGMPipeline.from_pretrained("fashion-mnist")
        fresh.set_progress_bar_config(disable=True)
        load_pipeline_lora(fresh, tmp_path, scale)
        samples[scale] = fresh([3], num_inference_steps=2, latents=torch.ones(1, 4, 8, 8), output_type="latent").images
    assert not torch.equal(samples[0.0], samples[0.5])
    assert not torch.equal(samples[0.5], samples[1.0])
    fresh.unload_lora_weights()
    base = fresh([3], num_inference_steps=2, latents=torch.ones(1, 4, 8, 8), output_type="latent").images
    torch.testing.assert_close(base, samples[0.0], rtol=0, atol=1e-5)
    load_pipeline_lora(fresh, tmp_path)
    again = fresh([3], num_inference_steps=2, latents=torch.ones(1, 4, 8, 8), output_type="latent").images
    torch.testing.assert_close(again, samples[1.0], rtol=0, atol=0)


def test_pipelines_without_lora_methods_take_one(tmp_path):
    written(stock_pipelines.pixart_sigma().pipe.transformer, tmp_path)
    fresh = stock_pipelines.pixart_sigma()
    assert not hasattr(fresh.pipe, "load_lora_weights")
    base = fresh()
    load_pipeline_lora(fresh.pipe, tmp_path)
    assert not torch.allclose(fresh(), base, atol=1e-4)


@pytest.mark.parametrize("is_few_step", [True, False])
def test_a_lora_for_few_steps_brings_its_sampler(tmp_path, is_few_step):
    trained("sd3", tmp_path, **({} if is_few_step else MULTI_STEP))
    fresh = stock_pipelines.sd3()
    stock = fresh.pipe.scheduler
    load_pipeline_lora(fresh.pipe, tmp_path)
    if not is_few_step:
        assert fresh.pipe.scheduler is stock
        return
    assert isinstance(fresh.pipe.scheduler, UCGMScheduler)
    assert fresh.pipe.scheduler.config.stochasticity == 1.0
    assert fresh.pipe.scheduler.config.shift == stock.config.shift


# --- whose samples they are ------------------------------------------------------------------------------------------


def with_lora(folder, scale):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    if folder is not None:
        load_pipeline_lora(pipe, folder, scale)
    return pipe


def test_another_lora_or_scale_is_another_evaluation(tmp_path):
    for seed in (0, 1):
        written(UCGMPipeline.from_pretrained("fashion-mnist").transformer, tmp_path / str(seed), seed=seed)
    runs = [(None, 1.0), (tmp_path / "0", 1.0), (tmp_path / "0", 0.5), (tmp_path / "1", 1.0)]
    words = [fingerprint(with_lora(*run)) for run in runs]
    assert len(set(words)) == 4
    assert fingerprint(with_lora(*runs[2])) == words[2]
    call = {"num_samples": 2, "num_inference_steps": 1, "progress": False, "batch_size": 2}
    for i, run in enumerate(runs):
        generate_samples(with_lora(*run), tmp_path / f"samples-{i}", **call)
    for i, run in enumerate(runs):
        generate_samples(with_lora(*run), tmp_path / f"samples-{i}", **call)
        for other in runs[:i]:
            with pytest.raises(ValueError, match=r"where \['weights'\] differ"):
                generate_samples(with_lora(*other), tmp_path / f"samples-{i}", **call)


def test_another_scale_is_another_comparison(tmp_path):
    written(UCGMPipeline.from_pretrained("fashion-mnist").transformer, tmp_path / "lora")
    call = {"solvers": {"own": UCGMScheduler()}, "calls": [1], "num_solution_calls": 4, "progress": False}
    for scale in (1.0, 0.5):
        pipe = with_lora(tmp_path / "lora", scale)
        if scale == 1.0:
            compare_solvers(pipe, [0, 1], [0, 1], output=tmp_path / "compared", **call)
        else:
            with pytest.raises(ValueError, match=r"where \['model', 'samples'\] differ"):
                compare_solvers(pipe, [0, 1], [0, 1], output=tmp_path / "compared", **call)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_folders_of_other_kinds_are_named(tmp_path):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    data = LatentDataset(torch.randn(6, 4, 8, 8), torch.arange(6))
    trainer = UCGMTrainer.from_pipeline(settings(tmp_path / "run", lora_rank=2), pipe, data)
    checkpoint = trainer.save_checkpoint()
    fresh = UCGMPipeline.from_pretrained("fashion-mnist")
    with pytest.raises(ValueError, match=r"`source` must be a finished LoRA, got '.*', a training checkpoint"):
        load_pipeline_lora(fresh, checkpoint)
    with pytest.raises(ValueError, match=r"`source` must hold a LoRA, got '.*run', a training run without one"):
        load_pipeline_lora(fresh, tmp_path / "run")
    fresh.save_pretrained(tmp_path / "pipeline")
    for part in ("pipeline", "pipeline/transformer"):
        with pytest.raises(ValueError, match=r"with whole weights\. Give it as the model"):
            load_pipeline_lora(fresh, tmp_path / part)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"must hold a LoRA in a safetensors file, got '.*empty' without any"):
        load_pipeline_lora(fresh, tmp_path / "empty")
    for missing in ("./nope", f"{tmp_path}/nope", "tests/nope", "a/b/c", "nope"):
        with pytest.raises(FileNotFoundError, match=r"which does not exist"):
            load_pipeline_lora(fresh, missing)
    (tmp_path / "lora.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"`source` must be a LoRA in a safetensors file"):
        load_pipeline_lora(fresh, tmp_path / "lora.bin")


def test_the_one_lora_of_a_folder_is_found_and_several_are_named(tmp_path):
    file = written(stock_pipelines.sd3().pipe.transformer, tmp_path)
    file.rename(tmp_path / "style.safetensors")
    fresh = stock_pipelines.sd3()
    base = fresh()
    load_pipeline_lora(fresh.pipe, tmp_path)
    assert not torch.equal(fresh(), base)
    shutil.copy(tmp_path / "style.safetensors", tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"with \['other\.safetensors', 'style\.safetensors'\]\. Name one"):
        load_pipeline_lora(stock_pipelines.sd3().pipe, tmp_path)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), "1", None, True])
def test_scales_are_finite_numbers(tmp_path, scale):
    with pytest.raises(ValueError, match=r"`scale` must be a finite number, got"):
        load_pipeline_lora(stock_pipelines.sd3().pipe, tmp_path, scale)


SPOILT = {
    "another component": lambda tensors: {f"unet.{name[12:]}": value for name, value in tensors.items()},
    "more blocks": lambda tensors: {
        **tensors,
        **{name.replace("blocks.0", "blocks.7"): value.clone() for name, value in tensors.items()},
    },
    "another width": lambda tensors: {
        name: torch.cat([value, value], 1) if "lora_A" in name else value for name, value in tensors.items()
    },
    "not finite": lambda tensors: {name: value * float("nan") for name, value in tensors.items()},
    "whole weights": lambda tensors: {
        name.replace("lora_A", "a").replace("lora_B", "b"): value for name, value in tensors.items()
    },
}


@pytest.mark.parametrize("kind", SPOILT)
@pytest.mark.parametrize("name", ["sd3", "pixart_sigma", "own"])
def test_a_lora_that_does_not_fit_is_refused_and_leaves_no_trace(tmp_path, kind, name):
    def build():
        if name == "own":
            return UCGMPipeline.from_pretrained("fashion-mnist")
        return getattr(stock_pipelines, name)().pipe

    pipe = build()
    file = written(build().transformer, tmp_path)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    # LoRAs of other tools have no metadata, which pipelines without LoRA methods need.
    save_file(SPOILT[kind](load_file(file)), file, None if name == "sd3" else metadata)
    before, word = set(pipe.transformer.state_dict()), fingerprint(pipe)
    with pytest.raises(ValueError, match=rf"`source` must be a LoRA for this {type(pipe).__name__}, got '.*'"):
        load_pipeline_lora(pipe, tmp_path)
    assert set(pipe.transformer.state_dict()) == before
    assert fingerprint(pipe) == word
    assert "peft_config" not in vars(pipe.transformer)


def test_a_torn_file_and_a_second_lora_are_refused(tmp_path):
    written(stock_pipelines.sd3().pipe.transformer, tmp_path)
    pipe = stock_pipelines.sd3().pipe
    (tmp_path / "torn.safetensors").write_bytes((tmp_path / LORA_WEIGHTS_NAME).read_bytes()[:100])
    with pytest.raises(ValueError, match=r"`source` must be a LoRA in a safetensors file, got .*torn\.safetensors"):
        load_pipeline_lora(pipe, tmp_path / "torn.safetensors")
    load_pipeline_lora(pipe, tmp_path)
    with pytest.raises(ValueError, match=r"`pipe` must not have a LoRA yet"):
        load_pipeline_lora(pipe, tmp_path)


def test_the_file_says_what_it_is_for(tmp_path):
    network = stock_pipelines.sd3().pipe.transformer
    add_lora(network, 2)
    save_lora(network, tmp_path, notes={"network": "transformer_2"})
    with pytest.raises(ValueError, match=r"it is for `transformer_2`, which the pipeline does not have"):
        load_pipeline_lora(stock_pipelines.sd3().pipe, tmp_path)
    assert lora_notes(tmp_path / LORA_WEIGHTS_NAME) == {"network": "transformer_2"}


def test_damaged_notes_of_a_lora_are_named(tmp_path):
    file = tmp_path / LORA_WEIGHTS_NAME
    written(stock_pipelines.sd3().pipe.transformer, tmp_path)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata() or {}
    save_file(load_file(file), file, {**metadata, NOTES: "{torn"})
    with pytest.raises(ValueError, match=r"`--lora` must be a LoRA in a safetensors file, got .*Expecting"):
        load_pipeline_lora(stock_pipelines.sd3().pipe, tmp_path, argument="--lora")


def on_the_hub(cache, name, network):
    """Put a network into the cache of the Hub, as a download leaves it."""
    repository = cache / f"models--{name.replace('/', '--')}"
    network.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)


@pytest.mark.parametrize("method", [None, "sum", "depth"])
@torch.no_grad()
def test_networks_of_the_hub_are_of_their_class(monkeypatch, tmp_path, method):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    case = two_time.called("sd3")
    if method is not None:
        add_second_time(case.network, method)
        case.adapt()
    times = {} if method is None else {"target_time": two_time.R}
    expected = case(case.latents, two_time.T, **times)
    on_the_hub(tmp_path, "owner/any-step", case.network)
    loaded = load_network("owner/any-step")
    assert type(loaded) is type(case.network)
    case.network = loaded
    torch.testing.assert_close(case(case.latents, two_time.T, **times), expected)


def test_networks_of_this_package_are_found_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    network = two_time.called("sit").network
    on_the_hub(tmp_path, "owner/ours", network)
    assert type(load_network("owner/ours", torch.bfloat16)) is type(network)
    with pytest.raises(OSError, match="owner/other"):
        load_network("owner/other")
