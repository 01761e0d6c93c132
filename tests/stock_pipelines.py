"""Diffusers' own pipelines with tiny random weights, and the scheduler configs that the models are published with.

The keys and values of the configs follow the repositories' `scheduler_config.json` files; no hub was there to compare.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from transformers import (
    BatchEncoding,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)


CLIP_SIZE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
PUBLISHED: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "stock_configs.json").read_text())


@dataclass
class Case:
    """A pipeline, how it is called, and what it gives.

    `denoiser` names the component that is counted, `shape` is the result's.
    """

    pipe: Any
    arguments: dict[str, Any]
    shape: tuple[int, ...]
    denoiser: str = "transformer"
    result: str = "images"

    def __call__(self, steps=3, seed=0, **changes):
        generator = torch.Generator().manual_seed(seed)
        arguments = {"num_inference_steps": steps, "generator": generator, **self.arguments, **changes}
        result = self.pipe(**arguments)
        value = getattr(result, self.result)
        return torch.as_tensor(value[0] if isinstance(value, list) else value)

    def calls(self, steps=3, **changes):
        """The network calls of a run; a guided call in one batch counts once."""
        count = []
        hook = getattr(self.pipe, self.denoiser).register_forward_pre_hook(lambda *_: count.append(1))
        self(steps, **changes)
        hook.remove()
        return len(count)


def seeded(build):
    def built():
        torch.manual_seed(0)
        case = build()
        case.pipe.set_progress_bar_config(disable=True)
        for component in case.pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        return case

    built.__name__ = build.__name__
    return built


def picture(size=16):
    return Image.new("RGB", (size, size), (200, 30, 90))


def mask(size=16):
    image = Image.new("L", (size, size), 0)
    image.paste(255, (0, 0, size // 2, size))
    return image


def text(width=8, tokens=5, mask=None, pooled=None, negative=True):
    """Embeddings in place of a prompt's, with what the pipeline wants beside them."""
    embeds = {}
    for prefix in ("", "negative_") if negative else ("",):
        embeds[f"{prefix}prompt_embeds"] = torch.randn(1, tokens, width)
        if mask is not None:
            embeds[f"{prefix}prompt_attention_mask"] = torch.ones(1, tokens, dtype=mask)
        if pooled is not None:
            embeds[f"{prefix}pooled_prompt_embeds"] = torch.randn(1, pooled)
    return embeds


def text_config(**settings):
    return CLIPTextConfig(**CLIP_SIZE, vocab_size=16, projection_dim=8, bos_token_id=0, eos_token_id=1, **settings)


def vision_config(image_size):
    return CLIPVisionConfig(**CLIP_SIZE, projection_dim=8, image_size=image_size, patch_size=image_size // 2)


def vae(latent_channels=4, blocks=(8, 16), **settings):
    return diffusers.AutoencoderKL(
        block_out_channels=blocks,
        down_block_types=("DownEncoderBlock2D",) * len(blocks),
        up_block_types=("UpDecoderBlock2D",) * len(blocks),
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=16,
        **settings,
    )


def unet(**settings):
    arguments = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**arguments, **settings})


def is_installed(name):
    """Whether a class of diffusers can be made; for those that need torchsde it may have a stand-in alone."""
    return ".dummy_" not in getattr(diffusers, name).__module__


def stock(name):
    """The published scheduler, or where its class is not installed another that the pipeline can be made with."""
    config = PUBLISHED[name]
    if not is_installed(config["_class_name"]):
        return diffusers.EDMEulerScheduler()
    return getattr(diffusers, config["_class_name"]).from_config(config)


def sd(cls=diffusers.StableDiffusionPipeline, scheduler="sd15", unet_settings=None, **arguments):
    pipe = cls(
        vae(), None, None, unet(**(unet_settings or {})), stock(scheduler), None, None, requires_safety_checker=False
    )
    embeds = text(16)
    if cls is diffusers.LatentConsistencyModelPipeline:
        embeds.pop("negative_prompt_embeds")
    return Case(pipe, {**embeds, "output_type": "np", **arguments}, (1, 16, 16, 3), "unet")


@seeded
def sd15():
    return sd(height=16, width=16)


@seeded
def sd15_img2img():
    return sd(diffusers.StableDiffusionImg2ImgPipeline, image=picture(), strength=0.5)


@seeded
def sd15_inpaint():
    return sd(
        diffusers.StableDiffusionInpaintPipeline, image=picture(), mask_image=mask(), height=16, width=16, strength=0.6
    )


@seeded
def sd21_v():
    return sd(scheduler="sd21-v", height=16, width=16)


@seeded
def lcm():
    return sd(
        diffusers.LatentConsistencyModelPipeline,
        "lcm",
        {"time_cond_proj_dim": 8},
        height=16,
        width=16,
    )


def xl(cls, scheduler="sdxl", **arguments):
    words = text_config()
    network = unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
        transformer_layers_per_block=1,
    )
    # The second text encoder is only asked for its projection's size.
    encoder = CLIPTextModelWithProjection(words)
    components = {
        "vae": vae(),
        "text_encoder": CLIPTextModel(words),
        "text_encoder_2": encoder,
        "tokenizer": None,
        "tokenizer_2": None,
        "unet": network,
        "scheduler": stock(scheduler),
    }
    embeds = text(16, pooled=8)
    return Case(
        cls(**components, add_watermarker=False), {**embeds, "output_type": "np", **arguments}, (1, 16, 16, 3), "unet"
    )


@seeded
def sdxl():
    return xl(diffusers.StableDiffusionXLPipeline, height=16, width=16)


@seeded
def sdxl_img2img():
    return xl(diffusers.StableDiffusionXLImg2ImgPipeline, image=picture(), strength=0.5)


@seeded
def sdxl_inpaint():
    return xl(
        diffusers.StableDiffusionXLInpaintPipeline,
        image=picture(),
        mask_image=mask(),
        strength=0.6,
        height=16,
        width=16,
    )


@seeded
def playground():
    return xl(diffusers.StableDiffusionXLPipeline, "playground-v2.5", height=16, width=16)


@seeded
def dit():
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    pipe = diffusers.DiTPipeline(transformer, vae(), stock("dit"))
    return Case(pipe, {"class_labels": [3], "output_type": "np"}, (1, 16, 16, 3))


def pixart_case(cls):
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        cross_attention_dim=8,
        caption_channels=8,
        norm_num_groups=4,
        use_additional_conditions=False,
    )
    pipe = cls(None, None, vae(), transformer, stock("pixart"))
    embeds = text(8, mask=torch.float32)
    embeds["negative_prompt"] = None  # the default is a word to encode
    arguments = {**embeds, "height": 16, "width": 16, "use_resolution_binning": False, "output_type": "np"}
    return Case(pipe, arguments, (1, 16, 16, 3))


@seeded
def pixart_alpha():
    return pixart_case(diffusers.PixArtAlphaPipeline)


@seeded
def pixart_sigma():
    return pixart_case(diffusers.PixArtSigmaPipeline)


def sd3_case(cls, **arguments):
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    pipe = cls(transformer, stock("sd3"), vae(16, shift_factor=0.06), None, None, None, None, None, None)
    embeds = text(8, pooled=8)
    return Case(pipe, {**embeds, "output_type": "np", "height": 16, "width": 16, **arguments}, (1, 16, 16, 3))


@seeded
def sd3():
    return sd3_case(diffusers.StableDiffusion3Pipeline)


@seeded
def sd3_img2img():
    return sd3_case(diffusers.StableDiffusion3Img2ImgPipeline, image=picture(), strength=0.5)


@seeded
def sd3_inpaint():
    return sd3_case(diffusers.StableDiffusion3InpaintPipeline, image=picture(), mask_image=mask(), strength=0.6)


def flux_case(cls, scheduler="flux-dev", **arguments):
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=True,
    )
    pipe = cls(stock(scheduler), vae(shift_factor=0.1), None, None, None, None, transformer)
    embeds = {"prompt_embeds": torch.randn(1, 5, 8), "pooled_prompt_embeds": torch.randn(1, 8)}
    return Case(pipe, {**embeds, "output_type": "np", "height": 16, "width": 16, **arguments}, (1, 16, 16, 3))


@seeded
def flux():
    return flux_case(diffusers.FluxPipeline)


@seeded
def flux_schnell():
    return flux_case(diffusers.FluxPipeline, "flux-schnell")


@seeded
def flux_img2img():
    return flux_case(diffusers.FluxImg2ImgPipeline, image=picture(), strength=0.5)


@seeded
def flux_inpaint():
    return flux_case(diffusers.FluxInpaintPipeline, image=picture(), mask_image=mask(), strength=0.6)


@seeded
def chroma():
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
        approximator_hidden_dim=8,
        approximator_layers=1,
        approximator_num_channels=16,
    )
    pipe = diffusers.ChromaPipeline(stock("chroma"), vae(shift_factor=0.1), None, None, transformer)
    embeds = text(8, mask=torch.float32)
    return Case(pipe, {**embeds, "output_type": "np", "height": 16, "width": 16}, (1, 16, 16, 3))


def dc_ae():
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )


def sana_case(cls, scheduler, **settings):
    transformer = diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
        **settings,
    )
    pipe = cls(None, None, dc_ae(), transformer, stock(scheduler))
    embeds = {"prompt_embeds": torch.randn(1, 5, 8), "prompt_attention_mask": torch.ones(1, 5)}
    return Case(
        pipe,
        {**embeds, "output_type": "np", "height": 32, "width": 32, "use_resolution_binning": False},
        (1, 32, 32, 3),
    )


@seeded
def sana():
    case = sana_case(diffusers.SanaPipeline, "sana")
    case.arguments |= {
        "negative_prompt_embeds": torch.randn(1, 5, 8),
        "negative_prompt_attention_mask": torch.ones(1, 5),
        "negative_prompt": None,
    }
    return case


@seeded
def sana_sprint():
    case = sana_case(
        diffusers.SanaSprintPipeline, "sana-sprint", guidance_embeds=True, qk_norm="rms_norm_across_heads"
    )
    # The pipeline asks for the middle time at two steps only.
    case.arguments["intermediate_timesteps"] = None
    return case


@seeded
def aura_flow():
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=8,
        caption_projection_dim=8,
        pos_embed_max_size=64,
    )
    pipe = diffusers.AuraFlowPipeline(None, None, vae(), transformer, stock("aura-flow"))
    embeds = text(8, mask=torch.float32)
    return Case(pipe, {**embeds, "output_type": "np", "height": 16, "width": 16}, (1, 16, 16, 3))


@seeded
def lumina2():
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=3,
        num_kv_heads=1,
        multiple_of=2,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 64, 64),
        cap_feat_dim=8,
    )
    pipe = diffusers.Lumina2Pipeline(transformer, stock("lumina2"), vae(shift_factor=0.1), None, None)
    embeds = text(8, mask=torch.bool)
    return Case(pipe, {**embeds, "output_type": "np", "height": 32, "width": 32}, (1, 8, 8, 3))


def z_image_case(cls, **arguments):
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[8, 4, 4],
        axes_lens=[256, 32, 32],
    )
    for module in transformer.modules():  # padding tokens are made empty
        for name, parameter in module.named_parameters(recurse=False):
            if "pad_token" in name:
                torch.nn.init.normal_(parameter)
    pipe = cls(stock("z-image"), vae(shift_factor=0.1), None, None, transformer)
    embeds = {"prompt_embeds": [torch.randn(5, 8)], "negative_prompt_embeds": [torch.randn(5, 8)]}
    return Case(pipe, {**embeds, "output_type": "np", "height": 16, "width": 16, **arguments}, (1, 16, 16, 3))


@seeded
def z_image():
    return z_image_case(diffusers.ZImagePipeline)


@seeded
def z_image_img2img():
    return z_image_case(diffusers.ZImageImg2ImgPipeline, image=picture(), strength=0.5)


@seeded
def z_image_inpaint():
    return z_image_case(diffusers.ZImageInpaintPipeline, image=picture(), mask_image=mask(), strength=0.75)


@seeded
def qwen_image():
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe = diffusers.QwenImagePipeline(stock("qwen-image"), autoencoder, None, None, transformer)
    embeds = {
        "prompt_embeds": torch.randn(1, 5, 8),
        "prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
        "negative_prompt_embeds": torch.randn(1, 5, 8),
        "negative_prompt_embeds_mask": torch.ones(1, 5, dtype=torch.long),
        "true_cfg_scale": 2.0,
    }
    return Case(pipe, {**embeds, "output_type": "latent", "height": 16, "width": 16}, (1, 16, 16))


def ltx_case(cls, scheduler="ltx-video", shape=(1, 192, 8), **arguments):
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    autoencoder = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    autoencoder.use_framewise_encoding = False
    autoencoder.use_framewise_decoding = False
    pipe = cls(stock(scheduler), autoencoder, None, None, transformer)
    embeds = text(8, mask=torch.float32)
    size = {"height": 32, "width": 32, "num_frames": 9}
    return Case(pipe, {**embeds, **size, "output_type": "latent", **arguments}, shape, result="frames")


@seeded
def ltx():
    return ltx_case(diffusers.LTXPipeline)


@seeded
def ltx_condition():
    return ltx_case(diffusers.LTXConditionPipeline, "ltx-video-0.9.7", (1, 8, 3, 8, 8), image=picture(32))


def wan_vae():
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


@seeded
def wan():
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    autoencoder = wan_vae()
    pipe = diffusers.WanPipeline(None, None, autoencoder, stock("wan"), transformer)
    embeds = text(8)
    size = {"height": 32, "width": 32, "num_frames": 5}
    return Case(pipe, {**embeds, **size, "output_type": "latent"}, (1, 4, 2, 4, 4), result="frames")


@seeded
def hunyuan_video():
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
    )
    autoencoder = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    pipe = diffusers.HunyuanVideoPipeline(None, None, transformer, autoencoder, stock("hunyuan-video"), None, None)
    embeds = text(8, mask=torch.float32, pooled=8, negative=False)
    size = {"height": 16, "width": 16, "num_frames": 5}
    return Case(pipe, {**embeds, **size, "output_type": "latent"}, (1, 4, 2, 2, 2), result="frames")


def cogvideox_case(scheduler):
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=8,
        num_layers=1,
        sample_width=8,
        sample_height=8,
        sample_frames=5,
        max_text_seq_length=5,
    )
    autoencoder = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    pipe = diffusers.CogVideoXPipeline(None, None, autoencoder, transformer, stock(scheduler))
    embeds = text(8)
    size = {"height": 64, "width": 64, "num_frames": 5}
    return Case(pipe, {**embeds, **size, "output_type": "latent"}, (1, 2, 4, 8, 8), result="frames")


@seeded
def cogvideox_2b():
    return cogvideox_case("cogvideox-2b")


@seeded
def cogvideox_5b():
    return cogvideox_case("cogvideox-5b")


@seeded
def kandinsky():
    network = unet(
        out_channels=8,
        block_out_channels=(32, 64),
        norm_num_groups=32,
        addition_embed_type="image",
        encoder_hid_dim=8,
        encoder_hid_dim_type="image_proj",
        class_embed_type=None,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
    )
    movq = diffusers.VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        num_vq_embeddings=8,
        norm_type="spatial",
        vq_embed_dim=4,
    )
    pipe = diffusers.KandinskyV22Pipeline(network, stock("kandinsky-2.2"), movq)
    embeds = {"image_embeds": torch.randn(1, 8), "negative_image_embeds": torch.randn(1, 8)}
    return Case(pipe, {**embeds, "height": 16, "width": 16, "output_type": "np"}, (1, 16, 16, 3), "unet")


@seeded
def stable_audio():
    transformer = diffusers.StableAudioDiTModel(
        sample_size=4,
        in_channels=3,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        out_channels=3,
        cross_attention_dim=4,
        time_proj_dim=8,
        global_states_input_dim=8,
        cross_attention_input_dim=4,
    )
    autoencoder = diffusers.AutoencoderOobleck(
        encoder_hidden_size=6,
        downsampling_ratios=[1, 2],
        decoder_channels=3,
        decoder_input_channels=3,
        channel_multiples=[1, 2],
        sampling_rate=4,
    )
    projection = diffusers.pipelines.stable_audio.StableAudioProjectionModel(
        text_encoder_dim=4, conditioning_dim=4, min_value=0, max_value=32
    )
    pipe = diffusers.StableAudioPipeline(autoencoder, None, projection, None, transformer, stock("stable-audio"))
    embeds = {
        "prompt_embeds": torch.randn(1, 5, 4),
        "negative_prompt_embeds": torch.randn(1, 5, 4),
        "attention_mask": torch.ones(1, 5, dtype=torch.long),
        "negative_attention_mask": torch.ones(1, 5, dtype=torch.long),
    }
    return Case(pipe, {**embeds, "output_type": "latent"}, (1, 3, 4), result="audios")


@seeded
def anyflow():
    transformer = diffusers.AnyFlowTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=32,
    )
    autoencoder = wan_vae()
    pipe = diffusers.AnyFlowPipeline(None, None, transformer, autoencoder, stock("anyflow"))
    embeds = {"prompt_embeds": torch.randn(1, 5, 8), "guidance_scale": 1.0}
    size = {"height": 32, "width": 32, "num_frames": 5}
    return Case(pipe, {**embeds, **size, "output_type": "latent"}, (1, 4, 2, 4, 4), result="frames")


def pixel_case(cls, scheduler):
    network = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        layers_per_block=1,
    )
    return Case(cls(network, scheduler), {"output_type": "np"}, (1, 8, 8, 3), "unet")


@seeded
def ddpm():
    return pixel_case(diffusers.DDPMPipeline, diffusers.DDPMScheduler())


@seeded
def ddim():
    return pixel_case(diffusers.DDIMPipeline, diffusers.DDIMScheduler())


@seeded
def stable_video():
    network = diffusers.UNetSpatioTemporalConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=4,
        projection_class_embeddings_input_dim=12,
        addition_time_embed_dim=4,
        layers_per_block=1,
    )
    autoencoder = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",) * 2, sample_size=16
    )
    vision = vision_config(224)
    extractor = CLIPImageProcessor(crop_size=224, size=224)
    encoder = CLIPVisionModelWithProjection(vision)
    pipe = diffusers.StableVideoDiffusionPipeline(autoencoder, encoder, network, stock("stable-video"), extractor)
    arguments = {"image": picture(16), "height": 16, "width": 16, "num_frames": 2, "output_type": "latent"}
    return Case(pipe, arguments, (1, 2, 4, 8, 8), "unet", "frames")


@seeded
def mochi():
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=8,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    autoencoder = diffusers.AutoencoderKLMochi(
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    pipe = diffusers.MochiPipeline(stock("mochi"), autoencoder, None, None, transformer)
    embeds = text(8, tokens=16, mask=torch.bool)
    size = {"height": 16, "width": 16, "num_frames": 7}
    return Case(pipe, {**embeds, **size, "output_type": "latent"}, (1, 12, 2, 2, 2), result="frames")


@seeded
def cogview4():
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        text_embed_dim=8,
        time_embed_dim=8,
        condition_dim=4,
        rope_axes_dim=(2, 2),
    )
    pipe = diffusers.CogView4Pipeline(None, None, vae(), transformer, stock("cogview4"))
    embeds = text(8, tokens=16)
    return Case(pipe, {**embeds, "output_type": "np", "height": 16, "width": 16}, (1, 16, 16, 3))


@seeded
def cosmos():
    transformer = diffusers.CosmosTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        text_embed_dim=8,
        adaln_lora_dim=4,
        max_size=(4, 8, 8),
        concat_padding_mask=False,  # resized by torchvision
    )
    autoencoder = diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
        latents_mean=[0.0] * 4 * 4,
        latents_std=[1.0] * 4 * 4,
    )
    pipe = diffusers.CosmosTextToWorldPipeline(
        None, None, transformer, autoencoder, stock("cosmos"), NoSafetyChecker()
    )
    embeds = text(8)
    size = {"height": 32, "width": 32, "num_frames": 9}
    return Case(pipe, {**embeds, **size, "output_type": "latent"}, (1, 4, 2, 4, 4), result="frames")


class NoSafetyChecker:
    """Stands where cosmos_guardrail's checker would: text and video are made of noise."""

    def to(self, *args, **kwargs):
        return self

    def check_text_safety(self, text):
        return True

    def check_video_safety(self, video):
        return video


@seeded
def kandinsky_prior():
    prior = diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=4, num_layers=1, embedding_dim=8, num_embeddings=5
    )
    torch.nn.init.normal_(prior.clip_std)
    words = text_config(max_position_embeddings=5)
    vision = vision_config(16)
    pipe = diffusers.KandinskyV22PriorPipeline(
        prior,
        CLIPVisionModelWithProjection(vision),
        CLIPTextModelWithProjection(words),
        WordCounter(),
        stock("kandinsky-2.2-prior"),
        CLIPImageProcessor(crop_size=16, size=16),
    )
    return Case(pipe, {"prompt": "a red square", "output_type": "pt"}, (1, 8), "prior", "image_embeds")


class WordCounter:
    """A tokenizer that needs no vocabulary: a word's token is its length."""

    model_max_length = 5

    def __call__(self, text, **kwargs):
        rows = [
            [min(len(word), 15) for word in each.split()][:5] for each in ([text] if isinstance(text, str) else text)
        ]
        ids = torch.tensor([row + [0] * (5 - len(row)) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})

    def batch_decode(self, ids):
        return [str(row.tolist()) for row in ids]


PIPELINES = [
    sd15,
    sd15_img2img,
    sd15_inpaint,
    sd21_v,
    sdxl,
    sdxl_img2img,
    sdxl_inpaint,
    playground,
    dit,
    pixart_alpha,
    pixart_sigma,
    sd3,
    sd3_img2img,
    sd3_inpaint,
    flux,
    flux_schnell,
    flux_img2img,
    flux_inpaint,
    chroma,
    sana,
    sana_sprint,
    aura_flow,
    lumina2,
    z_image,
    z_image_img2img,
    z_image_inpaint,
    qwen_image,
    ltx,
    ltx_condition,
    wan,
    hunyuan_video,
    cogvideox_2b,
    cogvideox_5b,
    kandinsky,
    stable_audio,
    lcm,
    anyflow,
    ddpm,
    ddim,
    stable_video,
    mochi,
    cogview4,
    cosmos,
    kandinsky_prior,
]
