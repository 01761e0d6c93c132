"""Every transformer of the installed diffusers, tiny: how it is built, and what its forward takes.

A shape in `inputs` stands for random numbers of that shape for every sample; a function makes something else for a
batch. Models whose stock pipeline is in `stock_pipelines` are built by it, and called as it calls them.
"""

from dataclasses import dataclass, field
from typing import Any

import diffusers
import stock_pipelines
import torch
from torch import nn


@dataclass(frozen=True)
class Tiny:
    """`latents` is the shape of one noisy sample; `joined` are channels of a condition beside it in the same input."""

    config: dict[str, Any]
    latents: tuple[int, ...]
    inputs: dict[str, Any] = field(default_factory=dict)
    time_scale: float = 1000.0
    joined: tuple[int, ...] = ()


def whole(*shape, high=8):
    """Integers from 0 to `high - 1`."""
    return lambda batch: torch.randint(0, high, (batch, *shape))


def ones(*shape, dtype=torch.float32):
    return lambda batch: torch.ones(batch, *shape, dtype=dtype)


def shared(*shape, dtype=torch.float32):
    """One table for all samples, as position ids are."""
    return lambda batch: torch.randint(0, 4, shape).to(dtype)


def value(constant):
    return lambda batch: constant


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 8,
    "freq_dim": 16,
    "ffn_dim": 16,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
TOKENS = {"img_ids": shared(16, 3), "txt_ids": shared(6, 3), "encoder_hidden_states": (6, 8)}
ROPE_16 = {"axes_dims_rope": (4, 4, 8), "joint_attention_dim": 8, "num_layers": 1, "num_single_layers": 1, **HEADS}

TINY = {
    "AceStepTransformer1DModel": Tiny(
        {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "in_channels": 12,
            "audio_acoustic_hidden_dim": 4,
            "patch_size": 2,
            "sliding_window": 4,
        },
        (8, 4),
        {"timestep_r": ones(), "encoder_hidden_states": (6, 16), "context_latents": (8, 8)},
        1.0,
    ),
    "AllegroTransformer3DModel": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "cross_attention_dim": 24,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 4,
            "caption_channels": 8,
        },
        (4, 2, 8, 8),
        {"encoder_hidden_states": (6, 8)},
    ),
    "AnyFlowTransformer3DModel": Tiny(WAN, (4, 2, 8, 8), {"encoder_hidden_states": (6, 8)}),
    "BriaTransformer2DModel": Tiny(
        {**ROPE_16, "patch_size": 1, "in_channels": 4, "pooled_projection_dim": None}, (16, 4), TOKENS
    ),
    "BriaFiboTransformer2DModel": Tiny(
        {**ROPE_16, "in_channels": 4, "text_encoder_dim": 4, "pooled_projection_dim": None},
        (16, 4),
        {**TOKENS, "text_encoder_layers": lambda batch: [torch.randn(batch, 6, 4) for _ in range(2)]},
    ),
    "ChronoEditTransformer3DModel": Tiny(WAN, (4, 2, 8, 8), {"encoder_hidden_states": (6, 8)}),
    "CogView3PlusTransformer2DModel": Tiny(
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 2,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        (4, 8, 8),
        {
            "encoder_hidden_states": (6, 8),
            "original_size": ones(2),
            "target_size": ones(2),
            "crop_coords": ones(2),
        },
    ),
    "ConsisIDTransformer3DModel": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 4,
            "text_embed_dim": 8,
            "num_layers": 1,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
            "is_train_face": False,
        },
        (2, 4, 8, 8),
        {"encoder_hidden_states": (6, 8)},
    ),
    "EasyAnimateTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "mmdit_layers": 1,
            "num_layers": 1,
            "sample_height": 16,
            "sample_width": 16,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
        },
        (4, 2, 8, 8),
        {"encoder_hidden_states": (6, 8)},
    ),
    "ErnieImageTransformer2DModel": Tiny(
        {
            "hidden_size": 16,
            "num_attention_heads": 1,
            "num_layers": 1,
            "ffn_hidden_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 1,
            "text_in_dim": 8,
            "rope_axes_dim": (8, 4, 4),
        },
        (4, 8, 8),
        {"text_bth": (6, 8), "text_lens": ones(dtype=torch.long)},
    ),
    "Flux2Transformer2DModel": Tiny(
        {**ROPE_16, "patch_size": 1, "in_channels": 4, "axes_dims_rope": (4, 4, 4, 4)},
        (16, 4),
        {"img_ids": shared(16, 4), "txt_ids": shared(6, 4), "encoder_hidden_states": (6, 8), "guidance": ones()},
        1.0,
    ),
    "GlmImageTransformer2DModel": Tiny(
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "text_embed_dim": 8,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "prior_vq_quantizer_codebook_size": 8,
        },
        (4, 8, 8),
        {
            "encoder_hidden_states": (6, 8),
            "prior_token_id": whole(16),
            "prior_token_drop": lambda batch: torch.zeros(batch, dtype=torch.bool),
            "target_size": ones(2),
            "crop_coords": ones(2),
        },
    ),
    "HeliosTransformer3DModel": Tiny(
        {**{key: WAN[key] for key in WAN if key != "rope_max_seq_len"}, "rope_dim": (4, 4, 4)},
        (4, 2, 16, 16),
        {
            "encoder_hidden_states": (6, 8),
            "indices_hidden_states": ones(2),
            "indices_latents_history_short": ones(1),
            "indices_latents_history_mid": ones(1),
            "indices_latents_history_long": ones(4),
            "latents_history_short": (4, 1, 16, 16),
            "latents_history_mid": (4, 1, 16, 16),
            "latents_history_long": (4, 4, 16, 16),
        },
    ),
    "HiDreamImageTransformer2DModel": Tiny(
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_channels": [8, 4],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "num_activated_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": (0, 1),
            "force_inference_output": True,
        },
        (4, 8, 8),
        {
            "encoder_hidden_states_t5": (6, 8),
            "encoder_hidden_states_llama3": lambda batch: torch.randn(2, batch, 6, 4),
            "pooled_embeds": (8,),
        },
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 8,
            "text_embed_2_dim": 4,
            "image_embed_dim": 4,
            "rope_axes_dim": (2, 2, 4),
            "target_size": 8,
        },
        (4, 1, 8, 8),
        {
            "encoder_hidden_states": (6, 8),
            "encoder_attention_mask": ones(6),
            "encoder_hidden_states_2": (4, 4),
            "encoder_attention_mask_2": ones(4),
            "image_embeds": (3, 4),
        },
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 10,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 8,
            "pooled_projection_dim": 8,
            "rope_axes_dim": (2, 4, 4),
            "image_proj_dim": 8,
            "has_image_proj": True,
            "has_clean_x_embedder": True,
        },
        (4, 3, 4, 4),
        {
            "encoder_hidden_states": (6, 8),
            "encoder_attention_mask": ones(6),
            "pooled_projections": (8,),
            "guidance": ones(),
            "image_embeds": (6, 8),
            "indices_latents": value(torch.arange(3.0)),
            "latents_clean": (4, 2, 4, 4),
            "indices_latents_clean": value(torch.arange(2.0)),
            "latents_history_2x": (4, 2, 4, 4),
            "indices_latents_history_2x": value(torch.arange(2.0)),
            "latents_history_4x": (4, 8, 4, 4),
            "indices_latents_history_4x": value(torch.arange(8.0)),
        },
    ),
    "Ideogram4Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "adaln_dim": 8,
            "llm_features_dim": 8,
            "mrope_section": (2, 1, 1),
        },
        (8, 4),
        {
            "encoder_hidden_states": (8, 8),
            "position_ids": whole(8, 3),
            "segment_ids": lambda batch: torch.zeros(batch, 8, dtype=torch.long),
            "indicator": lambda batch: torch.tensor([[1] * 4 + [2] * 4] * batch),
        },
        1.0,
    ),
    "JoyImageEditTransformer3DModel": Tiny(
        {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 8,
            "num_layers": 1,
            "rope_dim_list": [4, 6, 6],
        },
        (4, 1, 4, 4),
        {"encoder_hidden_states": (6, 8)},
    ),
    "JoyImageEditPlusTransformer3DModel": Tiny(
        {
            "patch_size": [1, 2, 2],
            "in_channels": 4,
            "hidden_size": 32,
            "num_attention_heads": 2,
            "text_dim": 8,
            "num_layers": 1,
            "rope_dim_list": [4, 6, 6],
        },
        (2, 4, 1, 2, 2),
        {"encoder_hidden_states": (6, 8), "shape_list": lambda batch: [[(1, 1, 1), (1, 1, 1)]] * batch},
    ),
    "Krea2Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 8,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 1,
            "text_intermediate_size": 8,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 2, 2),
        },
        (4, 4),
        {
            "encoder_hidden_states": (4, 2, 8),
            "position_ids": shared(8, 3),
            "encoder_attention_mask": ones(4, dtype=torch.bool),
        },
        1.0,
    ),
    "LTX2VideoTransformer3DModel": Tiny(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 4,
            "audio_cross_attention_dim": 8,
            "num_layers": 1,
            "caption_channels": 8,
        },
        (32, 4),
        {
            "audio_hidden_states": (5, 4),
            "encoder_hidden_states": (6, 8),
            "audio_encoder_hidden_states": (6, 8),
            "encoder_attention_mask": ones(6),
            "num_frames": value(2),
            "height": value(4),
            "width": value(4),
            "audio_num_frames": value(5),
        },
    ),
    "LatteTransformer3DModel": Tiny(
        {
            "sample_size": 8,
            "num_layers": 1,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "caption_channels": 8,
            "in_channels": 4,
            "cross_attention_dim": 8,
            "out_channels": 8,
            "attention_bias": True,
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "video_length": 2,
        },
        (4, 2, 8, 8),
        {"encoder_hidden_states": (6, 8)},
    ),
    "LongCatImageTransformer2DModel": Tiny(
        {**ROPE_16, "patch_size": 1, "in_channels": 4, "pooled_projection_dim": 8}, (16, 4), TOKENS, 1.0
    ),
    "MiniMaxH3Transformer3DModel": Tiny(
        {
            **HEADS,
            "hidden_size": 24,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "ffn_dim": 16,
            "in_channels": 4,
            "audio_in_channels": 6,
            "text_dim": 8,
            "freq_dim": 8,
            "time_embed_hidden_dim": 16,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
        (8, 16),
        {
            "audio_hidden_states": (6, 6),
            "encoder_hidden_states": (4, 8),
            "timestep_indices": lambda batch: torch.zeros(18, dtype=torch.long),
            "token_tags": lambda batch: torch.tensor([0] * 8 + [1] * 6 + [2] * 4),
            "position_ids": shared(18, 3),
            "video_indices": lambda batch: torch.arange(8),
            "audio_indices": lambda batch: torch.arange(8, 14),
            "text_indices": lambda batch: torch.arange(14, 18),
        },
    ),
    "MiniMaxMusic3Transformer1DModel": Tiny(
        {
            "in_channels": 4,
            "condition_dim": 8,
            "num_layers": 1,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "ff_inner_dim": 16,
            "rotary_dim": 4,
            "fourier_embedding_dim": 8,
        },
        (4, 12),
        {"encoder_hidden_states": (12, 8)},
        1.0,
    ),
    "MotifVideoTransformer3DModel": Tiny(
        {
            "in_channels": 9,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_decoder_layers": 0,
            "patch_size": 1,
            "text_embed_dim": 8,
            "image_embed_dim": None,
            "rope_axes_dim": (4, 4, 4),
        },
        (4, 2, 4, 4),
        {"encoder_hidden_states": (6, 8)},
        joined=(5, 2, 4, 4),
    ),
    "NucleusMoEImageTransformer2DModel": Tiny(
        {
            "patch_size": 2,
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 8,
            "axes_dims_rope": (8, 4, 4),
            "moe_enabled": False,
            "capacity_factors": [8.0],
        },
        (16, 16),
        {
            "encoder_hidden_states": (6, 8),
            "encoder_hidden_states_mask": ones(6, dtype=torch.long),
            "img_shapes": lambda batch: [(1, 4, 4)] * batch,
        },
        1.0,
    ),
    "OmniGenTransformer2DModel": Tiny(
        {
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
            "num_layers": 1,
            "pad_token_id": 0,
            "vocab_size": 32,
            "in_channels": 4,
            "time_step_dim": 4,
            "rope_scaling": {"long_factor": [1, 1, 1, 1], "short_factor": [1, 1, 1, 1]},
        },
        (4, 8, 8),
        {
            "input_ids": whole(6, high=32),
            "input_img_latents": value([]),
            "input_image_sizes": value({}),
            "attention_mask": ones(23, 23),
            "position_ids": lambda batch: torch.arange(23).repeat(batch, 1),
        },
        1.0,
    ),
    "OvisImageTransformer2DModel": Tiny(
        {**ROPE_16, "patch_size": 1, "in_channels": 4, "out_channels": 4}, (16, 4), TOKENS, 1.0
    ),
    "PRXTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "patch_size": 2,
            "context_in_dim": 8,
            "hidden_size": 16,
            "mlp_ratio": 2.0,
            "num_heads": 2,
            "depth": 1,
            "axes_dim": [4, 4],
        },
        (4, 8, 8),
        {"encoder_hidden_states": (6, 8)},
        1.0,
    ),
    "SanaVideoTransformer3DModel": Tiny(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "num_layers": 1,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 8,
            "sample_size": 8,
            "rope_max_seq_len": 32,
        },
        (4, 2, 8, 8),
        {"encoder_hidden_states": (6, 8)},
    ),
    "SkyReelsV2Transformer3DModel": Tiny(WAN, (4, 2, 8, 8), {"encoder_hidden_states": (6, 8)}),
    "Transformer2DModel": Tiny(
        {
            "sample_size": 8,
            "num_layers": 1,
            "patch_size": 2,
            "attention_head_dim": 4,
            "num_attention_heads": 2,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": None,
            "num_embeds_ada_norm": 10,
            "norm_type": "ada_norm_zero",
            "norm_elementwise_affine": False,
        },
        (4, 8, 8),
        {"class_labels": whole()},
    ),
    "WanAnimateTransformer3DModel": Tiny(
        {
            **WAN,
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 8,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 8,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        (4, 3, 8, 8),
        {
            "encoder_hidden_states": (6, 8),
            "encoder_hidden_states_image": (6, 8),
            "pose_hidden_states": (4, 2, 8, 8),
            "face_pixel_values": (3, 5, 16, 16),
        },
        joined=(8, 3, 8, 8),
    ),
    "BriaFibo2Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "patch_size": 2,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "cap_feat_dim": 8,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 2,
            "max_num_gist_tokens": 4,
            "gist_step": 1,
            "gist_min_text_len": 2,
            "gist_max_text_len": 8,
            "axes_dims": (8, 4, 4),
            "axes_lens": (64, 32, 32),
        },
        (4, 8, 8),
        {"encoder_hidden_states": (2, 6, 8), "encoder_attention_mask": ones(6, dtype=torch.bool)},
        1.0,
    ),
    "DreamLiteTransformer2DModel": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 8,
            "num_layers": 1,
            "norm_num_groups": 4,
            "cross_attention_dim": 8,
        },
        (8, 4, 4),
        {"encoder_hidden_states": (6, 8)},
    ),
    "Flux3Transformer2DModel": Tiny(
        {**ROPE_16, "in_channels": 4, "cond_in_channels": 4, "axes_dims_rope": (4, 4, 4, 4)},
        (16, 4),
        {"img_ids": shared(16, 4), "txt_ids": shared(6, 4), "encoder_hidden_states": (6, 8)},
        1.0,
    ),
    "HunyuanImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "num_single_layers": 1,
            "num_refiner_layers": 1,
            "text_embed_dim": 8,
            "rope_axes_dim": (8, 8),
        },
        (4, 4, 4),
        {"encoder_hidden_states": (6, 8), "encoder_attention_mask": ones(6)},
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        {
            "in_text_dim": 8,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (4, 6, 6),
        },
        (1, 4, 4, 4),
        {
            "encoder_hidden_states": (6, 8),
            "pooled_projections": (8,),
            "visual_rope_pos": value([torch.arange(1), torch.arange(2), torch.arange(2)]),
            "text_rope_pos": value(torch.arange(6)),
        },
    ),
    "Kandinsky6Transformer3DModel": Tiny(
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 8,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 32,
            "ff_dim": 32,
            "num_text_blocks": 1,
            "num_visual_blocks": 1,
            "axes_dims": (4, 6, 6),
            "visual_cond": False,
        },
        (1, 4, 4, 4),
        {"encoder_hidden_states": (6, 8), "pooled_projections": (8,)},
    ),
    "QwenImage21Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 1,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "context_in_dim": 8,
            "axes_dims_rope": (4, 6, 6),
        },
        (16, 4),
        {
            "encoder_hidden_states": (6, 8),
            "img_shapes": lambda batch: [[(1, 4, 4)]] * batch,
            "img_mask": lambda batch: torch.tensor([[False] * 6 + [True] * 4] * batch),
        },
        1.0,
    ),
    "WanVACETransformer3DModel": Tiny(
        {**WAN, "vace_layers": [0], "vace_in_channels": 12},
        (4, 2, 8, 8),
        {"encoder_hidden_states": (6, 8), "control_hidden_states": (12, 2, 8, 8)},
    ),
}
# What cannot be trained as it is, and why.
FAILURES = {
    "AnyFlowFARTransformer3DModel": "needs two times for every frame, the start and the end of a step",
    "Kandinsky6SRTransformer3DModel": "returns images of another size than its input",
    "SanaWMTransformer3DModel": "needs the camera's path in several tables",
    "SanaWMLTX2RefinerTransformer3DModel": "needs a rotary table that its own pipeline computes",
    "WanAnimate2Transformer3DModel": "works on lists with a cache between two kinds of calls",
    "TransformerTemporalModel": "is a block of other networks and takes no time",
}
# Built by their stock pipelines; the test's own table says how the named adapters call them.
FROM_PIPELINES = {
    "ChromaTransformer2DModel": "chroma",
    "HunyuanVideoTransformer3DModel": "hunyuan_video",
    "MochiTransformer3DModel": "mochi",
    "CogView4Transformer2DModel": "cogview4",
    "CosmosTransformer3DModel": "cosmos",
    "AuraFlowTransformer2DModel": "aura_flow",
    "CogVideoXTransformer3DModel": "cogvideox_2b",
    "DiTTransformer2DModel": "dit",
    "FluxTransformer2DModel": "flux",
    "LTXVideoTransformer3DModel": "ltx",
    "Lumina2Transformer2DModel": "lumina2",
    "PixArtTransformer2DModel": "pixart_alpha",
    "QwenImageTransformer2DModel": "qwen_image",
    "SD3Transformer2DModel": "sd3",
    "SanaTransformer2DModel": "sana",
    "WanTransformer3DModel": "wan",
    "ZImageTransformer2DModel": "z_image",
}


def filled(network: nn.Module) -> nn.Module:
    """Random numbers everywhere: in gates that start closed, and where the model leaves memory as it finds it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(torch.nan_to_num(parameter, 0.0, 0.0, 0.0).clamp(-3.0, 3.0) + 0.05 * noise)
    return network.eval()


def build(name: str, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return filled(getattr(diffusers, name)(**TINY[name].config, **changes))


def inputs(name: str, batch: int) -> dict[str, Any]:
    torch.manual_seed(1)
    return {
        key: torch.randn(batch, *made) if isinstance(made, tuple) else made(batch)
        for key, made in TINY[name].inputs.items()
    }


def recorded(name: str) -> tuple[nn.Module, torch.Tensor, dict[str, Any]]:
    """A stock pipeline's network, and the sample and keywords of its first call."""
    case = getattr(stock_pipelines, FROM_PIPELINES[name])()
    network = filled(getattr(case.pipe, case.denoiser))
    calls = []

    def note(_module, args, kwargs):
        calls.append((args, kwargs))

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    case(2)
    hook.remove()
    args, kwargs = calls[0]
    given = dict(kwargs)
    sample = args[0] if args else given.pop("hidden_states")
    for key in ("timestep", "return_dict"):
        given.pop(key, None)
    return network, sample, given
