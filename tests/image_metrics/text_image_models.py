"""Tiny models of images and texts, and a text-to-image pipeline, with random weights, in complete folders."""

import json

import stock_pipelines
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)


WORDS = ["a", "red", "green", "blue", "round", "flat", "cat", "dog", "car", "tree", "on", "the", "sea", "moon"]
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**SMALL, "image_size": 16, "patch_size": 8}


def tokenizer(words=WORDS, length=12):
    """A token for each word; the others are one unknown word."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<begin>", "<unk>", "<end>", *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 3)]
    )
    special = {"pad_token": "<pad>", "bos_token": "<begin>", "unk_token": "<unk>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, model_max_length=length, padding_side="right", **special)


def write_processor(folder, kind="CLIPImageProcessor"):
    settings = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    if kind == "SiglipImageProcessor":
        settings = {"size": {"height": 16, "width": 16}}
    settings |= {"image_processor_type": kind, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))


def write_clip(folder, **changes):
    """A whole folder with a CLIP."""
    made = tokenizer()
    text = {**SMALL, "vocab_size": len(made), "max_position_embeddings": 12, "bos_token_id": 1, "eos_token_id": 3}
    config = CLIPConfig(text_config={**text, **changes}, vision_config=VISION, projection_dim=12)
    model = CLIPModel(config)
    # Versions of transformers draw other weights, with some of which the CLIP score is 0.
    draws = torch.Generator().manual_seed(0)
    for name, weight in sorted(model.named_parameters()):
        if weight.ndim > 1 or name.endswith("class_embedding"):
            nn.init.normal_(weight, std=0.3, generator=draws)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    write_processor(folder)
    return folder


def write_siglip(folder):
    """A whole folder with a SigLIP."""
    torch.manual_seed(0)
    made = tokenizer(length=6)
    text = {**SMALL, "vocab_size": len(made), "max_position_embeddings": 6, "pad_token_id": 0}
    SiglipModel(SiglipConfig(text_config=text, vision_config=VISION)).save_pretrained(folder)
    made.save_pretrained(folder)
    write_processor(folder, "SiglipImageProcessor")
    return folder


def text_pipeline():
    """A stock pipeline with a tokenizer of its own, and the arguments that its call needs."""
    pipe = stock_pipelines.z_image().pipe
    made = tokenizer(length=32)
    made.chat_template = "{{ messages[0]['content'] }}"
    sizes = {**SMALL, "hidden_size": 8}
    torch.manual_seed(0)
    encoder = CLIPTextModel(CLIPTextConfig(**sizes, vocab_size=len(made), max_position_embeddings=32)).eval()
    pipe.register_modules(tokenizer=made, text_encoder=encoder)
    return pipe, {"height": 16, "width": 16, "max_sequence_length": 32}


def write_text_pipeline(folder):
    """The pipeline as a folder that commands take."""
    text_pipeline()[0].save_pretrained(folder)
    for file in ("model_index.json", "tokenizer/tokenizer_config.json"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    return folder
