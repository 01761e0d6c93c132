"""LoRA tuning and teachers: no second copy of the weights, and files that the stock pipelines load."""

import diffusers
import pytest
import stock_pipelines
import tiny_transformers
import torch
import two_time_networks as two_time
from diffusers import FluxTransformer2DModel
from lora_runs import PIPELINES, POOLED, Texts, settings
from safetensors.torch import load_file
from torch import nn

from diffusers_ucgm import Teacher, UCGMPipeline, add_second_time
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.lora import add_lora, insert_lora, load_lora, remove_lora, save_lora, without_lora
from diffusers_ucgm.second_time import second_time_settings
from diffusers_ucgm.training.config import UCGMTrainingConfig
from diffusers_ucgm.training.trainer import UCGMTrainer


pytestmark = [
    pytest.mark.usefixtures("fresh_accelerate"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def unique_bytes(*modules, others=()):
    """Bytes of storage, each counted once, that parameters, buffers and further tensors hold."""
    tensors = [*others]
    for module in modules:
        tensors += [*module.parameters(), *module.buffers()]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}.values())


@pytest.mark.parametrize("name", PIPELINES)
def test_a_tuned_lora_loads_into_the_stock_pipeline(tmp_path, name):
    names, shape = PIPELINES[name]
    case, fresh = (getattr(stock_pipelines, name)() for _ in range(2))
    base = case()
    assert torch.equal(base, fresh())
    trainer = UCGMTrainer.from_pipeline(settings(tmp_path, lora_rank=4), case.pipe, Texts(case, names, shape))
    folder = trainer.train()
    assert folder == tmp_path / "lora"
    assert {file.suffix for file in folder.iterdir()} == {".safetensors", ".md"}
    network_of(case.pipe).eval()
    tuned = case()
    assert not torch.equal(tuned, base)
    fresh.pipe.load_lora_weights(folder, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(fresh(), tuned, rtol=0, atol=0)
    with without_lora(network_of(case.pipe)):
        torch.testing.assert_close(case(), base, rtol=0, atol=1e-5)


def test_lora_tuning_stores_the_base_once(tmp_path):
    # Wide enough that rank 4 is little, as in real models.
    torch.manual_seed(0)
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=64,
        num_attention_heads=8,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(16, 24, 24),
    )
    base = unique_bytes(network)
    case = stock_pipelines.flux()
    case.pipe.register_modules(transformer=network)
    trainer = UCGMTrainer.from_pipeline(
        settings(tmp_path, lora_rank=4, train_batch_size=1), case.pipe, Texts(case, POOLED, (4, 8, 8))
    )
    trainer.train()
    assert trainer.teacher.model is trainer.transformer
    assert trainer.ema is None
    with_lora = unique_bytes(
        network,
        trainer.teacher.model,
        *[
            value
            for value in case.pipe.components.values()
            if isinstance(value, nn.Module) and value is not case.pipe.vae
        ],
    )
    assert base < with_lora <= 1.05 * base


def test_the_adapter_of_a_base_in_half_precision_is_float32_and_learns_in_small_steps():
    torch.manual_seed(0)
    network = stock_pipelines.sd3().pipe.transformer.to(torch.bfloat16)
    add_lora(network, 2)
    trainable = [value for value in network.parameters() if value.requires_grad]
    assert {value.dtype for value in trainable} == {torch.float32}
    assert torch.bfloat16 in {value.dtype for value in network.parameters()}
    before = trainable[0].detach().clone()
    for value in trainable:
        value.data.mul_(1.0 + 1e-5)
    assert not torch.equal(trainable[0], before)


def test_only_the_adapter_is_trained_and_checkpointed(tmp_path):
    case = stock_pipelines.sd3()
    network = case.pipe.transformer
    before = {name: value.clone() for name, value in network.state_dict().items()}
    config = settings(tmp_path, lora_rank=2, checkpointing_steps=2, ema_decay=0.9)
    trainer = UCGMTrainer.from_pipeline(config, case.pipe, Texts(case, POOLED, (16, 8, 8)))
    trainer.train()
    after = {name.replace(".base_layer", ""): value for name, value in network.state_dict().items()}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    changed = [name for name, value in network.named_parameters() if "lora_B" in name and value.abs().max() > 0]
    assert len(changed) == 4  # to_q, to_k, to_v, to_out of the only block
    from diffusers_ucgm.training.checkpoints import load_checkpoint

    tensors, _ = load_checkpoint(tmp_path / "checkpoint-2")
    assert all("lora" in name for name in tensors["model"])
    assert len(tensors["ema"]) == len(tensors["model"])
    assert not tensors.get("teacher")


def test_a_resumed_lora_run_equals_an_uninterrupted_one_bitwise(tmp_path):
    def run(folder, **options):
        case = stock_pipelines.sd3()
        config = settings(folder, lora_rank=2, lora_dropout=0.2, max_train_steps=5, checkpointing_steps=2, **options)
        trainer = UCGMTrainer.from_pipeline(config, case.pipe, Texts(case, POOLED, (16, 8, 8)))
        trainer.train()
        return {name: value.clone() for name, value in trainer.trainable.items()}

    whole = run(tmp_path)
    resumed = run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


AVERAGED = {
    "second_time": "any",
    "chain_network": "ema",
    "chain_order": 2,
    "teacher_decay": 0.9,
    "enhancement_ratio": 0.0,
    "huber_c": 1e-3,
    "lora_rank": 2,
    "max_train_steps": 5,
    "checkpointing_steps": 2,
}


def averaged_run(folder, **options):
    case = stock_pipelines.sd3()
    config = settings(folder, **{**AVERAGED, **options})
    trainer = UCGMTrainer.from_pipeline(config, case.pipe, Texts(case, POOLED, (16, 8, 8)))
    trainer.train()
    return trainer


def test_the_averaged_chain_of_a_lora_is_checkpointed_and_resumed_bitwise(tmp_path):
    whole = averaged_run(tmp_path)
    student, averages = dict(whole.trainable), whole.teacher.state_dict()[0]
    assert set(averages) == set(student)
    assert any("second_time_embedder" in name for name in averages)
    moved = [name for name, value in student.items() if not torch.equal(value, averages[name])]
    assert any("lora_B" in name for name in moved)
    assert any("second_time_embedder" in name for name in moved)
    resumed = averaged_run(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(resumed.teacher.state_dict()[0], averages, rtol=0, atol=0)
    torch.testing.assert_close(dict(resumed.trainable), student, rtol=0, atol=0)
    # The file has the adapter alone.
    assert not any("averages" in name for name in load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors"))


def test_the_chain_of_a_lora_is_that_of_its_average(tmp_path):
    ema, student = (averaged_run(tmp_path / name, chain_network=name).trainable for name in ("ema", "student"))
    assert any(not torch.equal(value, student[name]) for name, value in ema.items())


def test_the_average_of_an_adapter_takes_the_memory_of_the_adapter_alone():
    network = stock_pipelines.sd3().pipe.transformer
    add_lora(network, 2)
    teacher = Teacher(network, 0.9, without_adapter=lambda: without_lora(network))
    averages = teacher.state_dict()[0]
    adapter = sum(value.nbytes for value in network.parameters() if value.requires_grad)
    alone = unique_bytes(network)
    assert unique_bytes(network, teacher.model, others=averages.values()) == alone + adapter


@torch.no_grad()
def test_an_averaged_adapter_is_the_average_that_a_copy_of_the_network_would_be():
    case = two_time.called("sd3")
    add_second_time(case.network)
    case.adapt()
    add_lora(case.network, 2)
    teachers = [
        Teacher(case.network, 0.9, without_adapter=lambda: without_lora(case.network)),
        Teacher(case.network, 0.9),
    ]
    expected, decay = {}, 0.0
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        for name, value in case.network.named_parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn(value.shape, generator=generator))
                expected[name] = torch.lerp(expected.get(name, value), value, 1.0 - decay)
        decay += (1.0 - decay) * (0.9 - decay) / 2.0
        for teacher in teachers:
            teacher.update(case.network)
    outputs = [
        teacher.denoiser(case.adapter)(case.latents, two_time.T, target_time=two_time.R, **case.condition)
        for teacher in teachers
    ]
    own = case(case.latents, two_time.T, target_time=two_time.R)
    torch.testing.assert_close(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], own, rtol=1e-3)
    # A call leaves the student's weights where they were.
    torch.testing.assert_close(case(case.latents, two_time.T, target_time=two_time.R), own, rtol=0, atol=0)
    case.network.load_state_dict(expected, strict=False)
    torch.testing.assert_close(outputs[0], case(case.latents, two_time.T, target_time=two_time.R))


def test_gradients_of_a_student_are_those_without_a_call_of_its_average():
    case = two_time.called("sd3")
    add_lora(case.network, 2)
    teacher = Teacher(case.network, 0.9, without_adapter=lambda: without_lora(case.network))
    with torch.no_grad():
        for name, value in case.network.named_parameters():
            value.add_(0.1 * ("lora_B" in name))
    weights = [value for value in case.network.parameters() if value.requires_grad]
    expected = torch.autograd.grad(case(case.latents, two_time.T).square().sum(), weights)
    output = case(case.latents, two_time.T)
    with torch.no_grad():
        averaged = teacher.denoiser(case.adapter)(case.latents, two_time.T, **case.condition)
    assert not torch.allclose(averaged, output)
    found = torch.autograd.grad(output.square().sum(), weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_teacher_of_a_lora_is_the_base_and_gradients_still_flow():
    case = stock_pipelines.sd3()
    network = case.pipe.transformer
    add_lora(network, 4)
    for name, value in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(value)
    teacher = Teacher(network, 1.0, without_adapter=lambda: without_lora(network))

    def call(module, scale):
        return module(
            torch.full((1, 16, 8, 8), scale),
            case.arguments["prompt_embeds"],
            case.arguments["pooled_prompt_embeds"],
            torch.tensor([500.0]),
        ).sample

    student = call(network, 1.0)
    with teacher.network() as base:
        base_output = call(base, 1.0)
    assert not torch.allclose(student, base_output, atol=1e-3)
    torch.testing.assert_close(call(network, 1.0), student, rtol=0, atol=0)
    student.sum().backward()
    assert all(value.grad is not None for name, value in network.named_parameters() if "lora_B" in name)


def test_a_lora_of_a_class_conditional_pipeline_loads_into_it(tmp_path):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    torch.manual_seed(0)
    data = LatentDataset(torch.randn(6, 4, 8, 8), torch.arange(6))
    UCGMTrainer.from_pipeline(settings(tmp_path, lora_rank=4), pipe, data).train()
    pipe.transformer.eval()
    pipe.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "output_type": "latent"}
    tuned = pipe([3], generator=torch.Generator().manual_seed(0), **call).images
    fresh = UCGMPipeline.from_pretrained("fashion-mnist")
    fresh.set_progress_bar_config(disable=True)
    before = fresh([3], generator=torch.Generator().manual_seed(0), **call).images
    fresh.load_lora_weights(tmp_path / "lora")
    after = fresh([3], generator=torch.Generator().manual_seed(0), **call).images
    torch.testing.assert_close(after, tuned, rtol=0, atol=0)
    assert not torch.equal(before, after)


# --- bad input -------------------------------------------------------------------------------------------------------


def test_modules_that_are_not_there_are_named():
    with pytest.raises(ValueError, match=r"`target_modules` must name modules of Linear, got \['to_q'\]"):
        add_lora(nn.Linear(2, 2), 4, target_modules=["to_q"])
    with pytest.raises(ValueError, match=r"must name layers with weights of their own, got \['1'\], .*'1', a SiLU"):
        add_lora(nn.Sequential(nn.Linear(2, 2), nn.SiLU()), 4, target_modules=["1"])


# docs/text-to-image-lora.md has these names.
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("JoyImageEditTransformer3DModel", ["img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj"]),
        ("JoyImageEditPlusTransformer3DModel", ["img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj"]),
        ("Kandinsky5Transformer3DModel", ["to_query", "to_key", "to_value"]),
        ("Kandinsky6Transformer3DModel", ["to_query", "to_key", "to_value"]),
    ],
)
def test_networks_with_other_names_say_so_and_take_theirs(name, targets):
    if not hasattr(diffusers, name):
        pytest.skip("another version of diffusers")
    network = tiny_transformers.build(name)
    with pytest.raises(ValueError, match=rf"`target_modules` must name modules of {name}, got .*It has"):
        add_lora(network, 2)
    add_lora(network, 2, target_modules=targets)
    adapted = {key.split(".lora_A")[0].rsplit(".", 1)[-1] for key in network.state_dict() if "lora_A" in key}
    assert adapted == set(targets)


def test_folders_without_a_fitting_adapter_are_refused(tmp_path):
    network = stock_pipelines.sd3().pipe.transformer
    with pytest.raises(FileNotFoundError, match=r"must hold 'pytorch_lora_weights\.safetensors'"):
        load_lora(network, tmp_path)
    add_lora(network, 2)
    save_lora(network, tmp_path, "transformer")
    with pytest.raises(ValueError, match="must hold an adapter for 'unet'"):
        load_lora(stock_pipelines.sd3().pipe.transformer, tmp_path, "unet")


def test_settings_that_would_need_a_copy_are_refused():
    with pytest.raises(ValueError, match="must go with a frozen copy"):
        UCGMTrainingConfig("run", teacher_dtype="bf16", teacher_decay=0.9)


# --- copies ----------------------------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x, scale=1.0):
        return self.layer(x) * scale + self.shift


def test_an_offloaded_copy_gives_the_same_and_stays_where_it_is():
    student = Scaled()
    plain = Teacher(student, 1.0)
    offloaded = Teacher(student, 1.0, offload_from=torch.device("cpu"))
    x = torch.randn(2, 4)
    assert torch.equal(plain.model(x, scale=2.0), offloaded.model(x, scale=2.0))
    nn.init.zeros_(student.layer.weight)
    assert torch.equal(plain.model(x), offloaded.model(x))
    tensors, values = offloaded.state_dict()
    other = Teacher(Scaled(), 1.0, offload_from=torch.device("cpu"))
    other.load_state_dict(tensors, values)
    assert torch.equal(other.model(x), offloaded.model(x))
    meta = Teacher(student, 1.0, offload_from=torch.device("meta"))
    assert meta.model(torch.empty(2, 4, device="meta")).device.type == "meta"
    assert {value.device.type for value in meta.model.parameters()} == {"cpu"}


def test_a_copy_in_half_precision_takes_half_the_memory(tmp_path):
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    data = LatentDataset(torch.randn(4, 4, 8, 8), torch.arange(4))
    trainer = UCGMTrainer.from_pipeline(settings(tmp_path, teacher_dtype="bf16", max_train_steps=1), pipe, data)
    assert {value.dtype for value in trainer.teacher.model.parameters()} == {torch.bfloat16}
    trainer.train()
    assert {value.dtype for value in trainer.transformer.parameters()} == {torch.float32}
    student, teacher = unique_bytes(trainer.transformer), unique_bytes(trainer.teacher.model)
    assert teacher == pytest.approx(student / 2, rel=0.01)


def two_time_lora(name, method="sum"):
    """A network with a trained adapter and second time, and its class."""
    case = two_time.called(name)
    case.base = type(case.network)
    case.expected = case(case.latents, two_time.T).detach()
    add_second_time(case.network, method)
    add_lora(case.network, 2, target_modules=["to_q", "to_k", "attn.qkv"] if name == "edm2" else ["to_q", "to_k"])
    torch.manual_seed(3)
    with torch.no_grad():
        for each in case.network.parameters():
            if each.requires_grad:
                each.add_(0.1 * torch.randn_like(each))
    return case.adapt()


@pytest.mark.parametrize(("name", "method"), two_time.METHODS)
@torch.no_grad()
def test_adapters_carry_the_second_time(tmp_path, name, method):
    case = two_time_lora(name, method)
    trainable = {key for key, each in case.network.named_parameters() if each.requires_grad}
    assert any("second_time_embedder" in key for key in trainable) == (method == "sum")
    expected = case(case.latents, two_time.T, target_time=two_time.R)
    file = save_lora(case.network, tmp_path)
    names = load_file(file)
    assert any("second_time_embedder" in key for key in names) == (method == "sum")
    fresh = two_time.called(name)
    load_lora(fresh.network, tmp_path)
    fresh.adapt()
    torch.testing.assert_close(
        fresh(fresh.latents, two_time.T, target_time=two_time.R), expected, rtol=1e-5, atol=1e-5
    )
    with without_lora(fresh.network):
        torch.testing.assert_close(fresh(fresh.latents, two_time.T), case.expected, rtol=1e-5, atol=1e-5)
        if method == "sum":
            found = fresh(fresh.latents, two_time.T, target_time=two_time.R)
            torch.testing.assert_close(found, case.expected, rtol=1e-5, atol=1e-5)
    remove_lora(fresh.network)
    assert type(fresh.network) is case.base
    fresh.adapt()
    torch.testing.assert_close(fresh(fresh.latents, two_time.T), case.expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_an_adapter_gives_back_the_second_time_that_the_network_had(tmp_path):
    save_lora(two_time_lora("flux").network, tmp_path)
    case = two_time.called("flux")
    two_time.trained(add_second_time(case.network))
    case.adapt()
    expected = case(case.latents, two_time.T, target_time=two_time.R)
    load_lora(case.network, tmp_path)
    assert not torch.allclose(case(case.latents, two_time.T, target_time=two_time.R), expected)
    remove_lora(case.network)
    torch.testing.assert_close(case(case.latents, two_time.T, target_time=two_time.R), expected, rtol=0, atol=0)


def test_an_adapter_of_another_second_time_is_refused(tmp_path):
    save_lora(two_time_lora("flux").network, tmp_path)
    network = add_second_time(two_time.called("flux").network, "depth")
    with pytest.raises(ValueError, match=r"its second time is \{'method': 'sum'\}, that of the network .*'depth'"):
        load_lora(network, tmp_path)
    assert second_time_settings(network)["method"] == "depth"


@torch.no_grad()
def test_pipelines_get_the_second_time_of_an_adapter(tmp_path):
    case = two_time_lora("flux")
    file = save_lora(case.network, tmp_path)
    expected = case(case.latents, two_time.T, target_time=two_time.R)
    fresh = two_time.called("flux")
    with pytest.raises(TypeError, match="`LoraConfig` class could not be instantiated"):
        fresh.pipe.load_lora_weights(tmp_path, weight_name="pytorch_lora_weights.safetensors")
    insert_lora(fresh.pipe, file, None, 1.0)
    fresh.adapt()
    torch.testing.assert_close(
        fresh(fresh.latents, two_time.T, target_time=two_time.R), expected, rtol=1e-5, atol=1e-5
    )
    assert fresh.pipe.config["transformer"] == ("diffusers_ucgm.second_time", "SecondTimeFluxTransformer2DModel")
