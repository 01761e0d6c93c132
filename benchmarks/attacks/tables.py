"""What the settings of the Python interface may be, and values of arguments that no table of kinds describes."""

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffusers_ucgm import TRANSPORTS, UCGMLoss, UCGMScheduler, UCGMTrainingConfig

from .kinds import Anything, Choice, Either, Kind, Maybe, Number, Several, Text, Truth


Fields = Mapping[str, Kind]
POSITIVE, NOT_NEGATIVE, SHARE = Number(0.0, is_open=(True, False)), Number(0.0), Number(0.0, 1.0)
COUNT, INDEX, NUMBER = Number(1, is_whole=True), Number(0, is_whole=True), Number()
SEED = Number(is_whole=True)
PREDICTION = Choice(("epsilon", "sample", "v_prediction", "velocity", "trigflow"))
WARP = Several(Number(0.0, is_open=(True, False)), (1.17, 0.8, 1.1))
SCHEDULER: Fields = {
    "num_train_timesteps": COUNT,
    "transport": Choice((*TRANSPORTS, "discrete_beta", "sigma_space", "scm")),
    "prediction_type": Maybe(Anything(("eps", "Epsilon", "v-prediction", 0, True, ["epsilon"], b"epsilon", {}, 1.5))),
    "solver_order": Choice((1, 2)),
    "solver_type": Choice(("velocity", "data", "noise", "multistep")),
    "extrapolation_ratio": Either((NOT_NEGATIVE, Choice(("auto", "adaptive")))),
    "stochasticity": Either((SHARE, Choice(("auto",)))),
    "time_warp": Either((WARP, Choice(("auto",)))),
    "time_gaps": Several(SHARE, (0.001, 0.001), total=1.0),
    "shift": POSITIVE,
    "use_dynamic_shifting": Truth(),
    "time_shift_type": Choice(("exponential", "linear")),
    "shift_terminal": Maybe(Number(0.0, 1.0, (False, True))),
    "use_karras_sigmas": Maybe(Truth()),
    "use_exponential_sigmas": Maybe(Truth()),
    "use_beta_sigmas": Maybe(Truth()),
    "beta_start": Number(0.0, 1.0),
    "beta_end": Number(0.0, 1.0),
    "beta_schedule": Choice(("linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2", "exp", "laplace")),
    "trained_betas": Maybe(Several(SHARE, (0.01,) * 1000)),
    "rescale_betas_zero_snr": Truth(),
    "snr_shift_scale": POSITIVE,
    "sigma_min": Maybe(POSITIVE),
    "sigma_max": Maybe(POSITIVE),
    "sigma_data": POSITIVE,
    "sigma_schedule": Choice(("karras", "exponential")),
    "rho": POSITIVE,
    "sigma_embedding": Choice(("log", "atan")),
    "clip_sample": Truth(),
    "clip_sample_range": POSITIVE,
    "thresholding": Truth(),
    "dynamic_thresholding_ratio": SHARE,
    "sample_max_value": POSITIVE,
    "clips_estimates": Truth(),
    "divides_samples": Truth(),
    "ends_at_first_step": Truth(),
    "original_inference_steps": Maybe(COUNT),
    "round_timesteps": Truth(),
    "extrapolation_order": Choice((2, 3)),
    "target_time": Choice(("auto", "next", "end", "same")),
    "fitted_solvers": Maybe(
        Anything(
            (5, "x", True, [5], ["x"], {"timesteps": [1.0], "weights": [[1.0, 0.0]]}, [{}], [{"timesteps": [1000.0]}])
            + ([{"timesteps": [1000.0], "weights": [["a", 0.0]]}], [{"timesteps": [1000.0], "weights": []}])
            + ([{"timesteps": [math.nan], "weights": [[1.0, 0.0]]}], [{"timesteps": [], "weights": []}])
            + ([{"timesteps": [1000.0], "weights": [[math.inf, 0.0]]}], [{"timesteps": 1, "weights": 1}])
        )
    ),
}
# On which path a setting has an effect; elsewhere it is "linear".
PATHS = {
    **dict.fromkeys(("beta_start", "beta_end", "beta_schedule", "trained_betas"), "discrete_beta"),
    **dict.fromkeys(("rescale_betas_zero_snr", "snr_shift_scale", "divides_samples"), "discrete_beta"),
    **dict.fromkeys(("ends_at_first_step", "original_inference_steps", "round_timesteps"), "discrete_beta"),
    **dict.fromkeys(("sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho"), "sigma_space"),
    "sigma_embedding": "sigma_space",
}
# What must be on for a setting to have an effect.
COMPANIONS: Mapping[str, dict[str, Any]] = {
    "clip_sample_range": {"clip_sample": True},
    "dynamic_thresholding_ratio": {"thresholding": True},
    "sample_max_value": {"thresholding": True},
    "extrapolation_order": {"extrapolation_ratio": "auto"},
}
CONTRADICTIONS: Sequence[tuple[tuple[str, ...], dict[str, Any]]] = (
    (("use_karras_sigmas",), {"use_karras_sigmas": True, "use_beta_sigmas": True}),
    (("use_karras_sigmas",), {"use_karras_sigmas": True, "use_exponential_sigmas": True}),
    (("sigma_min", "sigma_max"), {"transport": "sigma_space", "sigma_min": 9.0, "sigma_max": 1.0}),
    (("sigma_min", "sigma_max"), {"transport": "sigma_space", "sigma_min": None}),
    (("solver_type",), {"solver_order": 2, "solver_type": "noise", "extrapolation_ratio": "auto"}),
    (("solver_type",), {"solver_order": 2, "solver_type": "noise", "time_gaps": (0.0, 0.001)}),
    (("trained_betas",), {"transport": "discrete_beta", "trained_betas": [0.01] * 7}),
    (("prediction_type",), {"transport": "scm", "prediction_type": "epsilon"}),
)
# Settings that mean the same to many of diffusers' schedulers, under diffusers' names.
STOCK: Fields = {
    **{name: SCHEDULER[name] for name in SCHEDULER if name not in ("transport", "solver_order", "solver_type")},
    "flow_shift": POSITIVE,
    "timestep_spacing": Choice(("linspace", "leading", "trailing")),
    "steps_offset": INDEX,
    "final_sigmas_type": Choice(("zero", "sigma_min")),
    "set_alpha_to_one": Truth(),
    "use_flow_sigmas": Maybe(Truth()),
    "invert_sigmas": Truth(),
    "stochastic_sampling": Truth(),
}
SET_TIMESTEPS: Fields = {
    "num_inference_steps": COUNT,
    "timesteps": Maybe(Several(Number(0.0, 1000.0), (900.0, 500.0, 100.0), is_fixed=False, order="falling")),
    "sigmas": Maybe(Several(SHARE, (0.9, 0.5, 0.1), is_fixed=False, order="falling")),
    "mu": Maybe(NUMBER),
    "original_inference_steps": Maybe(COUNT),
    "strength": Maybe(Number(0.0, 1.0, (True, False))),
    "max_timesteps": Maybe(Number(0.0, math.pi / 2, (True, False))),
    "device": Maybe(Anything(("banana", "cuda:99", 1.5, [], {}, b"cpu", -7))),
}
SAMPLE = torch.linspace(-1.0, 1.0, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
NO_TENSORS = (None, "x", 1.0, [1.0], {}, b"x", np.ones((2, 3, 4, 4)), object(), True)
STEP: Fields = {
    "model_output": Anything(
        (*NO_TENSORS, SAMPLE[:1, :1], SAMPLE[:, :2], SAMPLE[..., :3], SAMPLE[0, 0], torch.ones(()))
    ),
    "timestep": Anything((0, 1, 2, 3, "0", None, [], {}, math.nan, -5.0, 5000.0, math.inf, torch.empty(0), b"0", 1j)),
    "sample": Anything((*NO_TENSORS, SAMPLE[:1], SAMPLE[..., :3], SAMPLE.long(), torch.ones(()), SAMPLE[0, 0])),
    "generator": Anything(("seed", 5, 1.5, {}, [torch.Generator()] * 3, [None, "a"], b"0", True, object())),
    "eta": Anything((0.5, 1, "0", math.nan, [0], {}, "banana", b"0", math.inf, -1.0)),
    "pred_original_sample": Anything((*NO_TENSORS[1:], SAMPLE[..., :3])),
    "per_token_timesteps": Anything((*NO_TENSORS[1:], torch.ones(7), torch.full((2, 3), math.nan))),
}
NOISING: Fields = {
    "original_samples": Anything((*NO_TENSORS, SAMPLE.long(), torch.ones(()))),
    "noise": Anything((*NO_TENSORS[1:], SAMPLE[..., :3], SAMPLE[:, :2], torch.ones(7))),
    "timesteps": Anything(
        ("x", None, {}, math.nan, torch.tensor([1e5, 1.0]), torch.tensor([-3.0, 2.0]), torch.full((2,), math.nan), 1j)
        + (torch.ones(3), torch.tensor(math.inf), torch.ones(2, 2, 2), b"1", [None], object(), 2e4, -1)
    ),
}
LOSS: Fields = {
    "transport": Either((Choice(tuple(TRANSPORTS)),)),
    "prediction_type": SCHEDULER["prediction_type"],
    "consistency_ratio": SHARE,
    "enhancement_ratio": NUMBER,
    "enhancement_range": Several(NUMBER, (0.0, 0.75), order="rising"),
    "huber_c": NOT_NEGATIVE,
    "cosine_term": Truth(),
    "cosine_weighting": Truth(),
    "label_dropout": SHARE,
    "time_distribution": WARP,
    "channel_dim": Number(is_whole=True),
    "batched_calls": Truth(),
    "derivative": Choice(("difference", "forward")),
    "partial_calls": Truth(),
    "second_time": Choice(("none", "any")),
    "time_pairs": Choice(("uniform", "sorted", "dyadic")),
    "equal_share": SHARE,
    "end_share": SHARE,
    "chain_order": COUNT,
    "first_step": SHARE,
    "first_step_unit": Choice(("time", "gap")),
    "form": Choice(("amplified", "integral")),
    "clamp": Maybe(POSITIVE),
    "normalisation": Choice(("none", "huber", "norm", "adaptive")),
    "adaptive_power": NOT_NEGATIVE,
    "chain_network": Choice(("student", "ema", "teacher")),
    "velocity": Choice(("data", "teacher")),
    "time_weight": Choice(("none", "gap")),
    "twin_share": SHARE,
    "rectification": NOT_NEGATIVE,
}
LOSS_CALL: Fields = {
    "x": Anything((*NO_TENSORS, SAMPLE.long(), torch.ones(()), SAMPLE[:0])),
    "t": Anything(("x", 0.5, [0.5, 0.5], torch.ones(3), torch.tensor([2.0, 0.5]), torch.full((2,), math.nan), {})),
    "noise": Anything(("x", 1.0, SAMPLE[:, :2], SAMPLE[:1], [1.0], SAMPLE * math.nan, {}, b"x")),
    "dropped": Anything(("x", True, [True, False], torch.ones(3, dtype=torch.bool), torch.ones(2), {})),
    "condition": Anything(("x", 5, [1], torch.ones(2), True)),
    "generator": Anything(("seed", 5, [torch.Generator()], {}, True)),
}
TRAINING: Fields = {
    "output_dir": Anything(("", 5, None, [], {}, b"run", True, 1.5, math.nan)),
    "transport": Maybe(LOSS["transport"]),
    **{name: kind for name, kind in LOSS.items() if name not in ("transport", "consistency_ratio")},
    "consistency_ratio": SHARE,
    "consistency_schedule": Maybe(
        Anything(([], [[0]], [[0, 2.0]], [[5, 0.1], [2, 0.2]], [["a", 0.1]], [[0, "b"]], [[0.5, 0.1]]))
    ),
    "expert": Maybe(Choice(("transformer", "transformer_2", "unet", "unet_2"))),
    "overwrite_output_dir": Truth(),
    # None is resolved by `lora_rank`.
    "teacher_decay": Maybe(SHARE),
    "teacher_guidance_scale": NOT_NEGATIVE,
    "teacher_dtype": Maybe(Choice(("bf16", "fp16"))),
    "teacher_offload": Truth(),
    "lora_rank": INDEX,
    "lora_alpha": Maybe(POSITIVE),
    "lora_dropout": SHARE,
    "lora_target_modules": Maybe(Several(Text(), ("to_q", "to_k"), is_fixed=False)),
    "train_batch_size": COUNT,
    "gradient_accumulation_steps": COUNT,
    "max_train_steps": COUNT,
    "optimizer": Choice(("adamw", "radam", "adamw_8bit", "adamw_schedule_free")),
    "learning_rate": NOT_NEGATIVE,
    "adam_beta1": Number(0.0, 1.0, (False, True)),
    "adam_beta2": Number(0.0, 1.0, (False, True)),
    "adam_epsilon": NOT_NEGATIVE,
    "adam_weight_decay": NOT_NEGATIVE,
    "lr_scheduler": Choice(("constant", "constant_with_warmup", "cosine", "linear")),
    "lr_warmup_steps": INDEX,
    "lr_step_rules": Maybe(Anything((5, "1:x", [1], {}, "", "1:2:3", b"1:2", True, "banana"))),
    "max_grad_norm": NOT_NEGATIVE,
    "ema_decay": SHARE,
    "mixed_precision": Choice(("no", "bf16", "fp16")),
    "gradient_checkpointing": Truth(),
    "torch_compile": Truth(),
    "find_unused_parameters": Truth(),
    "seed": SEED,
    "dataloader_num_workers": INDEX,
    "nonfinite_gradients": Choice(("skip", "zero", "stop")),
    "on_collapse": Choice(("ignore", "warn", "back_off", "roll_back")),
    "collapse_factor": Number(1.0, is_open=(True, False)),
    "checkpointing_steps": COUNT,
    "checkpoints_total_limit": COUNT,
    "resume_from_checkpoint": Maybe(Text()),
    "logging_steps": COUNT,
    "report_to": Maybe(Choice(("tensorboard", "wandb"))),
    "tracker_project_name": Text(),
    "validation_steps": INDEX,
    "validation_inputs": Anything((5, None, "Bag", {"a": 1}, [None], [1.5], [["a"]], b"Bag", True, object())),
    "validation_num_inference_steps": Several(COUNT, (1, 2, 4), is_fixed=False),
}
PIPELINE: Fields = {
    "id2label": Maybe(
        Anything(("Bag", 5, ["a"], {"a": "b"}, {0: 1}, {None: "a"}, {-1: "a"}, True, {0: "a", "0": "b"}))
    ),
    "guided_channels": Maybe(Number(1, 4, is_whole=True)),
    "latents_mean": Maybe(Several(NUMBER, (0.0, 0.1, 0.2, 0.3))),
    "latents_std": Maybe(Several(POSITIVE, (1.0, 1.1, 1.2, 1.3))),
    "do_normalize": Truth(),
    "call_defaults": Maybe(
        Anything(
            (5, "x", [1], {"steps": 4}, {"num_inference_steps": "4"}, {"num_inference_steps": 0}, {1: 2}, True)
            + ({"guidance_scale": "big"}, {"guidance_scale": math.nan}, {"guidance_interval": [1, 0]}, ["a"])
        )
    ),
    "scheduler": Anything((None, "ddim", 5, {}, UCGMScheduler, [], True)),
    "transformer": Anything((None, "dit", 5, {}, torch.nn.Linear(2, 2), [], True)),
}
CALL: Fields = {
    "class_labels": Anything(
        (
            None,
            [],
            "Hat",
            "",
            5,
            -1,
            1.5,
            [0, "Hat"],
            [None],
            [[0]],
            {},
            math.nan,
            [True],
            b"Bag",
            torch.ones(2),
            [10**30],
        )
        + (torch.tensor([7]), np.array(["x"]), object(), [0.0], True, torch.tensor([math.nan]), {"Bag": 1})
    ),
    "guidance_scale": Maybe(NOT_NEGATIVE),
    "guidance_interval": Maybe(Several(SHARE, (0.1, 0.9), order="rising")),
    "num_inference_steps": Maybe(COUNT),
    "timesteps": SET_TIMESTEPS["timesteps"],
    "sigmas": SET_TIMESTEPS["sigmas"],
    "generator": Anything(("seed", 5, 1.5, {}, [torch.Generator()] * 3, [None], ["a"], b"0", True, object())),
    "latents": Anything(
        (*NO_TENSORS[1:], torch.ones(1, 4, 4, 4), torch.ones(3, 4, 8, 8), torch.full((1, 4, 8, 8), math.nan))
    ),
    "output_type": Choice(("pil", "np", "pt", "latent")),
    "callback_on_step_end": Anything((5, "x", [], {}, True)),
    "callback_on_step_end_tensor_inputs": Anything((5, "latent", ["x"], [5], [None], {"a": 1}, True, None)),
}
PICTURE = Image.new("RGB", (9, 7))
PREPARE: Fields = {
    "image": Anything((None, "a.png", 5, b"x", np.zeros((4, 4, 3)), torch.zeros(3, 4, 4), [], {}, True)),
    "size": Maybe(Either((COUNT, Several(COUNT, (8, 9))))),
    "crop": Choice(("center", "random")),
    "flip": Truth(),
    "channels": Choice((1, 3)),
    "background": Anything(("", "banana", 5, None, [], b"white", "#12", (1, 2), True, {})),
    "generator": Anything(("seed", 5, 1.5, {}, [torch.Generator()], True, b"0")),
}
ITEMS: Fields = {
    "size": PREPARE["size"],
    "crop": PREPARE["crop"],
    "flip": Truth(),
    "channels": PREPARE["channels"],
    "background": PREPARE["background"],
    "seed": SEED,
}
SOURCE: Fields = {
    "source": Anything(("", None, 5, "no/such/folder/at-all", [], b"x", {}, True, math.nan, "\x00")),
    "split": Anything((5, "", "nope", None, [], {}, True, b"train")),
    "image_column": Maybe(Anything((5, "nope", "", [], {}, True, b"image", 1.5))),
    "label_column": Maybe(Anything((5, "nope", "", [], {}, True, b"label", 1.5))),
    "caption_column": Maybe(Anything((5, "nope", "", [], {}, True, b"text", 1.5))),
    "streaming": Truth(),
    "allow_remote_files": Truth(),
}
CACHE: Fields = {
    "batch_size": COUNT,
    "shard_size": COUNT,
    "process_index": INDEX,
    "num_processes": COUNT,
    "overwrite_output_dir": Truth(),
    "fingerprint": Anything((None, "x", 5, [1], {"a": object()}, {"a": {1, 2}}, True)),
}
EVALUATE: Fields = {
    "num_samples": Number(2, is_whole=True),
    "conditions": Maybe(Anything(([], "Hat", ["Hat"], [99], [-1], [None], 5, {}, [1.5], True))),
    "num_inference_steps": Maybe(COUNT),
    "batch_size": COUNT,
    "seed": SEED,
    "size": Maybe(Either((COUNT, Several(COUNT, (8, 9))))),
    "features": Anything(("", "nope", 5, None, [], {}, "no.such:function", "os:", "json:loads:x", True)),
    "call": Maybe(Anything((5, "x", [1], {"nope": 1}, {"guidance_scale": "x"}, {1: 2}, True))),
    "text_image_model": Maybe(Anything((5, "", "nope", "./nope", [], {}, True, b"clip", math.nan))),
    "background": PREPARE["background"],
    "allow_remote_files": Truth(),
    "overwrite_output_dir": Truth(),
    "reference": Anything((None, 5, [], {}, "", "nope.npz", "nope", True)),
}
COMPARE: Fields = {
    "conditions": Anything((None, [], "Bag", [0], [99, 98], [None, None], 5, {})),
    "seeds": Anything((None, [], [0], ["a", "b"], [0.5, 1.5], 5, "ab", [math.nan, 1], [0, 1, 2])),
    "solvers": Anything((None, {}, [], 5, "UCGM", {"a": None}, {"a": "ddim"}, {"a": {2: "x"}}, {5: 5})),
    "calls": Several(COUNT, (2, 3), is_fixed=False),
    "few_step": Anything(([], 5, "UCGM", {"a": None}, {"a": "emoji"}, {5: 5})),
    "num_solution_calls": COUNT,
    "batch_size": COUNT,
    "overwrite_output_dir": Truth(),
}
TUNE: Fields = {
    "num_inference_steps": COUNT,
    "num_trials": COUNT,
    "num_seeds": Number(2, is_whole=True),
    "num_held_out": Number(2, is_whole=True),
    "seed": SEED,
    "objective": Choice(("median", "mean")),
    "num_solution_calls": COUNT,
    "batch_size": COUNT,
    "conditions": EVALUATE["conditions"],
    "overwrite_output_dir": Truth(),
}
CONVERT: Fields = {
    "checkpoint": Anything((None, "", "nope.safetensors", 5, [], {}, "/", True)),
    "recipe": Anything(("fm", 5, [], {"a": 1}, True)),
    "vae": Anything((5, "nope.safetensors", [], {}, True)),
    "latent_statistics": Anything((5, "nope.safetensors", [], {}, True)),
    "norm_num_groups": Maybe(Anything((0, -1, 1.5, "x", [], math.nan, True, 7))),
    "weights": Maybe(Choice(("ema", "model"))),
    "dtype": Maybe(Anything(("fp32", 5, "banana", torch.int64, [], {}, True))),
    "id2label": Maybe(Anything(("x", 5, [1], {"a": "b"}, {0: 1}, True))),
    "overwrite_output_dir": Truth(),
    "sample_size": Anything(("x", 0, -1, 1.5, [], math.nan, True)),
}
TEACHER: Fields = {"teacher_decay": SHARE, "dtype": Maybe(Anything(("fp16", 5, [], {}, True)))}
ITEM = {"latents": torch.zeros(4, 8, 8), "class_labels": 1}
TRAINER: Fields = {
    "dataset": Anything(
        (None, [], 5, "data", {}, [None] * 4, [{}] * 4, [{"latents": "x", "class_labels": 0}] * 4, [[1]] * 4)
        + ([ITEM | {"latents": torch.zeros(7, 8, 8)}] * 4, [ITEM | {"latents": torch.full((4, 8, 8), math.nan)}] * 4)
        + ([ITEM | {"latents": torch.zeros(4, 8, 8).long()}] * 4, [ITEM | {"class_labels": 77}] * 4)
        + (
            [ITEM | {"class_labels": -3}] * 4,
            [ITEM | {"class_labels": "Bag"}] * 4,
            [ITEM | {"class_labels": None}] * 4,
        )
        + ([{"latents": ITEM["latents"]}] * 4, [ITEM | {"class_labels": 1.5}] * 4, [ITEM, ITEM | {"latents": 0}] * 2)
        + ([ITEM | {"caption": "a bag"}] * 4, [ITEM | {"latents": torch.zeros(4, 7, 9)}] * 4)
    ),
    "transformer": Anything((None, "dit", 5, [], {}, torch.nn.Linear(2, 2), True)),
    "config": Anything((None, "run", 5, [], {"output_dir": "run"}, True)),
    "scheduler": Anything(("ddim", 5, [], True, {"_class_name": "KarrasVeScheduler"})),
}
# The words that stand for a value which is named by another word in the error.
ALSO_CALLED = {
    "dataset": ("latents", "class_labels", "caption", "dataset"),
    "call": ("call", "nope", "guidance_scale"),
    "call_defaults": ("call_defaults", "num_inference_steps", "guidance_scale", "guidance_interval", "steps"),
    "config": ("config",),
    "features": ("features",),
    "solvers": ("solvers",),
    "recipe": ("recipe",),
    "checkpoint": ("checkpoint", "path"),
    "source": ("source",),
    "original_samples": ("original_samples", "sample"),
    "timesteps": ("timesteps", "timestep"),
    "per_token_timesteps": ("per_token_timesteps",),
    "conditions": ("conditions", "class_labels"),
    "labels": ("class_labels",),
    # Two spellings of one argument, and what a function of a function calls it.
    "samples_per_label": ("num_images",),
    "solution_calls": ("num_solution_calls",),
    "steps": ("num_inference_steps",),
    "transformer": ("transformer", "network"),
    "latent_statistics": ("nope.safetensors",),
}


# Settings without a kind are not attacked; `benchmarks/robustness.py` says so, and a test asks for one.
UNKNOWN = {each.name for each in fields(UCGMTrainingConfig)} ^ set(TRAINING)
UNKNOWN |= {each.name for each in fields(UCGMLoss)} ^ set(LOSS)
UNKNOWN |= set(inspect.signature(UCGMScheduler).parameters) ^ set(SCHEDULER)
