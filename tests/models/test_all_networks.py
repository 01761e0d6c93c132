"""What holds for every network of the paper: loading, backends, compilation, checkpointing, LoRA, training."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import attention_backend
from networks import NAMES, TOLERANCE, called, error, model_of
from torch import nn

from diffusers_ucgm import UCGMLoss
from diffusers_ucgm.conversion.networks import ARCHITECTURES
from diffusers_ucgm.lora import add_lora, without_lora
from diffusers_ucgm.training.adapters import adapter_for


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
    expected = cases["forward.output"]
    # Which element is farthest off depends on the order of sums, and so on the version of torch; the whole does not.
    assert (found.float() - expected).norm() < 5 * torch.finfo(dtype).eps * expected.norm()


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


def test_models_are_what_diffusers_expects(name):
    model, _ = model_of(name)
    assert isinstance(model, ModelMixin)
    blocks = {type(module).__name__ for module in model.modules()}
    assert set(model._no_split_modules) <= blocks
    assert set(model._repeated_blocks) <= blocks
