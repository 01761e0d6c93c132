"""Prompts and pictures through the stock pipelines' own encoders."""

import pytest
import stock_pipelines
import torch
from test_network_adapter import STOCK, recorded_steps, unpacked
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

from diffusers_ucgm import UCGMPipeline
from diffusers_ucgm.contracts import network_of
from diffusers_ucgm.pipeline import denormalize_latents, normalize_latents
from diffusers_ucgm.training.encoding import encode_null, encode_pixels, encode_prompts
from diffusers_ucgm.training.network_adapter import adapter_for_pipeline, convention_of_scheduler


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


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


ENCODING = [
    *("sd15", "sdxl", "flux", "ltx", "wan", "pixart_sigma"),
    *("sd3", "aura_flow", "cogvideox_2b", "sana", "lumina2", "z_image", "qwen_image"),
]
# The tiny networks have fewer places for tokens than the pipelines fill by default.
LENGTHS = {"cogvideox_2b": {"max_sequence_length": 5}, "lumina2": {"max_sequence_length": 16}}


@pytest.mark.parametrize("name", ENCODING)
def test_prompts_are_encoded_as_the_stock_pipeline_encodes_them(name):
    case, stock = with_encoders(name), STOCK[name]
    pipe = case.pipe
    adapter, convention = adapter_for_pipeline(pipe), convention_of_scheduler(pipe.scheduler)
    condition = encode_prompts(pipe, adapter, ["a red square"], **LENGTHS.get(name, {}))
    (model_output, timestep, sample), *_ = recorded_steps(case, **stock.call)
    t = convention.time(torch.as_tensor(timestep).double().reshape(1))
    if stock.latents:
        like = torch.empty(1, *stock.latents)
        sample, model_output = (unpacked(adapter, value, like) for value in (sample, model_output))
    x_t = (
        sample * convention.transport.gamma(t).reshape(-1, *(1,) * (sample.ndim - 1)) if convention.divides else sample
    )
    with torch.no_grad():
        found = adapter(network_of(pipe), x_t.float(), convention.transport.model_time(t).float(), **condition)
    torch.testing.assert_close(found, model_output[:, : found.shape[1]].float(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("name", ENCODING)
def test_no_prompt_has_the_keywords_and_length_of_a_prompt(name):
    pipe = with_encoders(name).pipe
    adapter = adapter_for_pipeline(pipe)
    lengths = LENGTHS.get(name, {})
    prompts = encode_prompts(pipe, adapter, ["a red square", "a cat"], **lengths)
    null = encode_null(pipe, adapter, **lengths)
    assert set(prompts) == set(null)
    for keyword, value in null.items():
        assert value.shape == (1, *prompts[keyword].shape[1:])
        assert not value.requires_grad
    name, value = next(iter(prompts.items()))
    assert not torch.equal(value[0], null[name][0])
    assert not torch.equal(value[0], value[1])


def test_the_null_of_an_xl_model_is_the_zeros_it_was_trained_with():
    pipe = with_encoders("sdxl").pipe
    assert pipe.config.force_zeros_for_empty_prompt
    null = encode_null(pipe, adapter_for_pipeline(pipe))
    assert all(value.abs().max() == 0 for value in null.values())


def test_the_length_of_texts_can_be_chosen():
    pipe = with_encoders("wan").pipe
    adapter = adapter_for_pipeline(pipe)
    assert encode_prompts(pipe, adapter, ["a cat"])["encoder_hidden_states"].shape[1] == 512
    assert encode_prompts(pipe, adapter, ["a cat"], max_sequence_length=12)["encoder_hidden_states"].shape[1] == 12


def test_texts_of_their_own_lengths_are_filled_up_and_masked(monkeypatch):
    pipe = stock_pipelines.z_image().pipe
    adapter = adapter_for_pipeline(pipe)
    texts = {"a cat": torch.randn(3, 8), "a red square": torch.randn(5, 8), "": torch.randn(1, 8)}
    monkeypatch.setattr(pipe, "_encode_prompt", lambda prompt, **_: [texts[each] for each in prompt])
    condition = encode_prompts(pipe, adapter, ["a cat", "a red square"], max_sequence_length=6)
    assert condition["cap_feats"].shape == (2, 6, 8)
    assert condition["cap_mask"].sum(1).tolist() == [3, 5]
    assert torch.equal(condition["cap_feats"][0, :3], texts["a cat"])
    null = encode_null(pipe, adapter, max_sequence_length=6)
    assert null["cap_mask"].tolist() == [[True] + [False] * 5]
    assert encode_prompts(pipe, adapter, ["a cat"])["cap_feats"].shape == (1, 512, 8)


def test_a_mask_that_the_pipeline_leaves_out_is_made(monkeypatch):
    pipe = stock_pipelines.qwen_image().pipe
    adapter = adapter_for_pipeline(pipe)
    embeddings = torch.randn(2, 5, 8)
    mask = torch.ones(2, 5, dtype=torch.long)
    monkeypatch.setattr(pipe, "_get_qwen_prompt_embeds", lambda prompt, device: (embeddings, mask))
    condition = encode_prompts(pipe, adapter, ["one", "two"], max_sequence_length=8)
    assert condition["encoder_hidden_states"].shape == (2, 8, 8)
    assert condition["encoder_hidden_states_mask"].sum(1).tolist() == [5, 5]


def test_pipelines_that_encode_no_prompts_say_so():
    pipe = stock_pipelines.dit().pipe
    with pytest.raises(
        ValueError, match=r"`pipe` must have an `encode_prompt` that DiTAdapter knows, got DiTPipeline"
    ):
        encode_prompts(pipe, adapter_for_pipeline(pipe), ["a cat"])


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("sd15", (2, 4, 16, 16)),
        ("sd3", (2, 16, 16, 16)),
        ("flux", (2, 4, 16, 16)),
        ("sana", (2, 4, 16, 16)),
        ("wan", (2, 4, 1, 4, 4)),
        ("qwen_image", (2, 4, 1, 16, 16)),
        ("ltx", (2, 8, 1, 8, 8)),
        ("cogvideox_2b", (2, 4, 1, 4, 4)),
    ],
)
def test_pictures_become_the_networks_latents(name, shape):
    pipe = getattr(stock_pipelines, name)().pipe
    pixels = torch.rand(2, 3, 32, 32) * 2 - 1
    first, second = (encode_pixels(pipe, pixels, torch.Generator().manual_seed(0)) for _ in range(2))
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_latents_are_shifted_and_scaled_as_the_pipeline_undoes_it():
    pipe = stock_pipelines.sd3().pipe
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    latents = encode_pixels(pipe, pixels, torch.Generator().manual_seed(0))
    with torch.no_grad():
        raw = pipe.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(0))
    undone = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor  # as the pipeline has it
    torch.testing.assert_close(undone, raw)
    torch.testing.assert_close(denormalize_latents(pipe.vae, latents), raw)


def test_latents_may_be_the_means_of_the_posterior():
    pipe = stock_pipelines.sd3().pipe
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        mean = pipe.vae.encode(pixels).latent_dist.mean
    torch.testing.assert_close(encode_pixels(pipe, pixels, posterior_mean=True), normalize_latents(pipe.vae, mean))
    assert not torch.equal(encode_pixels(pipe, pixels), encode_pixels(pipe, pixels, posterior_mean=True))


def test_statistics_in_the_autoencoders_buffers_count():
    pipe = stock_pipelines.ltx().pipe
    pipe.vae.latents_mean.fill_(2.0)
    pipe.vae.latents_std.fill_(4.0)
    z = torch.randn(1, 8, 1, 2, 2)
    undone = pipe._denormalize_latents(z, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor)
    torch.testing.assert_close(denormalize_latents(pipe.vae, z), undone)


def test_a_pipeline_of_pixels_has_nothing_to_encode_with():
    with pytest.raises(ValueError, match=r"`pipe` must have a `vae` to encode pixels, got DDPMPipeline without one"):
        encode_pixels(stock_pipelines.ddpm().pipe, torch.zeros(1, 3, 8, 8))


def test_bundled_latents_have_unit_scale():
    pipe = UCGMPipeline.from_pretrained("fashion-mnist")
    images = pipe(
        [0, 5, 9], num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="pt"
    ).images
    latents = encode_pixels(pipe, images * 2 - 1)
    assert 0.5 < latents.std() < 2.0
