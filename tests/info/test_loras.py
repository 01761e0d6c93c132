"""`ucgm info` on LoRAs: what they are, and how they are loaded."""

import pytest
import torch
from class_pipelines import pipeline
from safetensors.torch import save_file

from diffusers_ucgm import UCGMTrainer, UCGMTrainingConfig, add_second_time
from diffusers_ucgm.cli import main
from diffusers_ucgm.info.loras import describe_lora
from diffusers_ucgm.lora import add_lora, load_lora, save_lora
from diffusers_ucgm.names import LORA_WEIGHTS_NAME


def lora(folder, *, rank=3, network=None, notes=None):
    network = pipeline().transformer if network is None else network
    add_lora(network, rank)
    return save_lora(network, folder, notes=notes)


def test_a_lora_of_the_trainer_says_what_it_is(tmp_path, capsys):
    data = [{"latents": torch.zeros(4, 8, 8), "class_labels": 1}] * 4
    config = UCGMTrainingConfig(
        str(tmp_path), max_train_steps=1, train_batch_size=2, lora_rank=2, consistency_ratio=1.0
    )
    UCGMTrainer(config, pipeline().transformer, data).train()
    capsys.readouterr()
    assert main(["info", str(tmp_path / "lora")]) == 0
    told = capsys.readouterr().out.splitlines()
    size = (tmp_path / "lora" / LORA_WEIGHTS_NAME).stat().st_size
    assert told[:3] == [f"LoRA in {tmp_path / 'lora'}", "base model: not recorded", "rank: 2"]
    assert told[3].startswith("layers: ")
    assert told[3].endswith(" of the transformer")
    assert told[4].endswith(f", {size / 1e6:.1f} MB")
    assert told[5] == "second time: none"
    assert told[6].startswith("sampler: {")
    assert f"load_lora_weights('{tmp_path / 'lora'}')" in told[7]


def test_layers_and_parameters_are_those_of_the_network(tmp_path):
    network = pipeline().transformer
    lora(tmp_path, network=network)
    told = describe_lora(tmp_path, 4)
    ours = [each for name, each in network.named_parameters() if "lora_" in name]
    assert told[2] == "rank: 3"
    assert told[3] == f"layers: {len(ours) // 2} of the transformer"
    assert told[4].startswith(f"parameters: {sum(each.numel() for each in ours):,}, ")


@pytest.mark.parametrize(("method", "embedder"), [("sum", "with"), ("depth", "without")])
def test_a_second_time_is_said_and_is_not_for_stock_loaders(method, embedder, tmp_path):
    network = pipeline().transformer
    if method == "depth":
        from stock_pipelines import flux

        network = flux().pipe.transformer
    lora(tmp_path, network=add_second_time(network, method))
    told = describe_lora(tmp_path, 4)
    assert told[5] == f"second time: by {method!r}, {embedder} an embedder of its own in the file"
    assert "load_lora_weights" not in told[-1]
    assert f"--lora {tmp_path}" in told[-1]


def test_the_base_model_is_that_of_the_card_or_of_the_settings(tmp_path):
    lora(tmp_path)
    card = tmp_path / "README.md"
    card.write_text("---\nbase_model: owner/model\n---\n# A LoRA\n")
    assert describe_lora(tmp_path, 4)[1] == "base model: owner/model"
    card.write_text("---\nbase_model: [owner/model, owner/other]\n---\n")
    assert describe_lora(tmp_path, 4)[1] == "base model: owner/model, owner/other"
    for text in ("no card", "---\n{: [\n---\n", "---\n- a list\n---\n"):
        card.write_text(text)
        assert describe_lora(tmp_path, 4)[1] == "base model: not recorded"


def test_a_lora_of_a_second_network_is_loaded_into_it(tmp_path):
    lora(tmp_path, notes={"network": "transformer_2"})
    told = describe_lora(tmp_path, 4)
    assert told[3].endswith(" of the transformer_2")
    assert "load_into_transformer_2=True" in told[-1]


def test_names_of_other_tools_are_read(tmp_path):
    names = {"lora_unet_a.lora_down.weight": (4, 8), "lora_unet_a.lora_up.weight": (8, 4)}
    more = {"lora_unet_b.lora_down.weight": (2, 8), "lora_unet_b.lora_up.weight": (8, 2)}
    save_file({name: torch.zeros(shape) for name, shape in (names | more).items()}, tmp_path / LORA_WEIGHTS_NAME)
    told = describe_lora(tmp_path, 4)
    assert told[2:4] == ["rank: 2, 4", "layers: 2"]
    assert told[4].startswith("parameters: 96, ")


def test_a_file_without_a_lora_or_with_damaged_settings_is_named(tmp_path, capsys):
    file = tmp_path / LORA_WEIGHTS_NAME
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(ValueError, match=r"\.safetensors' must hold the matrices of a LoRA, got \['weight'\]"):
        describe_lora(tmp_path, 4)
    save_file({"a.lora_down.weight": torch.zeros(2, 2)}, file, {"diffusers_ucgm": "{"})
    with pytest.raises(ValueError, match=r"\.safetensors' must hold its settings as JSON"):
        describe_lora(tmp_path, 4)
    file.write_bytes(file.read_bytes()[:20])
    assert main(["info", str(tmp_path)]) == 2
    assert LORA_WEIGHTS_NAME in capsys.readouterr().err


def test_the_way_that_is_told_loads_it(tmp_path):
    lora(tmp_path)
    network = pipeline().transformer
    load_lora(network, tmp_path)
    assert any("lora_" in name for name, _ in network.named_parameters())
