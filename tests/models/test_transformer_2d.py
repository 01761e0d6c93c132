"""The paper's networks as models of diffusers: loading, backends, compilation, checkpointing, LoRA, training."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import attention_backend
from networks import NAMES, SETTINGS, TOLERANCE, error, golden
from torch import nn

from diffusers_ucgm import EDM2UNet2DModel, UCGMLoss, UCGMTransformer2DModel
from diffusers_ucgm.conversion.networks import ARCHITECTURES, convert_network
from diffusers_ucgm.conversion.sizes import published_settings
from diffusers_ucgm.lora import add_lora, without_lora
from diffusers_ucgm.training.adapters import adapter_for


def model_of(name):
    case = golden(name)
    return convert_network(case.weights, **SETTINGS[name]), case.cases


def called(model, cases, dtype=torch.float32):
    with torch.no_grad():
        return model(cases["forward.x"].to(dtype), cases["forward.t"], cases["forward.y"]).sample


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


def test_a_saved_model_loads_bit_by_bit(name, tmp_path):
    model, cases = model_of(name)
    model.save_pretrained(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    # diffusers allows nothing else where modules are kept in float32.
    for low_cpu_mem_usage in (True, False)[: 1 if model._keep_in_fp32_modules else 2]:
        loaded = type(model).from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert torch.equal(called(loaded, cases), called(model, cases))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close(name, dtype, tmp_path):
    model, cases = model_of(name)
    model.save_pretrained(tmp_path)
    half = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    found = called(half, cases, dtype)
    assert found.dtype == dtype
    assert error(found.float(), cases["forward.output"]) < 0.05


def test_time_is_one_for_all_or_one_for_each(name):
    model, cases = model_of(name)
    x, y = cases["forward.x"], cases["forward.y"]
    with torch.no_grad():
        each = model(x, torch.full((len(x),), 0.3), y).sample
        assert torch.equal(model(x, torch.tensor(0.3), y).sample, each)
        assert torch.equal(model(x, 0.3, y, return_dict=False)[0], each)


def test_no_labels_are_the_null_class(name):
    model, cases = model_of(name)
    x, t = cases["forward.x"], cases["forward.t"]
    null = torch.full((len(x),), model.config.num_classes)
    with torch.no_grad():
        assert error(model(x, t).sample, model(x, t, null).sample) < 1e-6
        assert error(model(x, t).sample, model(x, t, torch.zeros_like(null)).sample) > 1e-3


def test_a_sample_does_not_depend_on_its_neighbours(name):
    model, cases = model_of(name)
    x, t, y = (cases[f"forward.{part}"] for part in "xty")
    with torch.no_grad():
        whole = model(x, t, y).sample
        parts = torch.cat([model(x[i : i + 1], t[i : i + 1], y[i : i + 1]).sample for i in range(len(x))])
    assert error(parts, whole) < TOLERANCE


@pytest.mark.parametrize("backend", ["native", "_native_math"])
def test_attention_goes_through_the_dispatch_of_diffusers(name, backend):
    model, cases = model_of(name)
    expected = called(model, cases)
    assert model.attn_processors
    # diffusers also makes it the backend of all other models, until the end of this context.
    with attention_backend("native"):
        model.set_attention_backend(backend)
        processors = list(model.attn_processors.values())
        assert all(processor._attention_backend == backend for processor in processors)
        assert error(called(model, cases), expected) < 1e-5


def test_fused_projections_give_the_same(name):
    model, cases = model_of(name)
    expected = called(model, cases)
    model.fuse_qkv_projections()
    fused = [module for module in model.modules() if getattr(module, "fused_projections", False)]
    assert bool(fused) == (name != "edm2")
    assert error(called(model, cases), expected) < 1e-5


def test_weights_may_wait_elsewhere_until_their_module_is_called(name):
    model, cases = model_of(name)
    cpu_offload(model, execution_device=torch.device("cpu"))
    assert {each.device.type for each in model.parameters()} == {"meta"}
    assert error(called(model, cases), cases["forward.output"]) < TOLERANCE


@pytest.mark.filterwarnings("ignore")  # of the compiler, about itself
def test_compiles_as_one_graph(name):
    model, cases = model_of(name)
    expected = called(model, cases)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert error(called(compiled, cases), expected) < 1e-5
    torch.compiler.reset()


def test_checkpointed_activations_give_the_same_gradients(name):
    model, cases = model_of(name)
    x, t, y = (cases[f"forward.{part}"] for part in "xty")
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.enable_gradient_checkpointing()
        model.zero_grad()
        model(x, t, y).sample.square().mean().backward()
        gradients.append([each.grad.clone() for each in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_lora_finds_the_attention_layers(name):
    model, cases = model_of(name)
    expected = called(model, cases)
    add_lora(model, 2)
    trainable = [key for key, value in model.named_parameters() if value.requires_grad]
    assert {key.split(".lora_")[0].rsplit(".attn.", 1)[-1] for key in trainable} == {
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
    }
    for key, value in model.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(value)
    assert error(called(model, cases), expected) > 1e-3
    with without_lora(model):
        assert error(called(model, cases), expected) < 1e-6


def test_edm2_does_not_merge_a_lora_into_weights_that_it_normalises():
    model, _ = model_of("edm2")
    add_lora(model, 2)
    with pytest.raises(NotImplementedError, match="`fuse_lora` must be left out for EDM2UNet2DModel"):
        model.fuse_lora()


@pytest.mark.parametrize("derivative", ["difference", "forward"])
def test_takes_a_step_of_the_loss(name, derivative):
    model, cases = model_of(name)
    adapter = adapter_for(model)
    adapter.timestep = lambda t: t
    assert adapter.null_condition == {"class_labels": model.config.num_classes}
    loss = UCGMLoss(
        ARCHITECTURES[name].transport, consistency_ratio=1.0, huber_c=5.0, label_dropout=0.5, derivative=derivative
    )
    output = loss(
        lambda x_t, t, **condition: adapter(model, x_t, t, **condition),
        cases["forward.x"],
        {"class_labels": cases["forward.y"]},
        null_condition=adapter.null_condition,
        generator=torch.Generator().manual_seed(0),
    )
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(each.grad.isfinite().all() for each in model.parameters() if each.grad is not None)
    assert sum(each.grad is not None and bool(each.grad.any()) for each in model.parameters()) > 10


@pytest.mark.parametrize("cls", [UCGMTransformer2DModel, EDM2UNet2DModel])
def test_a_new_model_starts_with_an_output_of_zero_and_learns(cls):
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 16), "attention_levels": (1,), "attention_head_dim": 8}
    if cls is UCGMTransformer2DModel:
        sizes = {"num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    model = cls(sample_size=8, num_classes=3, **sizes)
    x = torch.randn(2, 4, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        output = model(x, torch.tensor([0.2, 0.7]), torch.tensor([0, 2])).sample
        losses.append((output - x).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[0] == x.square().mean()
    assert losses[-1] < 0.8 * losses[0]


def test_models_are_what_diffusers_expects(name):
    model, _ = model_of(name)
    assert isinstance(model, ModelMixin)
    blocks = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= blocks
    assert set(model._repeated_blocks) <= blocks


# Parameters and keys as published: shared/spec/networks.md, section 0, where buffers but the position table and
# EDM2's frequencies are not counted as parameters.
PUBLISHED = {
    ("TiT-XL/1", 32, 16): (675_191_072, 294),
    ("TiT-XL/2", 4, 32): (675_154_192, 294),
    ("TiT-XL/4", 4, 64): (675_264_832, 294),
    ("SiT-XL/1", 32, 16): (675_148_064, 292),
    ("SiT-XL/2", 4, 32): (675_111_184, 292),
    ("LightningDiT-XL/1", 32, 16): (675_256_736, 351),
    ("DDT-XL/2", 4, 32): (674_646_352, 349),
    ("EDM2-S", 4, 64): (280_212_709, 200),
    ("EDM2-L", 4, 64): (777_497_957, 200),
    ("EDM2-XXL", 4, 64): (1_523_164_645, 200),
}


@pytest.mark.parametrize(("published", "expected"), PUBLISHED.items(), ids=lambda value: str(value[0]))
def test_published_sizes_have_as_many_parameters_and_keys(published, expected):
    label, channels, size = published
    architecture = ARCHITECTURES[label.split("-")[0].lower()]
    # Where the network is fixed but for its sizes, the configuration of the tiny one has the rest.
    tiny = golden(architecture.name)
    config = architecture.config(tiny.weights, SETTINGS[architecture.name])
    config |= published_settings(label) | {"in_channels": channels, "out_channels": channels, "sample_size": size}
    config |= {"num_classes": 1000}
    if architecture.name == "edm2":
        config |= {"layers_per_block": 3, "attention_levels": (2, 3), "attention_head_dim": 64}
    else:
        dim = config["num_attention_heads"] * config["attention_head_dim"]
        config["ff_inner_dim"] = 4 * dim if architecture.name == "sit" else int(2 / 3 * 4 * dim)
    if architecture.name == "ddt":
        config["num_encoder_layers"] = 22
    with torch.device("meta"):
        model = architecture.model(**config)
    table = getattr(model, "pos_embed", None)
    count = sum(each.numel() for each in model.parameters()) + (0 if table is None else table.numel())
    keys = [key for entry in architecture.entries(config) for key in entry.sources]
    assert (count, len(keys), len(set(keys))) == (*expected, expected[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_type": "batch_norm"}, "`norm_type` must be one of"),
        ({"rotary_embedding": "random"}, "`rotary_embedding` must be one of"),
        ({"activation_fn": "relu"}, "`activation_fn` must be one of"),
        ({"attention_head_dim": 6}, "`attention_head_dim` must be a multiple of 4"),
        ({"num_encoder_layers": 2}, r"`num_encoder_layers` must be in \[0, 1\]"),
        ({"patch_size": 3}, "`sample_size` must be a multiple of `patch_size`"),
    ],
)
def test_bad_configurations_of_the_transformer_are_refused(changes, message):
    sizes = {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 8}
    with pytest.raises(ValueError, match=message):
        UCGMTransformer2DModel(**{**sizes, **changes})


def test_bad_inputs_are_refused():
    model, _ = model_of("tit")
    with pytest.raises(ValueError, match="`hidden_states` must be 8x8"):
        model(torch.zeros(1, 6, 8, 4), 0.5)
    model, _ = model_of("ddt")
    with pytest.raises(ValueError, match="multiples of 2"):
        model(torch.zeros(1, 4, 7, 8), 0.5)
    model, _ = model_of("edm2")
    with pytest.raises(ValueError, match="multiples of 4"):
        model(torch.zeros(1, 4, 16, 18), 0.5)
    with pytest.raises(ValueError, match="`attention_levels` must be in"):
        EDM2UNet2DModel(attention_levels=(4,))
