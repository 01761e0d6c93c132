"""A second time for networks of every kind: without effect before training, learned, saved and loaded."""

import copy
import json

import diffusers
import pytest
import torch
import two_time_networks as two_time
from class_pipelines import pipeline, transformer

import diffusers_ucgm.second_time as second_time
from diffusers_ucgm import UCGMLoss, UCGMPipeline, add_second_time
from diffusers_ucgm.contracts import target_time_name
from diffusers_ucgm.loading import DTYPE, load_network, load_pipeline
from diffusers_ucgm.loss_settings import LOSS_PRESETS
from diffusers_ucgm.second_time import has_second_time, remove_second_time, second_time_class


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
T, R = two_time.T, two_time.R
dit, trained = two_time.dit, two_time.trained


@pytest.mark.parametrize("name", two_time.NAMES)
@torch.no_grad()
def test_nothing_changes_before_training(name):
    case = two_time.called(name)
    before = case(case.latents, T)
    keys = set(case.network.state_dict())
    assert add_second_time(case.network) is case.network
    case.adapt()
    assert keys < set(case.network.state_dict())
    torch.testing.assert_close(case(case.latents, T), before, rtol=0, atol=0)
    torch.testing.assert_close(case(case.latents, T, target_time=R), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", two_time.NAMES)
@torch.no_grad()
def test_equal_times_are_exact_after_training_and_others_count(name):
    case = two_time.called(name)
    before = case(case.latents, T)
    trained(add_second_time(case.network))
    case.adapt()
    torch.testing.assert_close(case(case.latents, T, target_time=T), before, rtol=1e-5, atol=1e-5)
    near, far = (case(case.latents, T, target_time=r) for r in (T - 0.2, T - 0.4))
    assert (near - before).abs().amax((1, 2, 3)).gt(1e-6).all()
    assert not torch.allclose(near, far, rtol=1e-4)


@pytest.mark.parametrize("name", two_time.NAMES)
def test_one_step_of_the_loss_moves_the_new_embedder(name):
    case = two_time.called(name)
    add_second_time(case.network)
    case.adapt()
    condition = case.condition
    loss = UCGMLoss(**{**LOSS_PRESETS["rcgm"], "chain_network": "student", "label_dropout": 0.0, "equal_share": 0.0})
    output = loss(
        lambda x_t, t, target_time, **given: case.adapter(case.network, x_t, t, target_time=target_time, **given),
        case.latents,
        condition,
        generator=torch.Generator().manual_seed(0),
    )
    output.loss.backward()
    gradients = {key: each.grad for key, each in case.network.second_time_embedder.named_parameters()}
    assert all(each is None or each.isfinite().all() for each in gradients.values())
    moved = [key for key, each in gradients.items() if each is not None and each.abs().max() > 0]
    places = len(case.network.second_time_embedder.layers)
    assert len(moved) >= places  # of each place at least the last weights


def rcgm_step(case):
    """The gradients of a step of RCGM whose chain is the network's average, by the names of its weights."""
    student = case.network

    def denoise(network):
        return lambda x_t, t, target_time, **given: case.adapter(network, x_t, t, target_time=target_time, **given)

    loss = UCGMLoss(**{**LOSS_PRESETS["rcgm"], "label_dropout": 0.0, "equal_share": 0.0})
    networks = denoise(student), denoise(copy.deepcopy(student))
    output = loss(
        networks[0],
        case.latents,
        case.condition,
        averaged=networks[1],
        generator=torch.Generator().manual_seed(0),
    )
    output.loss.backward()
    return {key: each.grad for key, each in student.named_parameters() if each.grad is not None}


@pytest.mark.parametrize(("name", "method"), two_time.METHODS)
def test_every_kind_is_tuned_by_a_step_of_rcgm(name, method):
    case = two_time.called(name)
    with torch.no_grad():
        before = case(case.latents, T)
        add_second_time(case.network, method)
        case.adapt()
        torch.testing.assert_close(case(case.latents, T, target_time=T), before, rtol=1e-5, atol=1e-5)
    gradients = rcgm_step(case)
    assert all(each.isfinite().all() for each in gradients.values())
    # The second embedder begins with a last layer of zeros, which alone has a gradient in the first step.
    own = [key for key, _ in case.network.named_parameters() if not key.startswith("second_time_embedder")]
    moving = [key for key in own if key in gradients and gradients[key].abs().max() > 0]
    assert len(moving) > 0.75 * len(own)


@pytest.mark.parametrize(("name", "method"), two_time.METHODS)
@torch.no_grad()
def test_saved_networks_load(name, method, tmp_path):
    case = two_time.called(name)
    network = add_second_time(case.network, method)
    if method == "sum":
        trained(network)
    case.adapt()
    expected = case(case.latents, T, target_time=R)
    network.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["second_time"] == method
    assert config["_class_name"] == type(network).__name__ == "SecondTime" + type(network).__mro__[2].__name__
    case.network = type(network).from_pretrained(tmp_path)
    assert type(case.network) is type(network)
    torch.testing.assert_close(case(case.latents, T, target_time=R), expected, rtol=1e-5, atol=1e-6)
    assert set(case.network.state_dict()) == set(network.state_dict())


@pytest.mark.parametrize("name", two_time.DEEP)
@torch.no_grad()
def test_depth_is_exact_at_equal_times_and_needs_no_weights(name):
    case = two_time.called(name)
    before, keys = case(case.latents, T), set(case.network.state_dict())
    add_second_time(case.network, "depth", depth=0)
    case.adapt()
    torch.testing.assert_close(case(case.latents, T), before, rtol=0, atol=0)
    torch.testing.assert_close(case(case.latents, T, target_time=T), before, rtol=1e-5, atol=1e-5)
    changed = case(case.latents, T, target_time=R)
    assert (changed - before).abs().amax((1, 2, 3)).gt(1e-6).all()
    assert set(case.network.state_dict()) == keys


# The adapter of Sana Sprint turns samples by their first time.
@pytest.mark.parametrize("name", [name for name in two_time.DEEP if name != "sana_sprint"])
@torch.no_grad()
def test_all_blocks_of_depth_0_see_the_second_time_alone(name):
    case = two_time.called(name)
    at_second = case(case.latents, R)
    add_second_time(case.network, "depth", depth=0)
    case.adapt()
    torch.testing.assert_close(case(case.latents, T, target_time=R), at_second, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(two_time.NAMES) - set(two_time.DEEP)))
def test_depth_is_refused_where_the_blocks_do_not_get_the_embedding_itself(name):
    network = two_time.called(name).network
    cls = type(network)
    with pytest.raises(ValueError, match=rf"`method` must be 'sum' for {cls.__name__}, .* got 'depth'"):
        add_second_time(network, "depth")
    assert type(network) is cls
    assert "second_time" not in network.config


@torch.no_grad()
def test_copies_are_networks_of_their_own():
    network, call = dit()
    expected = call(network, R)
    twin = copy.deepcopy(network)
    assert type(twin) is type(network)
    torch.testing.assert_close(call(twin, R), expected)
    for each in twin.second_time_embedder.parameters():
        each.zero_()
    torch.testing.assert_close(call(twin, R), call(network))
    torch.testing.assert_close(call(network, R), expected)


@torch.no_grad()
def test_state_dicts_go_round():
    network, call = dit()
    other = add_second_time(transformer(num_layers=2))
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(call(other, R), call(network, R))


@torch.no_grad()
def test_removal_gives_the_network_back():
    network = transformer(num_layers=2)
    network.enable_gradient_checkpointing()
    config, keys, cls = dict(network.config), set(network.state_dict()), type(network)
    trained(add_second_time(network))
    assert has_second_time(network)
    assert remove_second_time(remove_second_time(network)) is network
    assert type(network) is cls
    assert dict(network.config) == config
    assert set(network.state_dict()) == keys
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in network.modules())
    assert target_time_name(network) is None
    network(torch.randn(2, 4, 8, 8), 1000 * T, torch.tensor([0, 1]))


@torch.no_grad()
def test_pipelines_save_and_load_it(tmp_path):
    pipe = pipeline()
    pipe.transformer = trained(add_second_time(pipe.transformer))
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers_ucgm.second_time", "SecondTimeDiTTransformer2DModel"]
    expected = pipe([0, 3], num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0))
    for cls in (UCGMPipeline, diffusers.DiffusionPipeline):
        loaded = cls.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        found = loaded([0, 3], num_inference_steps=2, output_type="latent", generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(found.images, expected.images)


@torch.no_grad()
def test_this_package_loads_networks_and_pipelines_by_their_folders(tmp_path):
    pipe = pipeline()
    pipe.transformer = trained(add_second_time(pipe.transformer))
    pipe.save_pretrained(tmp_path)
    loaded = load_network(str(tmp_path / "transformer")), load_pipeline(str(tmp_path)).transformer
    for network in loaded:
        assert has_second_time(network)
        for key, value in pipe.transformer.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)


def test_the_new_weights_stay_in_float32_where_the_networks_embedder_does(tmp_path):
    network = add_second_time(two_time.called("wan").network)
    network.save_pretrained(tmp_path)
    loaded = type(network).from_pretrained(tmp_path, **{DTYPE: torch.float16})
    assert {each.dtype for each in loaded.second_time_embedder.parameters()} == {torch.float32}
    assert loaded.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert loaded.proj_out.weight.dtype == torch.float16


def test_an_index_that_names_the_former_class_is_refused(tmp_path):
    pipe = pipeline()
    add_second_time(pipe.transformer)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers_ucgm.second_time", "SecondTimeDiTTransformer2DModel"]
    (tmp_path / "model_index.json").write_text(
        json.dumps({**index, "transformer": ["diffusers", "DiTTransformer2DModel"]})
    )
    with pytest.raises(ValueError, match=r"config.json' must be loaded as the SecondTimeDiT.* got DiTTransformer2D"):
        load_pipeline(str(tmp_path))


def test_diffusers_alone_does_not_load_it_in_silence(tmp_path, caplog):
    network, _ = dit()
    network.save_pretrained(tmp_path)
    with pytest.raises((ValueError, AttributeError), match="SecondTimeDiTTransformer2DModel"):
        diffusers.AutoModel.from_pretrained(tmp_path)
    diffusers.utils.logging.enable_propagation()
    with caplog.at_level("WARNING"):
        diffusers.DiTTransformer2DModel.from_pretrained(tmp_path)
    diffusers.utils.logging.disable_propagation()
    assert "second_time" in caplog.text
    assert "second_time_embedder.layers.0.linear_1.weight" in caplog.text


@pytest.mark.parametrize("network", [torch.nn.Linear(2, 2), lambda x: x])
def test_refuses_what_is_no_network_of_diffusers(network):
    with pytest.raises(ValueError, match="`network` must be a network of diffusers without wrappers"):
        add_second_time(network)


def test_refuses_a_second_second_time():
    network, _ = dit()
    with pytest.raises(ValueError, match=r"`network` must not have a second time yet, .* takes `r_timestep`"):
        add_second_time(network)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("product",), r"`method` must be .*'product'"),
        (("depth", 0.5), r"`depth` must be .*whole number"),
        (("depth", 99), r"`depth` must be at most the \d+ blocks of the network, got 99"),
    ],
)
def test_refuses_methods_that_are_none(arguments, message):
    network = two_time.called("sd3").network
    cls = type(network)
    with pytest.raises(ValueError, match=message):
        add_second_time(network, *arguments)
    assert type(network) is cls


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="SecondTimeNothing"):
        second_time.SecondTimeNothing  # noqa: B018
    assert second_time.SecondTimeDiTTransformer2DModel is second_time_class(diffusers.DiTTransformer2DModel)
