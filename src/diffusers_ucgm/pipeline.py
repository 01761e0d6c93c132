"""UCGMPipeline: a class-conditional transformer, an optional autoencoder and a scheduler, from labels to images."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
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
from .contracts import Steppable
from .names import BUNDLED, local_or_hub
from .network_caches import disable_cache, enable_cache
from .network_calls import Guidance, NetworkCalls
from .pipeline_arguments import (
    CALL_DEFAULTS,
    CONSTRUCTOR_ARGUMENTS,
    check_call_defaults,
    check_guided_channels,
    check_latent_statistics,
    class_ids,
    names_by_id,
    schedule_arguments,
)
from .sampling.settings import CALL_ARGUMENTS
from .standalone.code import IS_STANDALONE, installed_index
from .standalone.folders import check_standalone, make_standalone, save_pipeline_files


__all__ = ["BUNDLED", "UCGMPipeline", "UCGMPipelineOutput", "denormalize_latents", "normalize_latents"]


@dataclass
class UCGMPipelineOutput(BaseOutput):
    """The result of a call of the pipeline.

    Attributes:
        images: PIL images, an array `(B, H, W, C)` in [0, 1], a tensor `(B, C, H, W)` in [0, 1], or latents.
        num_network_calls: Calls of the transformer. A guided call evaluates condition and null condition in one batch.
    """

    images: "Images"
    num_network_calls: int


Images = list[Image.Image] | np.ndarray | Tensor
Callback = Callable[["UCGMPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor] | None]


class UCGMPipeline(DiffusionPipeline):
    """Generates images of classes with a multi-step or few-step model.

    Examples:
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

    transformer: ModelMixin
    vae: ModelMixin | None
    scheduler: Steppable

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
        call_defaults: dict[str, object] | None = None,
    ) -> None:
        """Put the components together.

        Args:
            transformer: A class-conditional model called like `DiTTransformer2DModel`. Its config names the channels
                (`in_channels`), the size (`sample_size`) and the number of classes (`num_embeds_ada_norm` or
                `num_classes`), which is also the id of the null class.
            vae: AutoencoderKL, AutoencoderDC, AutoencoderTiny or another with `decode(latents).sample`; None where the
                transformer generates pixels in [-1, 1].
            scheduler: `UCGMScheduler`, or a flow-matching scheduler of diffusers.
            id2label: The name of each class.
            guided_channels: The number of channels that are guided, from the first; None is all. LightningDiT's
                published figure guides 3 of 32.
            latents_mean: Mean of the autoencoder's latents by channel, for an autoencoder whose own configuration has
                no place for it, such as `AutoencoderDC`.
            latents_std: Standard deviation of the autoencoder's latents by channel, for the same autoencoders.
            do_normalize: Whether the autoencoder's images are in [-1, 1]; EDM2's are in [0, 1].
            call_defaults: Values of `num_inference_steps`, `guidance_scale` and `guidance_interval` for calls that
                give none.

        Raises:
            ValueError: If a part is of another kind, `guided_channels` exceeds the transformer's channels,
                `call_defaults` names another argument, or the statistics differ in length.
        """
        check(CONSTRUCTOR_ARGUMENTS, locals())
        check_guided_channels(guided_channels, getattr(transformer.config, "in_channels", None))
        check_call_defaults(list(call_defaults or {}))
        check(CALL_ARGUMENTS, call_defaults or {})
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(
            id2label=names_by_id(id2label),
            guided_channels=guided_channels,
            latents_mean=None if latents_mean is None else list(latents_mean),
            latents_std=None if latents_std is None else list(latents_std),
            do_normalize=do_normalize,
            call_defaults=call_defaults,
        )
        if vae is not None and latents_mean is not None and latents_std is not None:
            check_latent_statistics(latents_mean, latents_std)
            # With the autoencoder, so that training and sampling find them in one place; not among its weights, which
            # may be cast, nor in its configuration, which would not load with them.
            for name, values in (("latents_mean", latents_mean), ("latents_std", latents_std)):
                setattr(vae, name, list(values))
        self.image_processor = VaeImageProcessor(do_resize=False, do_normalize=do_normalize)
        self._guidance_scale = 1.0
        self._num_timesteps = 0
        self._current_timestep: Tensor | None = None
        self._interrupt = False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> "UCGMPipeline":
        """Load a saved pipeline.

        Args:
            pretrained_model_name_or_path: A folder, a repository of the Hub, or the name of a bundled pipeline of this
                class, which is loaded from the package without network unless a local folder has that name.
            kwargs: Keyword arguments of `DiffusionPipeline.from_pretrained`. `use_safetensors` is True by default.

        Raises:
            OSError: If there is no pipeline under that name, or its weights are not safetensors.
            ValueError: If the bundled pipeline is of another class.
        """
        name = local_or_hub("pretrained_model_name_or_path", pretrained_model_name_or_path, BUNDLED)
        if name in BUNDLED and not Path(name).is_dir():
            found = files.read_json(BUNDLED[name] / "model_index.json")["_class_name"]
            if found != UCGMPipeline.__name__:
                raise ValueError(
                    f"`pretrained_model_name_or_path` must be a {UCGMPipeline.__name__}, got {name!r}, a {found}. "
                    f"Load it by `diffusers_ucgm.loading.load_pipeline({name!r})`."
                )
            name = str(BUNDLED[name])
        kwargs.setdefault("use_safetensors", True)
        return super().from_pretrained(name, **kwargs)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """What `model_index.json` holds, with this package's classes where a folder has a file of their code.

        The arguments and what is returned are those of `DiffusionPipeline.load_config`.
        """
        found: Any = super().load_config(*args, **kwargs)
        return (installed_index(found[0]), *found[1:]) if isinstance(found, tuple) else installed_index(found)

    def save_pretrained(
        self, save_directory: str | os.PathLike, *args: Any, standalone: bool = False, **kwargs: Any
    ) -> None:
        """Save the pipeline, with a `README.md` that says how to load it, unless there is one.

        `DiffusionPipeline.from_pretrained` finds this class after `from diffusers_ucgm import UCGMPipeline`, or by
        `custom_pipeline=<the folder>/pipeline.py` and `trust_remote_code=True`.

        Args:
            save_directory: The folder, made if it does not exist.
            args: Positional arguments of `DiffusionPipeline.save_pretrained`.
            standalone: Whether the code of the classes of this package is saved too, in `pipeline.py` and beside each
                part. `DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)` then loads the folder where
                this package is not installed.
            kwargs: Keyword arguments of `DiffusionPipeline.save_pretrained`.

        Raises:
            ValueError: If `standalone` goes with `push_to_hub`, or a class is not one of this package.
        """
        is_whole = standalone or IS_STANDALONE
        if is_whole and kwargs.get("push_to_hub"):
            raise ValueError(
                "`push_to_hub` must be False where the code is saved too, since diffusers uploads the folder before "
                "its index names the code. Save the folder, and then run `hf upload OWNER/NAME FOLDER`."
            )
        if is_whole:
            check_standalone(self.scheduler.config)
        save_pipeline_files(save_directory, type(self).__name__, is_whole)
        # A network that was given a second time is of another class than it was when the pipeline was made.
        self.register_modules(transformer=self.transformer)
        super().save_pretrained(save_directory, *args, **kwargs)
        if is_whole:
            make_standalone(save_directory)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        weight_name: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Give the transformer a LoRA that `UCGMTrainer` saved.

        Args:
            pretrained_model_name_or_path: A folder, or a repository of the Hub.
            weight_name: The name of the file; None is the name that `UCGMTrainer` gives it.
            kwargs: Keyword arguments of `huggingface_hub.hf_hub_download`, such as `revision` or `token`.

        Raises:
            FileNotFoundError: If a folder holds no adapter.
            ValueError: If the adapter is for another network, or the transformer has a LoRA already.
        """
        from .lora import LORA_WEIGHTS_NAME, load_lora

        name = LORA_WEIGHTS_NAME if weight_name is None else weight_name
        folder = Path(pretrained_model_name_or_path)
        file = folder / name if folder.is_dir() else hf_hub_download(str(folder), name, **kwargs)
        load_lora(self.transformer, file)

    def unload_lora_weights(self) -> None:
        """Remove the LoRA from the transformer; without one this does nothing."""
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
        """Whether the running call is guided at some of its times."""
        return self._guidance_scale not in (0.0, 1.0)

    def enable_cache(self, config: object) -> None:
        """Enable a cache of diffusers on the transformer, even if the transformer has no method for it.

        Args:
            config: A config of diffusers, such as `FirstBlockCacheConfig`; `docs/sampling.md` lists which cache fits
                which network.

        Raises:
            ValueError: If the transformer has a cache already, or this one fits none of its modules.
        """
        enable_cache(self.transformer, config)

    def disable_cache(self) -> None:
        """Remove the caches from the transformer; without one this does nothing."""
        disable_cache(self.transformer)

    @property
    def interrupt(self) -> bool:
        """Whether a callback has stopped the call by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def num_classes(self) -> int:
        """The number of classes of the transformer, which is also the id of the null class.

        Raises:
            ValueError: If the transformer's config has neither `num_embeds_ada_norm` nor `num_classes`.
        """
        config = self.transformer.config
        for name in ("num_embeds_ada_norm", "num_classes"):
            if getattr(config, name, None) is not None:
                return getattr(config, name)
        raise ValueError(
            "`transformer` must name its classes as `num_embeds_ada_norm` or `num_classes` in its config, got neither."
        )

    def get_label_ids(self, class_labels: object) -> list[int]:
        """The class ids of labels.

        Args:
            class_labels: An id, a name of `id2label` (in any case, with `_` or `-` for spaces, or an id in digits), a
                list of both, or a tensor of ids.

        Raises:
            ValueError: If a name is unknown or may be several classes, or an id is out of range.
        """
        return class_ids(class_labels, self.config.id2label, self.num_classes)

    def prepare_latents(
        self,
        batch_size: int,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """The initial noise, float32, shape `(B, C, H, W)` by the transformer's config, times `init_noise_sigma`.

        Args:
            batch_size: The number of samples, B.
            generator: The source of the noise; a list has one for each sample.
            latents: Standard normal noise, shape `(B, C, H, W)`, in place of noise from `generator`.

        Raises:
            ValueError: If `latents` have another shape, or the generators are not as many as the samples.
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
        class_labels: object,
        guidance_scale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> UCGMPipelineOutput | tuple[Images]:
        """Generate one image for each label.

        Args:
            class_labels: Ids, names, or a list of both; see `get_label_ids`.
            guidance_scale: The scale of classifier-free guidance: 1 and 0 are no guidance, and a scale below 1 leans
                towards the null class. None is the pipeline's `call_defaults`, or else 1; the paper's own models need
                no guidance.
            guidance_interval: Canonical times (0 is data, 1 is noise) within which guidance applies, ends included.
                The meaning does not change for a network whose time runs the other way. None is the pipeline's
                `call_defaults`, or else all times.
            num_inference_steps: The budget of network calls (NFE). Where neither this nor times are given, it is the
                pipeline's `call_defaults`, or else 40.
            timesteps: The network's own times, in place of `num_inference_steps`.
            sigmas: Canonical times, in place of `num_inference_steps`.
            generator: The source of all noise; a list has one for each sample.
            latents: Initial noise, shape `(B, C, H, W)`, in place of noise from `generator`.
            output_type: "pil", "np", "pt", or "latent" for what the transformer generates, before the autoencoder.
            return_dict: Whether to return a `UCGMPipelineOutput` or the tuple `(images,)`.
            callback_on_step_end: The function `callback(pipe, i, t, tensors)` that is called after every network call;
                the "latents" that it returns replace those of the run.
            callback_on_step_end_tensor_inputs: The names of the tensors that the callback gets; "latents" is the only
                name.

        Raises:
            ValueError: If an argument is out of its range.
            RuntimeError: If the network's output is not finite.
        """
        scale: float = self._or_default("guidance_scale", guidance_scale)
        interval: Sequence[float] = self._or_default("guidance_interval", guidance_interval)
        check(CALL_ARGUMENTS, locals() | {"guidance_scale": scale, "guidance_interval": interval})
        self._check_tensor_inputs(callback_on_step_end_tensor_inputs)
        guidance = Guidance(float(scale), (interval[0], interval[1]), self.config.guided_channels)
        labels = torch.tensor(self.get_label_ids(class_labels), device=self._execution_device)
        self._guidance_scale, self._interrupt = guidance.scale, False
        given_times = schedule_arguments(self.scheduler, timesteps=timesteps, sigmas=sigmas)
        if not given_times:
            num_inference_steps = self._or_default("num_inference_steps", num_inference_steps)
        self.scheduler.set_timesteps(num_inference_steps, device=labels.device, **given_times)
        x_t = self.prepare_latents(len(labels), generator, latents)
        calls = NetworkCalls(self.transformer, self.scheduler, self._call_times, labels, self.num_classes, guidance)
        try:
            x_t = self._run(calls, x_t, generator, callback_on_step_end, callback_on_step_end_tensor_inputs)
        finally:
            self._current_timestep = None
        self._check_finite(x_t)
        images = self.decode(x_t, output_type, generator)
        self.maybe_free_model_hooks()
        return UCGMPipelineOutput(images, calls.number) if return_dict else (images,)

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        output_type: str = "pil",
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> Images:
        """Images of what the transformer generates.

        Args:
            latents: Latents, or pixels where there is no autoencoder, shape `(B, C, H, W)`.
            output_type: "pil", "np", "pt", or "latent" for the latents themselves.
            generator: The source of noise of autoencoders that decode with noise.

        Returns:
            See `UCGMPipelineOutput.images`.
        """
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
        return self.image_processor.postprocess(images.float(), output_type=output_type)  # pyright: ignore

    def _or_default(self, name: str, value: object) -> Any:
        """The value of a call's argument, or its default where it is None."""
        return (self.config.call_defaults or {}).get(name, CALL_DEFAULTS[name]) if value is None else value

    @property
    def _call_times(self) -> Tensor:
        """The network's times of the scheduler's run, shape `(N,)`; its timesteps may have the end of the run too."""
        own_times = getattr(self.scheduler, "canonical_times", None)
        return self.scheduler.timesteps if own_times is None else self.scheduler.timesteps[: len(own_times)]

    def _run(
        self,
        calls: NetworkCalls,
        x_t: Tensor,
        generator: torch.Generator | list[torch.Generator] | None,
        callback: Callback | None,
        tensor_inputs: Sequence[str],
    ) -> Tensor:
        """The samples at the end of the scheduler's run that begins at `x_t`."""
        times = self._call_times
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        noise = {"generator": generator} if takes_generator else {}
        self._num_timesteps = len(times)
        with self.progress_bar(total=len(times)) as bar:  # pyright: ignore[reportCallIssue]
            for i, t in enumerate(times):
                if self.interrupt:
                    continue
                self._current_timestep = t
                output = calls(i, x_t, t)
                x_t = self.scheduler.step(output, t, x_t, **noise, return_dict=False)[0]
                if callback is not None:
                    tensors = {"latents": x_t} if "latents" in tensor_inputs else {}
                    x_t = _latents_of(callback(self, i, t, tensors), x_t)
                bar.update()
        calls.end()
        return x_t

    def _check_tensor_inputs(self, tensor_inputs: Sequence[str]) -> None:
        unknown = [name for name in tensor_inputs if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be in {self._callback_tensor_inputs}, got {unknown}."
            )

    def _check_finite(self, x_t: Tensor) -> None:
        if not bool(torch.isfinite(x_t).all()):
            raise RuntimeError(
                f"The transformer's output was not finite, in {self.transformer.dtype} on {x_t.device}. Use "
                "torch.float32 or torch.bfloat16, check the weights, or lower `guidance_scale`."
            )


def _latents_of(result: object, x_t: Tensor) -> Tensor:
    """The latents to go on with after a callback: those that it gave, or the run's own where it gave none."""
    if result is None:
        return x_t
    if not isinstance(result, Mapping):
        raise ValueError(f"`callback_on_step_end` must give a dictionary or None, got {brief(result)}.")
    latents = cast("Mapping[str, object]", result).get("latents", x_t)
    if not isinstance(latents, Tensor) or latents.shape != x_t.shape:
        found = tuple(latents.shape) if isinstance(latents, Tensor) else latents
        raise ValueError(
            f"`callback_on_step_end` must give `latents` of the shape of the run's, {tuple(x_t.shape)}, got "
            f"{brief(found)}."
        )
    return latents


# `DiffusionPipeline.from_pretrained` looks for the class of a saved pipeline among diffusers' own names.
diffusers.UCGMPipeline = UCGMPipeline
