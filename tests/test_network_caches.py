"""The caches of diffusers on the networks of `UCGMPipeline` and of stock pipelines with our scheduler."""

import diffusers
import pytest
import stock_pipelines
import torch
from diffusers import DiTTransformer2DModel
from diffusers.hooks import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    apply_faster_cache,
    apply_first_block_cache,
    apply_mag_cache,
    apply_pyramid_attention_broadcast,
    apply_taylorseer_cache,
)
from torch import nn

from diffusers_ucgm import EDM2UNet2DModel, UCGMPipeline, UCGMScheduler, UCGMTransformer2DModel
from diffusers_ucgm.fingerprint import fingerprint
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.network_caches import check_no_cache, disable_cache, enable_cache, has_cache
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import UCGMTrainer


# Of FasterCache in diffusers.
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")

STEPS = 8
APPLY = {
    "first block": apply_first_block_cache,
    "taylorseer": apply_taylorseer_cache,
    "mag": apply_mag_cache,
    "pab": apply_pyramid_attention_broadcast,
    "faster": apply_faster_cache,
}


def config(kind, pipe, calls=STEPS, **settings):
    """A cache that saves much, on any network."""
    largest = 1.0e6

    def now():
        return pipe.current_timestep

    if kind == "first block":
        return FirstBlockCacheConfig(**{"threshold": 10.0, **settings})
    if kind == "taylorseer":
        return TaylorSeerCacheConfig(
            **{
                "cache_interval": 3,
                "disable_cache_before_step": 2,
                "max_order": 1,
                "taylor_factors_dtype": torch.float32,
                **settings,
            }
        )
    if kind == "mag":
        return MagCacheConfig(
            **{
                "threshold": 10.0,
                "max_skip_steps": 2,
                "retention_ratio": 0.2,
                "num_inference_steps": calls,
                "mag_ratios": [1.0] * calls,
                **settings,
            }
        )
    if kind == "pab":
        return PyramidAttentionBroadcastConfig(
            **{
                "spatial_attention_block_skip_range": 2,
                "spatial_attention_timestep_skip_range": (-largest, largest),
                "current_timestep_callback": now,
                **settings,
            }
        )
    return FasterCacheConfig(
        **{
            "spatial_attention_timestep_skip_range": (-largest, largest),
            "unconditional_batch_timestep_skip_range": (-largest, largest),
            "unconditional_batch_skip_range": 2,
            "current_timestep_callback": now,
            "attention_weight_callback": lambda _: 0.3,
            "tensor_format": "BCHW",
            **settings,
        }
    )


def network(name):
    torch.manual_seed(0)
    if name == "dit":
        made = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            sample_size=8,
            num_embeds_ada_norm=10,
        )
    elif name == "edm2":
        made = EDM2UNet2DModel(
            sample_size=8,
            num_classes=10,
            block_out_channels=(16, 32),
            attention_levels=(1,),
            attention_head_dim=8,
        )
    else:
        made = UCGMTransformer2DModel(
            sample_size=8,
            num_layers=4,
            num_encoder_layers=2 if name == "ddt" else 0,
            num_attention_heads=2,
            attention_head_dim=8,
            num_classes=10,
        )
    for value in made.parameters():
        value.data = value.data + 0.1 * torch.randn(value.shape)
    return made.eval()


def pipeline(name):
    transport = {"dit": {}, "edm2": {"transport": "edm"}}.get(name, {"num_train_timesteps": 1})
    pipe = UCGMPipeline(network(name), None, UCGMScheduler(**transport))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sampled(pipe, labels=(1, 2, 3), **call):
    call = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "latent", **call}
    return pipe(list(labels), generator=torch.Generator().manual_seed(0), **call).images


def worked(pipe, run):
    """How many samples pass each attention module's processor or projection in a run, added up."""
    count = [0]

    def note(_, inputs):
        count[0] += len(inputs[0])

    # The queries: caches put themselves around the attention module, not in it.
    layers = [each.to_q for each in pipe.transformer.modules() if hasattr(each, "to_q")]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    result = run()
    for hook in hooks:
        hook.remove()
    return result, count[0]


def transformer_networks(kind):
    return ["dit", "tit"] if kind in ("first block", "mag") else ["dit", "tit", "ddt", "edm2"]


CASES = [(kind, name) for kind in APPLY for name in transformer_networks(kind)]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_cache_saves_work_and_is_fresh_in_every_run(kind, name):
    pipe = pipeline(name)
    plain, all_work = worked(pipe, lambda: sampled(pipe))
    pipe.enable_cache(config(kind, pipe))
    assert has_cache(pipe.transformer)
    cached, work = worked(pipe, lambda: sampled(pipe))
    assert work < all_work
    assert torch.isfinite(cached).all()
    assert not torch.equal(cached, plain)
    # Nothing is left of the first run, nor of one that another seed or a smaller batch has made.
    torch.testing.assert_close(sampled(pipe), cached, rtol=0, atol=0)
    sampled(pipe, labels=[4])
    torch.testing.assert_close(sampled(pipe), cached, rtol=0, atol=0)
    pipe.disable_cache()
    assert not has_cache(pipe.transformer)
    torch.testing.assert_close(sampled(pipe), plain, rtol=0, atol=0)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_functions_of_diffusers_apply_it_too(kind, name):
    pipe = pipeline(name)
    sampled(pipe)
    settings = config(kind, pipe)
    if kind == "taylorseer" and name in ("dit", "edm2"):
        settings.cache_identifiers = [r".*\.attn1?"]
    if kind == "faster":
        settings._unconditional_conditional_input_kwargs_identifiers += ("class_labels",)
    APPLY[kind](pipe.transformer, settings)
    through_diffusers = sampled(pipe)
    other = pipeline(name)
    other.enable_cache(config(kind, other))
    torch.testing.assert_close(sampled(other), through_diffusers, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["first block", "taylorseer", "pab"])
def test_calls_with_and_without_guidance_share_nothing(kind):
    pipe = pipeline("tit")
    call = {"guidance_interval": (0.2, 0.6)}
    plain = sampled(pipe, **call)
    pipe.enable_cache(config(kind, pipe))
    cached = sampled(pipe, **call)
    assert torch.isfinite(cached).all()
    assert not torch.equal(cached, plain)
    torch.testing.assert_close(sampled(pipe, **call), cached, rtol=0, atol=0)


def test_a_cache_that_never_skips_changes_nothing():
    pipe = pipeline("tit")
    plain = sampled(pipe)
    pipe.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    torch.testing.assert_close(sampled(pipe), plain, rtol=0, atol=0)


def test_a_run_that_broke_off_leaves_nothing_behind():
    pipe = pipeline("dit")
    pipe.enable_cache(config("pab", pipe))
    cached = sampled(pipe)

    def stop(pipe, i, t, tensors):
        if i == 2:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        sampled(pipe, callback_on_step_end=stop)
    torch.testing.assert_close(sampled(pipe), cached, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"solver_order": 1}, {"solver_order": 2}])
def test_caches_count_network_calls_and_not_steps(settings):
    pipe = pipeline("tit")
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config, **settings)
    calls = pipe([1], num_inference_steps=STEPS, generator=torch.Generator(), output_type="latent").num_network_calls
    seen = []

    def note(pipe, i, t, tensors):
        assert pipe.current_timestep == t
        seen.append((pipe.num_timesteps, pipe.do_classifier_free_guidance))
        return {}

    sampled(pipe, callback_on_step_end=note)
    assert seen == [(calls, True)] * calls
    assert pipe.current_timestep is None
    pipe.enable_cache(config("mag", pipe, calls=calls))
    sampled(pipe)
    with pytest.raises(ValueError, match=r"`MagCacheConfig\.num_inference_steps` must be the number of .*, got "):
        sampled(pipe, num_inference_steps=4)


# --- what does not compose -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["first block", "mag"])
@pytest.mark.parametrize("name", ["ddt", "edm2"])
def test_caches_of_a_chain_refuse_networks_that_are_none(kind, name):
    pipe = pipeline(name)
    reason = "not one sequence" if name == "ddt" else "it needs at least . blocks in a list"
    for enable in (pipe.enable_cache, pipe.transformer.enable_cache):
        with pytest.raises(ValueError, match=rf"`config` must be of a cache that fits .*: .*{reason}"):
            enable(config(kind, pipe))
        assert not has_cache(pipe.transformer)
        assert not pipe.transformer.is_cache_enabled
    if name == "ddt":
        APPLY[kind](pipe.transformer, config(kind, pipe))
        with pytest.raises(ValueError, match=r"`transformer` must have a cache that fits .*not one sequence"):
            sampled(pipe)


@pytest.mark.parametrize("kind", ["first block", "mag"])
def test_caches_of_a_chain_refuse_blocks_whose_input_diffusers_does_not_find(kind):
    pipe = stock_pipelines.z_image().pipe
    network = type(pipe.transformer).from_config({**pipe.transformer.config, "n_layers": 3})
    with pytest.raises(ValueError, match=r"`hidden_states` of ZImageTransformerBlock, which has none"):
        enable_cache(network, config(kind, pipe))
    assert not has_cache(network)


def test_a_cache_that_a_stock_pipeline_cannot_use_is_named_where_its_run_fails():
    case = stock_pipelines.z_image()
    plain = case(2)
    enable_cache(case.pipe.transformer, config("taylorseer", case.pipe))
    embeds = {name: value for name, value in case.arguments.items() if name != "output_type"}
    with pytest.raises(
        ValueError,
        match=r"`pipe` may have only caches that fit ZImagePipeline, got one on its `transformer`: No (cache )?con",
    ):
        generate(case.pipe, ["a cat"], [0], num_inference_steps=2, call=embeds)
    with pytest.raises(ValueError, match=r"(?s)`call` must be arguments that ZImagePipeline takes, got .*height=17"):
        generate(case.pipe, ["a cat"], [0], num_inference_steps=2, call={**embeds, "height": 17})
    disable_cache(case.pipe.transformer)
    torch.testing.assert_close(case(2), plain, rtol=0, atol=0)


def test_a_cache_without_effect_is_refused():
    pipe = pipeline("dit")
    with pytest.raises(ValueError, match=r"TaylorSeerCacheConfig: it matches none of the modules"):
        pipe.enable_cache(TaylorSeerCacheConfig(cache_identifiers=["no_such_module"]))
    if cls := getattr(diffusers, "TextKVCacheConfig", None):  # of new versions, for one kind of block
        with pytest.raises(ValueError, match=r"TextKVCacheConfig: it matches none of the modules"):
            pipe.enable_cache(cls())
        assert not has_cache(pipe.transformer)
    with pytest.raises(ValueError, match=r"`config` must be a config of a cache of diffusers, got 3"):
        pipe.enable_cache(3)
    with pytest.raises(ValueError, match="it matches none of the modules"):
        enable_cache(nn.Linear(1, 1), TaylorSeerCacheConfig())
    pipe.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match=r"`network` must have no cache yet, got DiTTransformer2DModel with one"):
        pipe.enable_cache(FirstBlockCacheConfig())


def test_faster_cache_needs_guided_calls():
    pipe = pipeline("dit")
    pipe.enable_cache(config("faster", pipe))
    for call in ({"guidance_scale": 1.0}, {"guidance_interval": (0.0, 0.5)}):
        with pytest.raises(ValueError, match=r"`guidance_scale` must guide every call with FasterCache"):
            sampled(pipe, **call)
    pipe.disable_cache()
    pipe.enable_cache(config("faster", pipe, tensor_format="BCFHW"))
    with pytest.raises(ValueError, match=r"`FasterCacheConfig\.tensor_format` must be 'BCHW'"):
        sampled(pipe)
    pipe.disable_cache()
    pipe.enable_cache(
        config("faster", pipe, is_guidance_distilled=True, spatial_attention_timestep_skip_range=(-1, 681))
    )
    assert torch.isfinite(sampled(pipe, guidance_scale=1.0)).all()


def test_faster_cache_leaves_out_the_null_conditions():
    pipe = pipeline("dit")
    plain = sampled(pipe)
    pipe.enable_cache(config("faster", pipe, spatial_attention_timestep_skip_range=(-2, -1)))
    seen = []
    pipe.transformer.transformer_blocks[0].register_forward_pre_hook(
        lambda _, args, keywords: seen.append(keywords["class_labels"].tolist()), with_kwargs=True
    )
    cached = sampled(pipe)
    assert seen[:3] == [[10, 10, 10, 1, 2, 3], [1, 2, 3], [10, 10, 10, 1, 2, 3]]
    # Near enough that the two halves were not taken for each other.
    assert (cached - plain).abs().mean() < 0.2 * plain.abs().mean()


def test_mag_cache_needs_calls_of_one_kind():
    pipe = pipeline("dit")
    pipe.enable_cache(config("mag", pipe))
    with pytest.raises(ValueError, match=r"`guidance_interval` must take in all calls or none with MagCache"):
        sampled(pipe, guidance_interval=(0.0, 0.5))


@pytest.mark.parametrize("kind", APPLY)
def test_networks_with_a_cache_are_not_trained(tmp_path, kind):
    pipe = pipeline("dit")
    check_no_cache(pipe.transformer, "transformer")
    pipe.enable_cache(config(kind, pipe))
    with pytest.raises(ValueError, match=r"`transformer` must have no cache in training, got DiTTransformer2DModel"):
        check_no_cache(pipe.transformer, "transformer")
    data = [{"latents": torch.zeros(4, 8, 8), "class_labels": 0}] * 4
    with pytest.raises(ValueError, match=r"`transformer` must have no cache in training"):
        UCGMTrainer(UCGMTrainingConfig(str(tmp_path), train_batch_size=2), pipe.transformer, data)
    disable_cache(pipe.transformer)
    check_no_cache(pipe.transformer, "transformer")


def test_another_cache_is_another_model():
    words = []
    for settings in (None, config("first block", None), FirstBlockCacheConfig(threshold=0.5), TaylorSeerCacheConfig()):
        pipe = pipeline("tit")
        if settings is not None:
            pipe.enable_cache(settings)
        words.append(fingerprint(pipe))
        assert fingerprint(pipe) == words[-1]
    assert len(set(words)) == 4


# --- stock pipelines with our scheduler ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["first block", "taylorseer", "mag", "pab"])
@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image"])
@pytest.mark.parametrize("order", [1, 2])
def test_stock_pipelines_with_our_scheduler_take_caches(kind, name, order):
    case = getattr(stock_pipelines, name)()
    deeper = {**case.pipe.transformer.config, "num_layers": 3}
    case.pipe.register_modules(transformer=type(case.pipe.transformer).from_config(deeper).eval())
    case.pipe.scheduler = UCGMScheduler.from_config(case.pipe.scheduler.config, solver_order=order)
    calls = case.calls(STEPS)
    branches = 1 if name == "flux" else 2
    plain, all_work = worked_blocks(case, STEPS)
    enable_cache(case.pipe.transformer, config(kind, case.pipe, calls=calls // branches))
    cached, work = worked_blocks(case, STEPS)
    assert torch.isfinite(cached).all()
    assert case.calls(STEPS) == calls
    assert work <= all_work
    torch.testing.assert_close(case(STEPS), cached, rtol=0, atol=0)
    case.pipe.transformer.disable_cache()
    torch.testing.assert_close(case(STEPS), plain, rtol=0, atol=0)


def worked_blocks(case, steps):
    count = [0]
    layers = [
        each.to_q for each in case.pipe.transformer.modules() if isinstance(getattr(each, "to_q", None), nn.Module)
    ]
    hooks = [layer.register_forward_pre_hook(lambda *_: count.__setitem__(0, count[0] + 1)) for layer in layers]
    result = case(steps)
    for hook in hooks:
        hook.remove()
    return result, count[0]
