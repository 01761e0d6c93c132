"""Tiny text-to-image and text-to-video pipelines of diffusers that encode prompts themselves."""

import stock_pipelines
import torch
from transformers import (
    BatchEncoding,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)


# The tiny networks have fewer places for tokens than the pipelines fill by default.
LENGTHS = {"cogvideox_2b": {"max_sequence_length": 5}, "lumina2": {"max_sequence_length": 16}}


class Words:
    """A tokenizer without a vocabulary: a word's token follows from its letters."""

    pad_token = ""
    pad_token_id = 0

    def __init__(self, model_max_length, vocabulary=16):
        self.model_max_length = model_max_length
        self.vocabulary = vocabulary
        self.added_tokens_encoder = {}

    def __call__(self, text, padding=None, max_length=None, **_):
        text = [text] if isinstance(text, str) else text
        rows = [[2 + sum(map(ord, word)) % (self.vocabulary - 2) for word in each.split()] + [1] for each in text]
        longest = max(map(len, rows))
        length = (max_length or self.model_max_length) if padding == "max_length" else longest
        masks = [[1] * min(len(row), length) + [0] * (length - len(row)) for row in rows]
        rows = [(row + [0] * length)[:length] for row in rows]
        return BatchEncoding({"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)})

    def encode(self, text):
        return self(text)["input_ids"][0].tolist()

    def apply_chat_template(self, messages, **_):
        return " ".join(f"{each['role']}: {each['content']}" for each in messages)

    def tokenize(self, text):
        return text.split()

    def batch_decode(self, ids, **_):
        return [str(row) for row in ids]


def clip(tokens=7):
    return stock_pipelines.text_config(max_position_embeddings=tokens)


def t5(cls=T5EncoderModel, config=T5Config, width=8):
    return cls(config(d_model=width, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=16))


def decoder():
    """A language model whose hidden states are a prompt's embeddings."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "head_dim": 4, "vocab_size": 16}
    return Gemma2Model(Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1))


def with_encoders(name):
    """A case of `stock_pipelines` whose pipeline encodes prompts itself."""
    torch.manual_seed(0)
    words = Words(7)
    parts = {
        "sd15": {"tokenizer": words, "text_encoder": CLIPTextModel(clip())},
        "sdxl": {
            "tokenizer": words,
            "tokenizer_2": words,
            "text_encoder": CLIPTextModel(clip()),
            "text_encoder_2": CLIPTextModelWithProjection(clip()),
        },
        "flux": {
            "tokenizer": words,
            "tokenizer_2": words,
            "text_encoder": CLIPTextModel(clip(77)),
            "text_encoder_2": t5(),
        },
        "ltx": {"tokenizer": words, "text_encoder": t5()},
        "wan": {"tokenizer": words, "text_encoder": t5(UMT5EncoderModel, UMT5Config)},
        "pixart_sigma": {"tokenizer": words, "text_encoder": t5()},
        "sd3": {
            "tokenizer": words,
            "tokenizer_2": words,
            "tokenizer_3": words,
            "text_encoder": CLIPTextModelWithProjection(clip(77)),
            "text_encoder_2": CLIPTextModelWithProjection(clip(77)),
            "text_encoder_3": t5(width=16),
        },
        "aura_flow": {"tokenizer": words, "text_encoder": t5(UMT5EncoderModel, UMT5Config)},
        "cogvideox_2b": {"tokenizer": words, "text_encoder": t5()},
        "sana": {"tokenizer": words, "text_encoder": decoder()},
        "lumina2": {"tokenizer": words, "text_encoder": decoder()},
        "z_image": {"tokenizer": words, "text_encoder": decoder()},
        "qwen_image": {"tokenizer": words, "text_encoder": decoder()},
    }[name]
    case = getattr(stock_pipelines, name)()
    if name == "sd15":  # whose network attends to wider texts than these encoders give
        case.pipe.register_modules(unet=stock_pipelines.unet(cross_attention_dim=8).eval())
    if name == "sd3":  # which takes the texts of both CLIP encoders beside each other
        wide = {**case.pipe.transformer.config, "joint_attention_dim": 16, "pooled_projection_dim": 16}
        case.pipe.register_modules(transformer=type(case.pipe.transformer).from_config(wide).eval())
    # Words are fewer than the tokens that these texts around a prompt have.
    case.pipe.system_prompt = "Draw"
    case.pipe.prompt_template_encode_start_idx = 5
    case.pipe.register_modules(
        **{part: getattr(value, "eval", lambda value=value: value)() for part, value in parts.items()}
    )
    for argument in [name for name in case.arguments if "prompt" in name]:
        del case.arguments[argument]
    case.arguments["prompt"] = ["a red square"]
    case.arguments |= LENGTHS.get(name, {})
    return case


# What the tiny networks need beside a prompt, as their cases have it.
SIZES = ("height", "width", "num_frames", "complex_human_instruction", "use_resolution_binning")


def prompt_pipeline(name):
    """A pipeline that encodes prompts itself, and the arguments of its call beside the prompt."""
    case = with_encoders(name)
    return case.pipe, {key: value for key, value in case.arguments.items() if key in SIZES} | LENGTHS.get(name, {})
