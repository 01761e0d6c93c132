"""The protocols fit the classes of diffusers and of this package, and the parts of a pipeline are found."""

import inspect
from unittest.mock import MagicMock

import diffusers
import pytest
import stock_pipelines
from diffusers import DiffusionPipeline
from exact_pipeline import exact_pipeline
from torch import nn

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.contracts import (
    Pipeline,
    Steppable,
    TellingScheduler,
    call_parameters,
    condition_name,
    config_of,
    network_of,
    networks_of,
    takes_classes,
    target_time_name,
    unguided_scale,
)


RULE = "do_classifier_free_guidance"


class Parts:
    """A pipeline of nothing but the networks that it is made with."""

    def __init__(self, **networks):
        vars(self).update(networks)


def members(protocol):
    names = {name for name in vars(protocol) if not name.startswith("_")} | set(protocol.__annotations__)
    return sorted(names)


@pytest.mark.parametrize(
    "scheduler",
    [
        UCGMScheduler,
        diffusers.DDIMScheduler,
        diffusers.EulerDiscreteScheduler,
        diffusers.FlowMatchEulerDiscreteScheduler,
        diffusers.UniPCMultistepScheduler,
    ],
)
def test_schedulers_have_what_the_protocol_names(scheduler):
    assert members(Steppable) == ["config", "save_pretrained", "set_timesteps", "step", "timesteps"]
    assert all(hasattr(scheduler(), name) for name in members(Steppable))


def test_own_scheduler_says_where_its_calls_lead():
    assert members(TellingScheduler) == ["begin_index", "step_index", "target_timesteps"]
    assert all(hasattr(UCGMScheduler, name) for name in members(TellingScheduler))


def test_what_has_no_config_has_no_settings():
    scheduler = UCGMScheduler()
    assert config_of(scheduler) is scheduler.config
    assert config_of(nn.Linear(1, 1)) == {}
    assert config_of(None) == {}


@pytest.mark.parametrize(
    "build", [exact_pipeline, lambda: stock_pipelines.sd15().pipe, lambda: stock_pipelines.dit().pipe]
)
def test_pipelines_have_what_the_protocol_names(build):
    assert members(Pipeline) == ["components", "config", "device", "scheduler", "set_progress_bar_config"]
    assert all(hasattr(build(), name) for name in members(Pipeline))


@pytest.mark.parametrize("name", ["transformer", "unet", "prior", "transformer_2", "unet_2"])
def test_a_network_is_found_under_every_name_of_diffusers(name):
    network = nn.Identity()
    assert network_of(Parts(**{name: network}, vae=nn.Identity())) is network


def test_the_first_of_two_networks_comes_first():
    first, second = nn.Identity(), nn.Identity()
    pipe = Parts(transformer_2=second, transformer=first)
    assert network_of(pipe) is first
    assert list(networks_of(pipe).items()) == [("transformer", first), ("transformer_2", second)]
    # A pipeline such as `WanPipeline` may be loaded without its first network.
    assert networks_of(Parts(transformer=None, transformer_2=second)) == {"transformer_2": second}


def test_a_pipeline_without_a_network_is_refused():
    with pytest.raises(ValueError, match="`pipe` must have a `transformer` or `unet`, got Parts with neither"):
        network_of(Parts(vae=nn.Identity()))


def test_conditions_are_classes_or_prompts():
    classes, text = exact_pipeline(), stock_pipelines.sd15().pipe
    assert (condition_name(classes), condition_name(text)) == ("class_labels", "prompt")
    assert (takes_classes(classes), takes_classes(text)) == (True, False)
    assert takes_classes(stock_pipelines.dit().pipe)
    neither = "`pipe` must take a `prompt` or `class_labels`, got DDPMPipeline, which takes neither"
    with pytest.raises(ValueError, match=neither):
        takes_classes(stock_pipelines.ddpm().pipe)


def test_parameters_are_those_of_the_call():
    assert call_parameters(exact_pipeline()) == inspect.signature(UCGMPipeline.__call__).parameters


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("AnyFlowTransformer3DModel", {}, "r_timestep"),
        ("HunyuanImageTransformer2DModel", {"use_meanflow": True}, "timestep_r"),
        ("HunyuanImageTransformer2DModel", {"use_meanflow": False}, None),
        ("FluxTransformer2DModel", {}, None),
    ],
)
def test_networks_name_the_time_that_a_call_leads_to(name, config, expected):
    if not hasattr(diffusers, name):
        pytest.skip("another version of diffusers")

    class Network(nn.Module):
        forward = getattr(diffusers, name).forward

    network = Network()
    network.config = config
    assert target_time_name(network) == expected


def stock_pipeline_classes():
    for name in dir(diffusers):
        if not name.endswith("Pipeline"):
            continue
        try:
            found = getattr(diffusers, name)
        except RuntimeError:  # It imports a class that the installed transformers does not have yet.
            continue
        # Classes whose packages are not installed are replaced by others, which are no pipelines.
        if issubclass(found, DiffusionPipeline):
            yield found


def test_no_stock_pipeline_guides_at_its_unguided_scale():
    rules = {each.__name__: getattr(each, RULE, None) for each in stock_pipeline_classes()}
    from_zero = set()
    for name, rule in rules.items():
        if rule is None:
            continue
        guides = {}
        for scale in (0.5, unguided_scale(name)):
            pipe = MagicMock(_audio_guidance_scale=0.0, is_turbo=False)
            pipe.config.is_distilled, pipe.unet.config.time_cond_proj_dim = False, None
            pipe._guidance_scale = pipe.guidance_scale = scale
            guides[scale] = rule.fget(pipe) is True
        assert not guides[unguided_scale(name)], name
        if unguided_scale(name) == 0.0 and guides[0.5]:
            from_zero.add(name)
    assert len(rules) > 50
    assert from_zero == {name for name in rules if unguided_scale(name) == 0.0 and rules[name]}
    assert {"ZImagePipeline", "Krea2Pipeline"} <= from_zero
