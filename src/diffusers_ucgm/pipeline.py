"""UCGMPipeline: a class-conditional transformer, an optional autoencoder and a scheduler, from labels to pictures."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub import hf_hub_download
from PIL import Image
from torch import Tensor

from . import files
from .autoencoders import decode_latents, denormalize_latents, normalize_latents, takes_unit_range
from .constraints import brief, check
from .labels import ModelClasses
from .names import BUNDLED, local_or_hub
from .network_caches import CacheRun, disable_cache, enable_cache
from .pipeline_arguments import CONSTRUCTOR_ARGUMENTS
from .readme import OWN_EXAMPLE, save_readme
from .sampling.settings import CALL_ARGUMENTS


__all__ = ["BUNDLED", "UCGMPipeline", "UCGMPipelineOutput", "denormalize_latents", "guided", "normalize_latents"]

# What a pipeline's `call_defaults` may name.
CALL_DEFAULTS = ("num_inference_steps", "guidance_scale", "guidance_interval")

# What diffusers' transformers call the time that a call leads to.
TARGET_TIMES = ("r_timestep", "target_timestep", "timestep_r")

# What a saved folder holds for `DiffusionPipeline.from_pretrained(..., custom_pipeline=...)`.
HUB_MODULE = "from diffusers_ucgm.pipeline import UCGMPipeline\n\n\n__all__ = ['UCGMPipeline']\n"


@dataclass
class UCGMPipelineOutput(BaseOutput):
    """What a pipeline call gives.

    Attributes:
        images: PIL images, an array `(B, H, W, C)` in [0, 1], a tensor `(B, C, H, W)` in [0, 1], or latents.
        num_network_calls: Calls of the transformer. A guided call evaluates condition and null condition in one batch.
    """

    images: list[Image.Image] | np.ndarray | Tensor
    num_network_calls: int


def guided(conditional: Tensor, unconditional: Tensor, scale: float, channels: int | None = None) -> Tensor:
    """Classifier-free guidance: `unconditional + scale (conditional - unconditional)`.

    Args:
        conditional: Prediction for the wanted classes, shape `(B, C, H, W)`.
        unconditional: Prediction for the null class, same shape.
        scale: 1 is the conditional prediction; below 1 lies between the two.
        channels: How many channels are guided, from the first; the others stay conditional. None guides all.
    """
    output = unconditional + scale * (conditional - unconditional)
    return output if channels is None else torch.cat([output[:, :channels], conditional[:, channels:]], dim=1)


class UCGMPipeline(DiffusionPipeline):
    """Draws pictures of classes with a multi-step or few-step model.

    Example:
        >>> import torch
        >>> from diffusers_ucgm import UCGMPipeline
        >>> pipe = UCGMPipeline.from_pretrained("fashion-mnist-2-step")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> output = pipe(["Sneaker", 8], num_inference_steps=2, generator=torch.Generator().manual_seed(0))
        >>> len(output.images), output.num_network_calls
        (2, 2)
    """

    model_cpu_offload_seq = "transformer->vae"
    _optional_components = ["vae"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        transformer: ModelMixin,
        vae: ModelMixin | None,
        scheduler: SchedulerMixin,
        id2label: dict[int, str] | dict[str, str] | None = None,
        guided_channels: int | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
        do_normalize: bool = True,
        call_defaults: dict[str, Any] | None = None,
    ) -> None:
        """Put the components together.

        Args:
            transformer: A class-conditional model called like `DiTTransformer2DModel`. Its config names the channels
                (`in_channels`), the size (`sample_size`) and the number of classes (`num_embeds_ada_norm` or
                `num_classes`), which is also the id of the null class.
            vae: AutoencoderKL, AutoencoderDC, AutoencoderTiny or another with `decode(latents).sample`; None where the
                transformer draws pixels in [-1, 1].
            scheduler: `UCGMScheduler`, or a flow-matching scheduler of diffusers.
            id2label: The name of each class.
            guided_channels: How many channels guidance takes, from the first; None is all. LightningDiT's published
                figure guides 3 of 32.
            latents_mean: Mean of the autoencoder's latents by channel, for an autoencoder whose own configuration has
                no place for it, such as `AutoencoderDC`.
            latents_std: Standard deviation, likewise.
            do_normalize: Whether the autoencoder's images are in [-1, 1]; EDM2's are in [0, 1].
            call_defaults: What a call does without `num_inference_steps`, `guidance_scale` or `guidance_interval`.

        Raises:
            ValueError: If `call_defaults` names anything else, or the statistics are not one number for each channel.
        """
        check(CONSTRUCTOR_ARGUMENTS, locals())
        channels = getattr(transformer.config, "in_channels", None)
        if guided_channels is not None and isinstance(channels, int) and guided_channels > channels:
            raise ValueError(
                f"`guided_channels` must be at most the {channels} of the transformer, got {guided_channels}."
            )
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        # JSON turns the keys into strings.
        labels = None if id2label is None else {int(key): name for key, name in id2label.items()}
        if unknown := sorted(set(call_defaults or {}) - set(CALL_DEFAULTS)):
            raise ValueError(f"`call_defaults` must name some of {list(CALL_DEFAULTS)}, got {unknown}.")
        check(CALL_ARGUMENTS, call_defaults or {})
        self.register_to_config(
            id2label=labels,
            guided_channels=guided_channels,
            latents_mean=None if latents_mean is None else list(latents_mean),
            latents_std=None if latents_std is None else list(latents_std),
            do_normalize=do_normalize,
            call_defaults=call_defaults,
        )
        if vae is not None and latents_mean is not None and latents_std is not None:
            if len(latents_mean) != len(latents_std):
                raise ValueError(
                    f"`latents_mean` and `latents_std` must be of one length, got {len(latents_mean)} and "
                    f"{len(latents_std)}."
                )
            # With the autoencoder, so that training and drawing find them in one place; not among its weights, which
            # may be cast, nor in its configuration, which would not load with them.
            for name, value in (("latents_mean", latents_mean), ("latents_std", latents_std)):
                setattr(vae, name, list(value))
        self.image_processor = VaeImageProcessor(do_resize=False, do_normalize=do_normalize)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "UCGMPipeline":
        """Load a saved pipeline.

        Args:
            pretrained_model_name_or_path: A folder, a repository of the Hub, or a name in `BUNDLED`, which is loaded
                from the package without network unless a local folder has that name.
            kwargs: As `DiffusionPipeline.from_pretrained` takes them. `use_safetensors` is True unless given.

        Raises:
            OSError: If there is no pipeline under that name, or its weights are not safetensors.
        """
        name = local_or_hub("pretrained_model_name_or_path", pretrained_model_name_or_path, BUNDLED)
        if name in BUNDLED and not Path(name).is_dir():
            name = str(BUNDLED[name])
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(name, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the pipeline, with a `README.md` that says how to load it, unless there is one.

        `DiffusionPipeline.from_pretrained` finds this class after `from diffusers_ucgm import UCGMPipeline`, or by
        `custom_pipeline=<the folder>/pipeline.py` and `trust_remote_code=True`.

        Args:
            save_directory: The folder, made if it does not exist.
            args: As `DiffusionPipeline.save_pretrained` takes them.
            kwargs: As `DiffusionPipeline.save_pretrained` takes them.
        """
        files.write_text(Path(save_directory) / "pipeline.py", HUB_MODULE)
        save_readme(save_directory, type(self).__name__, OWN_EXAMPLE)
        super().save_pretrained(save_directory, *args, **kwargs)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        weight_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Give the transformer a LoRA that `UCGMTrainer` saved.

        Args:
            pretrained_model_name_or_path: Folder, or repository of the Hub.
            weight_name: The file in it; None is the name that `UCGMTrainer` gives it.
            kwargs: As in `huggingface_hub.hf_hub_download`, such as `revision` or `token`.

        Raises:
            FileNotFoundError: If a folder holds no adapter.
            ValueError: If the adapter is for another network, or there is one already.
        """
        from .lora import LORA_WEIGHTS_NAME, load_lora

        name = LORA_WEIGHTS_NAME if weight_name is None else weight_name
        folder = Path(pretrained_model_name_or_path)
        file = folder / name if folder.is_dir() else hf_hub_download(str(folder), name, **kwargs)
        load_lora(self.transformer, file)

    def unload_lora_weights(self) -> None:
        """Take the LoRA off again."""
        from .lora import remove_lora

        remove_lora(self.transformer)

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the running call."""
        return self._guidance_scale

    @property
    def num_timesteps(self) -> int:
        """The number of network calls of the running call."""
        return self._num_timesteps

    @property
    def current_timestep(self) -> Tensor | None:
        """The network's time in the running call; None outside of one."""
        return self._current_timestep

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the running call guides, at some times at least."""
        return self._guidance_scale not in (0.0, 1.0)

    def enable_cache(self, config: Any) -> None:
        """Enable a cache of diffusers on the transformer, whether or not that has a method for it.

        Args:
            config: Such as `FirstBlockCacheConfig`; `docs/sampling.md` says what composes.

        Raises:
            ValueError: If the transformer has a cache already, or this one fits none of its modules.
        """
        enable_cache(self.transformer, config)

    def disable_cache(self) -> None:
        """Take the cache off again."""
        disable_cache(self.transformer)

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked to stop, by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def num_classes(self) -> int:
        """How many classes the transformer knows; the id of the null class."""
        config = self.transformer.config
        for name in ("num_embeds_ada_norm", "num_classes"):
            if getattr(config, name, None) is not None:
                return getattr(config, name)
        raise ValueError(
            "`transformer` must name its classes as `num_embeds_ada_norm` or `num_classes` in its config, got neither."
        )

    def get_label_ids(self, class_labels: Any) -> list[int]:
        """Class ids of labels.

        Args:
            class_labels: An id, a name of `id2label` (in any case, with `_` or `-` for spaces, or an id in digits), a
                list of both, or a tensor of ids.

        Raises:
            ValueError: If a name is unknown or may be several classes, or an id is out of range.
        """
        if isinstance(class_labels, Tensor | np.ndarray):
            class_labels = class_labels.reshape(-1).tolist()
        if isinstance(class_labels, str | int | np.integer):
            class_labels = [class_labels]
        if not isinstance(class_labels, list | tuple):
            raise ValueError(f"`class_labels` must be ids or names, or a list of them, got {brief(class_labels)}.")
        if len(class_labels) == 0:
            raise ValueError("`class_labels` must not be empty, got [].")
        classes = ModelClasses.of(self.config.id2label, self.num_classes)
        ids = []
        for label in class_labels:
            if isinstance(label, str):
                try:
                    ids.append(classes.id_of(label))
                except ValueError as error:
                    known = sorted(classes.names.values())
                    raise ValueError(
                        f"`class_labels` must be ids or names of `id2label`, {known}, got {label!r}: {error}"
                    ) from error
            elif not isinstance(label, int | np.integer) or isinstance(label, bool):
                raise ValueError(f"`class_labels` must be ids or names, got {label!r}.")
            elif not 0 <= label < self.num_classes:
                raise ValueError(f"`class_labels` must be in [0, {self.num_classes - 1}], got {label}.")
            else:
                ids.append(int(label))
        return ids

    def prepare_latents(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Initial noise, float32, shape `(B, C, H, W)` by the transformer's config.

        Raises:
            ValueError: If given latents have another shape, or the generators are not as many as samples.
        """
        config = self.transformer.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        shape = (batch_size, config.in_channels, height, width)
        if isinstance(generator, list | tuple) and len(generator) != batch_size:
            raise ValueError(
                f"`generator` must have one entry for each of {batch_size} samples, got {len(generator)}."
            )
        device = self._execution_device
        if latents is None:
            latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        elif tuple(latents.shape) != shape:
            raise ValueError(f"`latents` must have shape {shape}, got {tuple(latents.shape)}.")
        # The state between steps stays float32, whatever the transformer computes in.
        # Like `scale_model_input`, this is missing from the flow-matching schedulers of diffusers.
        return latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Any,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["UCGMPipeline", int, Any, dict[str, Any]], dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> UCGMPipelineOutput | tuple[Any]:
        """Draw one picture for each label.

        Args:
            class_labels: Ids, names, or a list of both; see `get_label_ids`.
            guidance_scale: Classifier-free guidance: 1 (or 0) is none, below 1 leans towards the null class. None is
                the pipeline's `call_defaults`, or else 1; the paper's own models need none.
            guidance_interval: Canonical times (0 is data, 1 is noise) within which guidance applies, ends included.
                The meaning does not change for a network whose time runs the other way. None is the pipeline's
                `call_defaults`, or else all times.
            num_inference_steps: The budget of network calls; where neither this nor times are given, the pipeline's
                `call_defaults`, or else 40.
            timesteps: The network's own times, in place of `num_inference_steps`.
            sigmas: Canonical times, in place of `num_inference_steps`.
            generator: Source of all noise; a list has one for each sample.
            latents: Initial noise, shape `(B, C, H, W)`, in place of drawing it.
            output_type: "pil", "np", "pt", or "latent" for what the transformer drew, before the autoencoder.
            return_dict: Whether to return a `UCGMPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: Called as `callback(pipe, i, t, tensors)` after every network call; what it returns
                under "latents" replaces them.
            callback_on_step_end_tensor_inputs: Which tensors the callback gets; only "latents" there is.

        Raises:
            ValueError: If an argument is out of its range.
            RuntimeError: If the network's output is not finite.
        """
        defaults = self.config.call_defaults or {}
        if guidance_scale is None:
            guidance_scale = defaults.get("guidance_scale", 1.0)
        if guidance_interval is None:
            guidance_interval = defaults.get("guidance_interval", (0.0, 1.0))
        given = {
            "guidance_scale": guidance_scale,
            "guidance_interval": guidance_interval,
            "num_inference_steps": num_inference_steps,
            "generator": generator,
            "latents": latents,
            "output_type": output_type,
            "return_dict": return_dict,
            "callback_on_step_end": callback_on_step_end,
            "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
        }
        check(CALL_ARGUMENTS, given)
        self._check_tensor_inputs(callback_on_step_end_tensor_inputs)
        guidance_scale = float(cast(float, guidance_scale))
        interval = tuple(cast(Sequence[float], guidance_interval))
        ids = self.get_label_ids(class_labels)
        self._guidance_scale, self._interrupt = guidance_scale, False
        device = self._execution_device
        labels = torch.tensor(ids, device=device)
        null = torch.full_like(labels, self.num_classes)
        self._set_timesteps(num_inference_steps, timesteps, sigmas, device)
        x_t = self.prepare_latents(len(ids), generator, latents)
        own_times = getattr(self.scheduler, "canonical_times", None)
        times = self.scheduler.timesteps if own_times is None else self.scheduler.timesteps[: len(own_times)]
        targets = self._target_times(len(times))
        is_guided = self._guided_calls(guidance_scale, interval, len(times))
        takes = inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if "generator" in takes else {}
        self._num_timesteps = len(times)
        run = CacheRun(self.transformer, is_guided)
        calls = 0
        with self.progress_bar(total=self._num_timesteps) as bar:  # pyright: ignore[reportCallIssue]
            for i, (t, target) in enumerate(zip(times, targets, strict=True)):
                if self.interrupt:
                    continue
                self._current_timestep = t
                sample = self._scaled(x_t, t)
                with run.call(i, t, self.scheduler):
                    if is_guided[i]:
                        pair = [null, labels] if run.null_first else [labels, null]
                        both = self._predict(torch.cat([sample, sample]), t, target, torch.cat(pair))
                        conditional, unconditional = both.chunk(2)[:: -1 if run.null_first else 1]
                        output = guided(conditional, unconditional, guidance_scale, self.config.guided_channels)
                    else:
                        output = self._predict(sample, t, target, labels)
                calls += 1
                x_t = self.scheduler.step(output, t, x_t, **extra, return_dict=False)[0]
                if callback_on_step_end is not None:
                    given = {"latents": x_t} if "latents" in callback_on_step_end_tensor_inputs else {}
                    x_t = (callback_on_step_end(self, i, t, given) or {}).get("latents", x_t)
                bar.update()
        run.reset()
        self._current_timestep = None
        if not bool(torch.isfinite(x_t).all()):
            raise RuntimeError(
                f"The transformer's output was not finite, in {self.transformer.dtype} on {device}. Use torch.float32 "
                "or torch.bfloat16, check the weights, or lower `guidance_scale`."
            )
        images = self._decode(x_t, output_type, generator)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return UCGMPipelineOutput(images, calls)

    def _check_tensor_inputs(self, tensor_inputs: Sequence[str]) -> None:
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be in {self._callback_tensor_inputs}, got {unknown}."
            )

    def _set_timesteps(
        self,
        num_inference_steps: int | None,
        timesteps: Sequence[float] | None,
        sigmas: Sequence[float] | None,
        device: torch.device,
    ) -> None:
        given = {name: value for name, value in (("timesteps", timesteps), ("sigmas", sigmas)) if value is not None}
        if not given and num_inference_steps is None:
            num_inference_steps = (self.config.call_defaults or {}).get("num_inference_steps", 40)
        accepted = inspect.signature(self.scheduler.set_timesteps).parameters
        for name in given:
            if name not in accepted:
                raise ValueError(
                    f"`{name}` must be left out with {self.scheduler.__class__.__name__}, which takes none."
                )
        self.scheduler.set_timesteps(num_inference_steps, device=device, **given)

    def _target_times(self, number: int) -> list[dict[str, Tensor]]:
        """Where every call leads, under the name by which a transformer of the any-step kind asks for it."""
        asked = set(TARGET_TIMES) & set(inspect.signature(self.transformer.forward).parameters)
        if not asked:
            return [{}] * number
        if not hasattr(self.scheduler, "target_timesteps"):
            raise ValueError(
                f"{type(self.transformer).__name__} takes `{min(asked)}`, the time that a call leads to, which "
                f"{self.scheduler.__class__.__name__} does not tell. Use `UCGMScheduler`."
            )
        return [dict.fromkeys(asked, target) for target in self.scheduler.target_timesteps]

    def _guided_calls(self, scale: float, interval: tuple[float, ...], number: int) -> list[bool]:
        """Which calls are guided, decided on the host before the loop."""
        if scale in (0.0, 1.0):
            return [False] * number
        if interval == (0.0, 1.0):
            return [True] * number
        # diffusers' own flow-matching schedulers have canonical times as sigmas.
        times = getattr(self.scheduler, "canonical_times", None) or self.scheduler.sigmas.tolist()[:number]
        start, stop = interval
        return [start <= t <= stop for t in times]

    def _scaled(self, latents: Tensor, t: Tensor) -> Tensor:
        scale = getattr(self.scheduler, "scale_model_input", None)
        return latents if scale is None else scale(latents, t)

    def _predict(self, sample: Tensor, t: Tensor, target: dict[str, Tensor], labels: Tensor) -> Tensor:
        """The transformer's prediction in float32, learned variances cut off."""
        times = {"timestep": t, **target}
        told = {name: time.to(sample.device, torch.float32).expand(len(sample)) for name, time in times.items()}
        output = self.transformer(sample.to(self.transformer.dtype), **told, class_labels=labels, return_dict=False)[0]
        return output[:, : sample.shape[1]].float()

    def _decode(
        self, latents: Tensor, output_type: str, generator: torch.Generator | list[torch.Generator] | None = None
    ) -> Any:
        if output_type == "latent":
            return latents
        images = latents
        if self.vae is not None:
            images = decode_latents(self.vae, latents, generator)
            if takes_unit_range(self.vae) and self.config.do_normalize:
                images = images * 2.0 - 1.0
        if not self.config.do_normalize:
            # diffusers clips only what it brings to [0, 1] itself.
            images = images.clamp(0.0, 1.0)
        return self.image_processor.postprocess(images.float(), output_type=output_type)


# `DiffusionPipeline.from_pretrained` looks for the class of a saved pipeline among diffusers' own names.
diffusers.UCGMPipeline = UCGMPipeline
