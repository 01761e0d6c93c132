"""Every autoencoder of diffusers that takes images encodes and decodes them at the scale that its network sees."""

import diffusers
import pytest
import stock_pipelines
import torch
from diffusers import models
from torch.nn.functional import pixel_unshuffle

from diffusers_ucgm import UCGMPipeline, UCGMScheduler
from diffusers_ucgm.autoencoders import (
    decode_latents,
    denormalize_latents,
    encode_images,
    normalize_latents,
    spatial_factor,
    takes_unit_range,
)
from diffusers_ucgm.training.encoding import encode_pixels


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")

DOWN, UP = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
IMAGE = {"down_block_types": DOWN, "up_block_types": UP, "block_out_channels": (8, 16), "norm_num_groups": 4}
STATISTICS = {"latents_mean": [0.5, -0.5, 0.0, 1.0], "latents_std": [2.0, 0.5, 1.0, 4.0]}
LTX = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "spatio_temporal_scaling": (True, True, False, False),
    "patch_size": 1,
    "patch_size_t": 1,
}
HUNYUAN_15 = {
    "latent_channels": 4,
    "block_out_channels": (32, 32, 32),
    "layers_per_block": 1,
    "spatial_compression_ratio": 4,
    "temporal_compression_ratio": 2,
    "downsample_match_channel": False,
    "upsample_match_channel": False,
}
# Class: the arguments of a tiny one.
TINY = {
    "AutoencoderKL": {**IMAGE, "latent_channels": 4, "scaling_factor": 0.5, "shift_factor": 0.25},
    "AsymmetricAutoencoderKL": {
        "down_block_types": DOWN,
        "up_block_types": UP,
        "down_block_out_channels": (8, 16),
        "up_block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
        "scaling_factor": 0.5,
    },
    "VQModel": {**IMAGE, "latent_channels": 4, "num_vq_embeddings": 8, "scaling_factor": 0.5},
    "AutoencoderKLFlux2": {**IMAGE, "latent_channels": 4},
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 64),
        "down_block_types": DOWN,
        "latent_channels": 4,
        "scaling_factor": 0.5,
    },
    "ConsistencyDecoderVAE": {
        "encoder_block_out_channels": (8, 16),
        "encoder_down_block_types": DOWN,
        "encoder_norm_num_groups": 4,
        "encoder_layers_per_block": 1,
        "decoder_block_out_channels": (8, 16),
        "decoder_down_block_types": ("ResnetDownsampleBlock2D",) * 2,
        "decoder_up_block_types": ("ResnetUpsampleBlock2D",) * 2,
        "decoder_layers_per_block": 1,
        "decoder_norm_num_groups": 4,
        "scaling_factor": 0.5,
    },
    "AutoencoderRAE": {
        "encoder_type": "mae",
        "encoder_hidden_size": 64,
        "encoder_patch_size": 4,
        "encoder_num_hidden_layers": 1,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 8,
        "patch_size": 4,
        "encoder_input_size": 16,
        "scaling_factor": 0.5,
    },
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "spatial_compression_ratio": 2,
        "sample_size": 16,
        "scaling_factor": 0.5,
        "downsample_match_channel": False,
        "upsample_match_channel": False,
    },
    "AutoencoderKLKVAE": {
        "channels": 32,
        "num_enc_blocks": 1,
        "num_dec_blocks": 1,
        "z_channels": 4,
        "ch_mult": (1, 1),
    },
    "AutoencoderKLHunyuanImageRefiner": HUNYUAN_15,
    "AutoencoderKLHunyuanVideo15": HUNYUAN_15,
    "AutoencoderKLKVAEVideo": {
        "ch": 32,
        "ch_mult": (1, 1, 1),
        "num_res_blocks": 1,
        "z_channels": 4,
        "temporal_compress_times": 2,
    },
    "AutoencoderKLCogVideoX": {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 1, "norm_num_groups": 2},
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "attention_resolutions": (8,),
        "resolution": 64,
        "num_layers": 1,
        **STATISTICS,
    },
    "AutoencoderKLHunyuanVideo": {
        "latent_channels": 4,
        "block_out_channels": (8, 8, 8, 8),
        "layers_per_block": 1,
        "norm_num_groups": 4,
    },
    "AutoencoderKLLTXVideo": {
        **LTX,
        "decoder_block_out_channels": (8, 8, 8, 8),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
    },
    "AutoencoderKLLTX2Video": {
        **LTX,
        "spatio_temporal_scaling": (True, True, True, True),
        "decoder_block_out_channels": (16, 32, 64),
        "spatial_compression_ratio": 8,
        "decoder_layers_per_block": (1, 1, 1, 1),
    },
    "AutoencoderKLMagvit": {
        "latent_channels": 4,
        "block_out_channels": [8, 8],
        "down_block_types": ["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"],
        "up_block_types": ["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"],
        "layers_per_block": 1,
        "norm_num_groups": 2,
    },
    "AutoencoderKLMochi": {
        "encoder_block_out_channels": (32, 32, 32, 32),
        "decoder_block_out_channels": (32, 32, 32, 32),
        "layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLMiniMaxH3": {
        "latent_channels": 4,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "spatial_downsample_factors": (2, 1),
        "temporal_downsample_factors": (1, 1),
        "decoder_num_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_attention_head_dim": 16,
        "clip_length": 1,
        "token_drop": 0,
        **STATISTICS,
    },
    "AutoencoderKLQwenImage": {
        "base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        **STATISTICS,
    },
    "AutoencoderKLQwenImage21": {
        "base_dim": 8,
        "decoder_base_dim": 8,
        "z_dim": 4,
        "dim_mult": [1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False],
        "in_channels": 3,
        "out_channels": 3,
        "scale_factor_spatial": 2,
        **STATISTICS,
    },
    "AutoencoderKLWan": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        **STATISTICS,
    },
    "AutoencoderVidTok": {"ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1, "tempo_ds": [], "tempo_us": []},
    "Kandinsky6SRVAE": {
        "latent_channels": 4,
        "encoder_block_out_channels": (16, 16, 16),
        "decoder_block_out_channels": (16, 16, 16),
        "layers_per_block": 1,
    },
}
SOUND = "sound"
# Those that no image goes through, and why.
WITHOUT_IMAGES = {
    "AutoencoderKLKVAEAudio": SOUND,
    "AutoencoderKLLTX2Audio": SOUND,
    "AutoencoderKLMiniMaxH3Audio": SOUND,
    "AutoencoderOobleck": SOUND,
    "AutoencoderSAME": SOUND,
    "Cosmos3AVAEAudioTokenizer": SOUND,
    "LongCatAudioDiTVae": SOUND,
    "MMAudioVAE": SOUND,
    "MMAudioVocoder": SOUND,
    "MiniMaxMusic3Vocoder": SOUND,
    "AutoencoderKLAllegro": "clips of 24 frames in tiles alone",
    "RFD4ProteinaAutoencoder": "proteins",
    "LTX2VideoDiffusionDecoderModel": "a decoder alone, for latents of `AutoencoderKLLTX2Video`",
}


def tiny(name):
    torch.manual_seed(0)
    if name == "AutoencoderDC":
        return stock_pipelines.dc_ae().eval()
    return getattr(models.autoencoders, name)(**TINY[name]).eval()


# Some came after the oldest diffusers that this package works with.
IMAGES = [*(name for name in TINY if hasattr(models.autoencoders, name)), "AutoencoderDC"]


def test_every_class_of_diffusers_is_known_here():
    classes = {name for name, value in vars(models.autoencoders).items() if hasattr(value, "from_config")}
    assert classes <= set(IMAGES) | set(WITHOUT_IMAGES)


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_encoded_and_decoded(name):
    vae = tiny(name)
    pixels = torch.rand(2, 3, 32, 32) * 2.0 - 1.0
    latents, again = (encode_images(vae, pixels, torch.Generator().manual_seed(0)) for _ in range(2))
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()
    assert torch.equal(latents, again)
    assert len(latents) == 2
    images, same = (decode_latents(vae, latents, torch.Generator().manual_seed(0)) for _ in range(2))
    assert images.isfinite().all()
    assert torch.equal(images, same)
    if name != "AutoencoderRAE":  # which brings every image to its own size
        assert 32 // latents.shape[-1] == spatial_factor(vae)
        assert images.shape[-2:] == (32, 32)


@pytest.mark.parametrize("name", IMAGES)
def test_the_scale_of_latents_is_undone_before_they_are_decoded(name):
    vae = tiny(name)
    pixels = torch.rand(1, 3, 32, 32) * 2.0 - 1.0
    latents = encode_images(vae, pixels, posterior_mean=True)
    raw = denormalize_latents(vae, latents)
    torch.testing.assert_close(normalize_latents(vae, raw), latents)
    with torch.no_grad():
        encoded = vae.encode(pixels.unsqueeze(2) if latents.ndim == 5 else pixels)
    found = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[next(iter(encoded))]
    torch.testing.assert_close(raw, found, rtol=1e-4, atol=1e-5)


def test_flux_2_sees_patches_normalised_by_the_batch_norm():
    vae = tiny("AutoencoderKLFlux2")
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2.0)
    z = torch.randn(2, 4, 6, 6)
    patches = diffusers.Flux2Pipeline._patchify_latents(z)
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    expected = (patches - vae.bn.running_mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalize_latents(vae, z), expected)
    torch.testing.assert_close(pixel_unshuffle(z, 2), patches)


def test_latents_that_were_scaled_inside_are_not_scaled_again():
    settings = {**TINY["AutoencoderRAE"], "latents_mean": 3.0, "latents_std": 2.0}
    vae = diffusers.AutoencoderRAE(**settings).eval()
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(encode_images(vae, pixels), vae.encode(pixels).latent)


@pytest.mark.parametrize("name", ["AutoencoderTiny", "VQModel", "ConsistencyDecoderVAE", "AutoencoderRAE"])
def test_a_pipeline_encodes_and_draws_with_it(name):
    vae = tiny(name)
    latents = encode_images(vae, torch.zeros(1, 3, 16, 16))
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=latents.shape[1],
        num_layers=1,
        sample_size=latents.shape[-1],
        patch_size=2,
        num_embeds_ada_norm=3,
        norm_num_groups=1,
    )
    pipe = UCGMPipeline(network.eval(), vae, UCGMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pixels = torch.rand(2, 3, 16, 16) * 2.0 - 1.0
    own = (pixels + 1.0) / 2.0 if takes_unit_range(vae) else pixels
    expected = encode_images(vae, own, torch.Generator().manual_seed(0))
    assert torch.equal(encode_pixels(pipe, pixels, torch.Generator().manual_seed(0)), expected)
    generators = [torch.Generator().manual_seed(each) for each in (1, 2)]
    both = pipe([0, 1], num_inference_steps=2, generator=generators, output_type="pt").images
    second = pipe([1], num_inference_steps=2, generator=[torch.Generator().manual_seed(2)], output_type="pt").images
    assert both.shape == (2, 3, 16, 16)
    torch.testing.assert_close(both[1:], second, rtol=1e-3, atol=1e-4)


def test_an_autoencoder_of_the_unit_range_gives_its_own_pixels():
    vae = tiny("AutoencoderRAE")
    latents = encode_images(vae, torch.rand(1, 3, 16, 16))
    network = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=64, num_layers=1, sample_size=4, num_embeds_ada_norm=3
    )
    own = decode_latents(vae, latents).clamp(0.0, 1.0)
    for do_normalize in (True, False):
        pipe = UCGMPipeline(network, vae, UCGMScheduler(), do_normalize=do_normalize)
        torch.testing.assert_close(pipe.decode(latents, "pt"), own)


def test_what_encodes_no_images_is_named():
    class Decoder(torch.nn.Linear):
        config = None

    with pytest.raises(ValueError, match="`vae` must encode images, got Decoder, which has no `encode`"):
        encode_images(Decoder(1, 1), torch.zeros(1, 3, 8, 8))
