"""How the trainer calls diffusers' networks: as the stock pipelines do."""

from copy import deepcopy

import diffusers
import networks
import pytest
import torch
from diffusers import DiTTransformer2DModel
from diffusers.models.embeddings import LabelEmbedding
from stock_calls import STOCK, one_batch, recorded_steps, stock_case, unpacked
from torch import nn

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network
from diffusers_ucgm.training.adapters import ADAPTERS, adapter_for, adapter_for_pipeline
from diffusers_ucgm.training.image_adapters import DiTAdapter, FluxAdapter, SanaAdapter
from diffusers_ucgm.training.network_adapter import NetworkAdapter, convention_of_scheduler


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("name", STOCK)
def test_reproduces_what_the_stock_pipeline_hands_its_scheduler(name):
    stock, case = STOCK[name], stock_case(name)
    pipe, network = case.pipe, network_of(case.pipe)
    convention = convention_of_scheduler(pipe.scheduler)
    adapter = adapter_for_pipeline(pipe)
    condition = {keyword: one_batch(case.arguments[argument]) for keyword, argument in stock.condition.items()}
    steps = recorded_steps(case, **stock.call)
    assert len(steps) >= 3
    for model_output, timestep, sample in steps[:3]:
        t = convention.time(torch.as_tensor(timestep).double().reshape(1))
        if stock.latents:
            like = torch.empty(1, *stock.latents)
            # Packed or turned by the pipeline: the adapter's own inverse, which the last lines hold to account.
            sample, expected = (unpacked(adapter, value, like) for value in (sample, model_output))
        else:
            expected = model_output[:, : sample.shape[1]]
        x_t = (
            sample * convention.transport.gamma(t).reshape(-1, *(1,) * (sample.ndim - 1))
            if convention.divides
            else sample
        )
        with torch.no_grad():
            found = adapter(network, x_t.float(), convention.transport.model_time(t).float(), **condition)
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=2e-5)


def own_pipeline(name):
    network = convert_network(networks.golden(name).weights, **networks.SETTINGS[name])
    transport = ARCHITECTURES[name].transport
    return UCGMPipeline(network, None, UCGMScheduler(transport=transport, num_train_timesteps=1))


@pytest.mark.parametrize("name", networks.NAMES)
def test_the_papers_networks_are_called_as_their_pipeline_calls_them(name):
    pipe = own_pipeline(name)
    seen, step = [], pipe.scheduler.step

    def record(model_output, timestep, sample, **arguments):
        seen.append((model_output, timestep, sample))
        return step(model_output, timestep, sample, **arguments)

    pipe.scheduler.step = record
    pipe([1, 3], num_inference_steps=3, output_type="latent", generator=torch.Generator().manual_seed(0))
    convention, adapter = convention_of_scheduler(pipe.scheduler), adapter_for_pipeline(pipe)
    for expected, timestep, sample in seen:
        t = convention.transport.model_time(convention.time(timestep.double().reshape(1))).float().expand(2)
        with torch.no_grad():
            found = adapter(pipe.transformer, sample, t, class_labels=torch.tensor([1, 3]))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 3


def test_every_named_adapter_is_held_to_its_pipeline():
    held = {type(adapter_for_pipeline(stock_case(name).pipe)) for name in STOCK}
    held |= {type(adapter_for_pipeline(own_pipeline(name))) for name in networks.NAMES}
    assert set(ADAPTERS.values()) <= held


@pytest.mark.parametrize(("flux_latents", "expected"), [((1, 16, 8, 8), (1, 16, 64)), ((2, 4, 6, 10), (2, 15, 16))])
def test_packing_keeps_every_value(flux_latents, expected):
    adapter = FluxAdapter(network_of(stock_case("flux").pipe))
    x = torch.randn(flux_latents)
    packed = adapter.pack(x)
    assert packed.shape == expected
    assert torch.equal(adapter.unpack(packed, x), x)


def test_packing_is_the_pipelines_own():
    pipe = stock_case("flux").pipe
    x = torch.randn(2, 4, 8, 6)
    assert torch.equal(FluxAdapter(pipe.transformer).pack(x), pipe._pack_latents(x, 2, 4, 8, 6))
    pipe = stock_case("ltx").pipe
    x = torch.randn(2, 8, 3, 4, 6)
    packed = adapter_for_pipeline(pipe).pack(x)
    assert isinstance(packed, torch.Tensor)
    assert torch.equal(packed, pipe._pack_latents(x, 1, 1))


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


def test_sizes_of_the_largest_pixart_are_the_pipelines():
    network = diffusers.PixArtTransformer2DModel(
        **{**stock_case("pixart_alpha").pipe.transformer.config, "use_additional_conditions": True}
    )
    keywords = adapter_for(network, vae_scale_factor=8).keywords(torch.randn(2, 4, 8, 16), {})
    sizes = keywords["added_cond_kwargs"]
    assert isinstance(sizes, dict)
    assert sizes["resolution"].tolist() == [[64.0, 128.0]] * 2
    assert sizes["aspect_ratio"].tolist() == [[0.5]] * 2


def test_texts_of_several_lengths_are_told_apart_by_their_mask():
    case = stock_case("z_image")
    network, adapter = case.pipe.transformer, adapter_for_pipeline(case.pipe)
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.6])
    texts = torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    together = adapter(network, x_t, t, cap_feats=texts, cap_mask=mask)
    alone = adapter(network, x_t[1:], t[1:], cap_feats=texts[1:, :2])
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(adapter(network, x_t, t, cap_feats=texts)[1:], alone, atol=1e-4)


def test_guidance_distilled_networks_are_told_the_scale():
    network = stock_case("flux").pipe.transformer
    x_t, t = torch.randn(2, 4, 8, 8), torch.tensor([0.3, 0.6])
    condition = {"encoder_hidden_states": torch.randn(2, 5, 8), "pooled_projections": torch.randn(2, 8)}
    low, high = (adapter_for(network, guidance_scale=scale)(network, x_t, t, **condition) for scale in (1.0, 7.0))
    assert not torch.equal(low, high)


# --- times, dtypes, null conditions ----------------------------------------------------------------------------------


def dit(**options):
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=3,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=5,
        **options,
    )


class Recorder(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.calls = []

    def forward(self, hidden_states, **arguments):
        self.calls.append({"hidden_states": hidden_states, **arguments})
        return (torch.cat([hidden_states, -hidden_states], 1),)


def inputs():
    generator = torch.Generator().manual_seed(0)
    x_t = torch.randn(4, 3, 4, 4, generator=generator)
    return x_t, torch.tensor([0.0, 0.25, 0.5, 1.0]), torch.arange(4)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (None, [0.0, 250.0, 500.0, 1000.0]),
        (UCGMScheduler(num_train_timesteps=1), [0.0, 0.25, 0.5, 1.0]),
        # A network whose time runs from noise to data is given its own time by the loss.
        (UCGMScheduler(transport="relinear", num_train_timesteps=1), [0.0, 0.25, 0.5, 1.0]),
        # Step n of a chain of 1000 is canonical time (n + 1) / 1000, and there is none below step 0.
        (diffusers.DDPMScheduler(), [0.0, 249.0, 499.0, 999.0]),
        (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, [0.0, 250.0, 500.0, 1000.0]),
    ],
)
def test_times_are_told_as_the_scheduler_tells_them(scheduler, expected):
    x_t, t, labels = inputs()
    network = Recorder()
    adapter_for(dit(), scheduler)(network, x_t, t, class_labels=labels)
    (call,) = network.calls
    torch.testing.assert_close(call["timestep"], torch.tensor(expected))
    assert torch.equal(call["class_labels"], labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_samples_and_conditions_take_the_dtype_of_the_weights_and_times_stay_float32(dtype):
    x_t, t, labels = inputs()
    network = Recorder(dtype)
    adapter_for(dit())(network, x_t, t, class_labels=labels, encoder_hidden_states=torch.randn(4, 2, 3))
    (call,) = network.calls
    assert {call[name].dtype for name in ("hidden_states", "encoder_hidden_states")} == {dtype}
    assert call["timestep"].dtype == torch.float32
    assert call["class_labels"].dtype == torch.int64


def test_learned_variances_are_cut_off():
    x_t, t, labels = inputs()
    transformer = dit(out_channels=6).eval()
    adapter = adapter_for(transformer)
    output = adapter(transformer, x_t, t, class_labels=labels)
    whole = transformer(x_t, timestep=1000.0 * t, class_labels=labels).sample
    assert whole.shape == (4, 6, 4, 4)
    assert torch.equal(output, whole[:, :3])


def test_null_condition_is_the_class_after_the_last():
    transformer = dit()
    adapter = adapter_for(transformer)
    assert adapter.null_condition == {"class_labels": 5}
    x_t, t, _ = inputs()
    # The embedding has a row for it.
    output = adapter(transformer, x_t, t, class_labels=torch.full((4,), 5))
    assert output.isfinite().all()


def test_label_dropout_of_the_model_itself_is_switched_off():
    transformer = dit().train()
    embeddings = [module for module in transformer.modules() if isinstance(module, LabelEmbedding)]
    assert {module.dropout_prob for module in embeddings} == {0.1}
    for module in embeddings:
        module.dropout_prob = 0.5
    x_t, t, labels = inputs()

    def agree(adapter):
        first, second = (adapter(transformer, x_t, t, class_labels=labels) for _ in range(2))
        return torch.equal(first, second)

    # With a rate of one half in each of the two blocks, the same draw in both calls has a chance of 1 in 256.
    assert not agree(NetworkAdapter(transformer))
    adapter = adapter_for(transformer)
    assert isinstance(adapter, DiTAdapter)
    assert transformer.training
    assert agree(adapter)


def test_copies_made_later_have_no_label_dropout_either():
    transformer = dit().train()
    adapter = adapter_for(transformer)
    x_t, t, labels = inputs()
    copy = deepcopy(transformer)
    assert torch.equal(adapter(copy, x_t, t, class_labels=labels), adapter(transformer, x_t, t, class_labels=labels))


# --- the table -------------------------------------------------------------------------------------------------------


class Unknown(nn.Module):
    def forward(self, x, timesteps, context=None, return_dict=True):
        return (x * timesteps.reshape(-1, 1, 1, 1) + (0 if context is None else context),)


def test_an_unknown_network_is_called_by_the_names_of_its_forward():
    x_t, t, _ = inputs()
    adapter = adapter_for(Unknown())
    assert type(adapter) is NetworkAdapter
    assert adapter.null_condition is None
    torch.testing.assert_close(adapter(Unknown(), x_t, t, context=1.0), 1000.0 * t.reshape(-1, 1, 1, 1) * x_t + 1.0)


def test_users_add_adapters_for_their_own_networks(monkeypatch):
    class Reversed(NetworkAdapter):
        def network_time(self, timestep):
            return 1.0 - timestep / 1000.0

    class Heir(Unknown):
        pass

    monkeypatch.setitem(ADAPTERS, "Unknown", Reversed)
    x_t, t, _ = inputs()
    for network in (Unknown(), Heir()):
        adapter = adapter_for(network)
        assert isinstance(adapter, Reversed)
        torch.testing.assert_close(adapter(network, x_t, t), (1.0 - t).reshape(-1, 1, 1, 1) * x_t)


def test_a_network_without_sample_and_time_is_refused():
    message = r"`network` must take one of \('hidden_states', .*got Linear with \['input'\]\. Pass `adapter=`"
    with pytest.raises(ValueError, match=message):
        adapter_for(nn.Linear(2, 2))


def test_a_pipeline_without_a_denoiser_is_refused():
    class Empty(diffusers.DiffusionPipeline):
        def __init__(self):
            super().__init__()

    with pytest.raises(ValueError, match="`pipe` must have a `transformer` or `unet`, got Empty"):
        adapter_for_pipeline(Empty())


def test_sana_sprint_is_found_by_its_scheduler():
    pipe = stock_case("sana_sprint").pipe
    adapter = adapter_for_pipeline(pipe)
    assert isinstance(adapter, SanaAdapter)
    assert adapter.sigma_data == 0.5
    assert adapter_for_pipeline(stock_case("sana").pipe).sigma_data is None
    pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    assert adapter_for_pipeline(pipe).sigma_data == 0.5
