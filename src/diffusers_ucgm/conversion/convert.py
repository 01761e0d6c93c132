"""The conversion of an original checkpoint, an autoencoder and a recipe to a saved `UCGMPipeline`."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, ModelMixin
from diffusers.utils import logging

from diffusers_ucgm import files
from diffusers_ucgm.constraints import check
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.locks import Lock
from diffusers_ucgm.pipeline import UCGMPipeline
from diffusers_ucgm.presets import get_preset
from diffusers_ucgm.run_folder import OVERWRITING, OWNED, RUN_FILE, RunFolder, differences
from diffusers_ucgm.scheduler import UCGMScheduler

from .arguments import CONVERT_ARGUMENTS
from .autoencoders import AUTOENCODERS, describe_autoencoder, load_autoencoder
from .files import read_latent_statistics, read_state_dict
from .key_maps import describe
from .names import without_training_heads
from .networks import Architecture, convert_network, network_plan
from .reference import Recipe, read_reference_config
from .sizes import published_settings


__all__ = ["CALL_FILE", "TRAINING_FILE", "convert_checkpoint", "describe_checkpoint", "recipe_from", "save_recipe"]

logger = logging.get_logger(__name__)

# The file beside a converted pipeline with the reference's settings of its training, for `ucgm train --config`.
TRAINING_FILE = "training.yaml"
# The file beside a scheduler without a pipeline with steps and guidance, the `call_defaults` of `UCGMPipeline`.
CALL_FILE = "call_defaults.json"
# The number of bytes at each end of a checkpoint that identify it.
BYTES_READ = 1 << 20

# Mean and standard deviation of the latents by channel, or neither.
Statistics = tuple[list[float], list[float]] | tuple[None, None]


def recipe_from(preset: str | None = None, reference_config: str | Path | None = None) -> Recipe:
    """The settings of a model, from a published preset or a YAML file of the reference.

    Raises:
        ValueError: If both or a general preset are given, or the file is not known.
    """
    if preset is None:
        if reference_config is None:
            return Recipe()
        return read_reference_config(reference_config, argument="reference_config")
    if reference_config is not None:
        raise ValueError("`preset` must be left out with `reference_config`, which says the same.")
    found = get_preset(preset)
    if found.network is None:
        raise ValueError(f"`preset` must be one of a published model, got {preset!r}, for {found.model}.")
    return Recipe(
        dict(found.scheduler),
        found.call,
        network=found.network,
        autoencoder=found.autoencoder,
        image_size=found.image_size,
    )


def describe_checkpoint(
    checkpoint: str | Path,
    recipe: Recipe | None = None,
    *,
    vae: str | Path | None = None,
    latent_statistics: str | Path | None = None,
    norm_num_groups: int | None = None,
    weights: str | None = None,
    **settings: object,
) -> str:
    """A text of what a conversion would do: the configurations, and the place of every tensor.

    The arguments are those of `convert_checkpoint`.

    Raises:
        OSError: If there is no such autoencoder.
        ValueError: See `convert_checkpoint`.
    """
    check(CONVERT_ARGUMENTS, locals())
    _check_groups(norm_num_groups, vae)
    mean, std = _statistics(recipe or Recipe(), vae, latent_statistics)
    notes: list[str] = []
    state_dict = without_training_heads(read_state_dict(checkpoint, weights, argument="checkpoint"), notes.append)
    settings = _network_settings(recipe or Recipe(), settings)
    architecture, config, entries = network_plan(state_dict, **settings)
    _check_network(architecture, recipe or Recipe())
    head = {"_class_name": architecture.model.__name__, **config}
    parts = [*notes, f"{architecture.name}: {json.dumps(head, indent=2)}", describe(entries, state_dict)]
    if vae is not None:
        parts.append(describe_autoencoder(vae, norm_num_groups=norm_num_groups))
    if mean is not None:
        _check_statistics(mean, config["in_channels"])
        parts.append(f"latents: mean {mean}, std {std}")
    return "\n".join(parts)


def convert_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    vae: str | Path | None = None,
    latent_statistics: str | Path | None = None,
    norm_num_groups: int | None = None,
    weights: str | None = None,
    dtype: torch.dtype | None = None,
    id2label: Mapping[int, str] | None = None,
    overwrite_output_dir: bool = False,
    note: Callable[[str], None] = logger.warning,
    **settings: object,
) -> Path:
    """Write the pipeline of an original checkpoint in the form that `UCGMPipeline.from_pretrained` loads.

    Args:
        checkpoint: The network's file, `.pt` or `.safetensors`.
        output: The folder to write. It appears when it is complete.
        recipe: Settings apart from the weights, see `recipe_from`; None takes the network's own path and the general
            multi-step settings.
        vae: The autoencoder's original file, a folder of diffusers or a repository of the Hub; None writes a pipeline
            without one, which generates latents.
        latent_statistics: A file with mean and standard deviation of the latents.
        norm_num_groups: The number of groups of a VA-VAE's group norms, see `load_autoencoder`.
        weights: "ema" or "model" of a training checkpoint; None takes "ema" where there is one.
        dtype: The dtype of all weights but those that the model keeps in float32; None keeps theirs.
        id2label: The name of each class.
        overwrite_output_dir: Whether another conversion in the folder is replaced; the same one always is.
        note: A function that gets a sentence about the heads that only training needs and that are left out.
        settings: Entries of the network's configuration that its keys do not show, see `network_plan`.

    Raises:
        FileExistsError: If the folder holds files that this conversion did not write.
        OSError: If a file cannot be written.
        RuntimeError: If another process converts into the folder.
        ValueError: If a file is not what it should be, or the recipe is of another network.
    """
    check(CONVERT_ARGUMENTS, locals())
    output = Path(output)
    recipe = recipe or Recipe()
    given = {"vae": vae, "latent_statistics": latent_statistics, "norm_num_groups": norm_num_groups, **settings}
    identity = {
        "checkpoint": _checksum(checkpoint),
        "recipe": asdict(recipe),
        "weights": weights,
        "dtype": None if dtype is None else str(dtype),
        "id2label": None if not id2label else {str(key): name for key, name in id2label.items()},
        # The place of a file says nothing of the result, and is nobody else's business.
        **{name: Path(value).name if isinstance(value, str | Path) else value for name, value in given.items()},
    }
    output_folder = _OutputFolder(output, identity, overwrite_output_dir)
    output_folder.check()
    _check_groups(norm_num_groups, vae)
    statistics = _statistics(recipe, vae, latent_statistics)
    if vae is not None:
        # A damaged one is named before the network is converted, which takes longer.
        describe_autoencoder(vae, norm_num_groups=norm_num_groups)
    architecture, network = _convert_network(checkpoint, weights, dtype, recipe, settings, note)
    statistics = _per_channel(statistics, network.config.in_channels)
    autoencoder = None if vae is None else _autoencoder(vae, dtype, recipe, statistics, norm_num_groups)
    pipe = _pipeline(network, autoencoder, recipe, architecture, statistics, id2label)
    with output_folder.replace() as temporary:
        pipe.save_pretrained(temporary)
        _save_training(recipe, temporary)
    return output


def _convert_network(
    checkpoint: str | Path,
    weights: str | None,
    dtype: torch.dtype | None,
    recipe: Recipe,
    settings: Mapping[str, object],
    note: Callable[[str], None],
) -> tuple[Architecture, ModelMixin]:
    """The network of a checkpoint, checked before it is converted."""
    state_dict = without_training_heads(read_state_dict(checkpoint, weights, argument="checkpoint"), note)
    settings = _network_settings(recipe, settings)
    architecture = network_plan(state_dict, **settings)[0]
    _check_network(architecture, recipe)
    return architecture, convert_network(state_dict, dtype, **settings)


def _per_channel(statistics: Statistics, channels: int) -> Statistics:
    """Mean and standard deviation for each channel, where a single one stands for all."""
    mean, std = statistics
    if mean is None or std is None:
        return None, None
    _check_statistics(mean, channels)
    return (mean * channels, std * channels) if len(mean) == 1 else (mean, std)


def _autoencoder(
    vae: str | Path, dtype: torch.dtype | None, recipe: Recipe, statistics: Statistics, norm_num_groups: int | None
) -> ModelMixin:
    known = AUTOENCODERS.get(recipe.autoencoder or "")
    scaling_factor = recipe.scaling_factor
    if scaling_factor is None and known is not None:
        scaling_factor = known.scaling_factor
    mean, std = statistics
    return load_autoencoder(
        vae, dtype, mean=mean, std=std, scaling_factor=scaling_factor, norm_num_groups=norm_num_groups
    )


def _pipeline(
    network: ModelMixin,
    autoencoder: ModelMixin | None,
    recipe: Recipe,
    architecture: Architecture,
    statistics: Statistics,
    id2label: Mapping[int, str] | None,
) -> UCGMPipeline:
    known = AUTOENCODERS.get(recipe.autoencoder or "")
    # `AutoencoderKL` keeps the statistics in its own configuration.
    is_kept_by_pipeline = autoencoder is not None and not isinstance(autoencoder, AutoencoderKL)
    mean, std = statistics if is_kept_by_pipeline else (None, None)
    return UCGMPipeline(
        network,
        autoencoder,
        _scheduler(recipe, architecture),
        id2label=dict(id2label) if id2label else None,
        guided_channels=architecture.guided_channels,
        latents_mean=mean,
        latents_std=std,
        do_normalize=known is None or known.do_normalize,
        call_defaults=recipe.call or None,
    )


def save_recipe(recipe: Recipe, output: str | Path, *, overwrite_output_dir: bool = False) -> Path:
    """Write the settings without a checkpoint: the scheduler, `call_defaults.json` and `training.yaml`.

    Args:
        recipe: The settings.
        output: The folder to write.
        overwrite_output_dir: Whether another conversion in the folder is replaced.

    Raises:
        FileExistsError: If the folder holds files that this conversion did not write.
    """
    output = Path(output)
    with _OutputFolder(output, {"recipe": asdict(recipe)}, overwrite_output_dir).replace() as temporary:
        UCGMScheduler(**recipe.scheduler).save_pretrained(temporary / "scheduler")
        if recipe.call:
            files.write_json(temporary / CALL_FILE, recipe.call)
        _save_training(recipe, temporary)
    return output


@dataclass(frozen=True)
class _OutputFolder:
    """The folder of a conversion, which is written as a whole."""

    folder: Path
    identity: JsonObject
    overwrite: bool

    def check(self) -> None:
        """Check that nothing is lost when the folder is replaced.

        Raises:
            FileExistsError: If the folder holds files that this conversion did not write.
            ValueError: If this process runs in the folder.
        """
        files.check_writable(self.folder, folder=True)
        files.check_replaceable(self.folder)
        entries = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set[str]()
        if entries and (reason := self._obstacle(entries)) is not None:
            raise FileExistsError(f"`output` must be a new folder, got {str(self.folder)!r}, {reason}")

    def _obstacle(self, entries: set[str]) -> str | None:
        """The reason why the folder may not be replaced, or None."""
        found = RunFolder(self.folder, "convert").found()
        if found is None or found["kind"] != "convert":
            return "which exists and is not of `ucgm convert`. Choose another folder."
        if foreign := sorted(entries - {RUN_FILE, *OWNED["convert"]}):
            return f"which also holds {foreign[:3]}. Choose another folder, or move them out of it."
        if not self.overwrite and (changed := differences(found["identity"], _plain(self.identity))):
            return f"of another conversion, where {sorted(changed)} differ. Choose another folder, or {OVERWRITING}."
        return None

    @contextmanager
    def replace(self) -> Iterator[Path]:
        """A temporary folder that takes the folder's place, with `run.json`."""
        self.check()
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside it: the folder is exchanged.
        with Lock(self.folder.with_name(f".{self.folder.name}.lock"), "output", self.folder):
            files.remove_leftovers(self.folder.parent, name=self.folder.name)
            self.check()
            with files.replacing_folder(self.folder) as temporary:
                yield temporary
                RunFolder(temporary, "convert").start(_plain(self.identity))


def _plain(identity: JsonObject) -> JsonObject:
    return json.loads(json.dumps(identity, default=str))


def _checksum(path: str | Path) -> str:
    """A file's name, its size and a hash of its ends, which identify it without reading all of it."""
    path = Path(path)
    if not path.is_file():
        return path.name
    size, digest = path.stat().st_size, hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(BYTES_READ))
        file.seek(max(0, size - BYTES_READ))
        digest.update(file.read(BYTES_READ))
    return f"{path.name}, {size} bytes, {digest.hexdigest()[:16]}"


def _check_groups(norm_num_groups: int | None, vae: str | Path | None) -> None:
    if norm_num_groups is not None and vae is None:
        raise ValueError(f"`norm_num_groups` must be left out without `vae`, got {norm_num_groups}.")


def _statistics(recipe: Recipe, vae: str | Path | None, latent_statistics: str | Path | None) -> Statistics:
    """Mean and standard deviation of the latents, from the file or from the known autoencoder."""
    known = AUTOENCODERS.get(recipe.autoencoder or "")
    if latent_statistics is not None:
        return read_latent_statistics(latent_statistics, argument="latent_statistics")
    if known is not None and known.latents_mean is not None and known.latents_std is not None:
        return list(known.latents_mean), list(known.latents_std)
    if known is not None and known.needs_statistics and vae is not None:
        raise ValueError(
            f"`latent_statistics` must be given for {recipe.autoencoder}, whose latents the model saw normalised. "
            f"It is published as stat/{recipe.autoencoder}_{recipe.image_size}.pt beside the autoencoders."
        )
    return None, None


def _check_statistics(mean: list[float], channels: int) -> None:
    if len(mean) not in (1, channels):
        raise ValueError(f"`latent_statistics` must have {channels} channels, as the network does, got {len(mean)}.")


def _save_training(recipe: Recipe, folder: Path) -> None:
    if recipe.training:
        text = "# Settings of UCGMTrainingConfig; `train_batch_size` is the whole batch, for one process.\n"
        files.write_text(folder / TRAINING_FILE, text + yaml.safe_dump(recipe.training, sort_keys=False))


def _scheduler(recipe: Recipe, architecture: Architecture) -> UCGMScheduler:
    settings = recipe.scheduler or {**get_preset("multi-step").sampler, "num_train_timesteps": 1}
    return UCGMScheduler(**{"transport": architecture.transport, **settings})


def _network_settings(recipe: Recipe, given: Mapping[str, object]) -> JsonObject:
    settings = published_settings(recipe.network) if recipe.network else {}
    autoencoder = AUTOENCODERS.get(recipe.autoencoder or "")
    if autoencoder is not None and recipe.image_size is not None:
        settings["sample_size"] = recipe.image_size // autoencoder.downsample
    return {**settings, **{name: value for name, value in given.items() if value is not None}}


def _check_network(architecture: Architecture, recipe: Recipe) -> None:
    wanted = (recipe.network or architecture.name).split("-")[0].lower()
    if wanted != architecture.name:
        raise ValueError(
            f"`checkpoint` must be of {recipe.network}, as the preset or the reference's file says, got "
            f"{architecture.name}."
        )
    transport = recipe.scheduler.get("transport", architecture.transport)
    if transport != architecture.transport:
        raise ValueError(
            f"`checkpoint` must be of a network with the transport {transport!r}, got {architecture.name}, which was "
            f"published with {architecture.transport!r}."
        )
