"""The bodies of `ucgm train`, `doctor` and `cache`: each calls the public API and prints."""

import argparse
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from diffusers import DiffusionPipeline, ModelMixin
from torch import Tensor

from diffusers_ucgm import files
from diffusers_ucgm.checks import check_device
from diffusers_ucgm.data.datasets import LatentDataset
from diffusers_ucgm.data.image_sources import check_image_source
from diffusers_ucgm.data.images import ImageItems, ImageSource, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents, cache_latents, finish_cache
from diffusers_ucgm.files import JsonObject, check_writable, read_tensors
from diffusers_ucgm.hub import check_repository
from diffusers_ucgm.interruptions import Stopped
from diffusers_ucgm.labels import LabelMapping, read_label_map
from diffusers_ucgm.loading import DTYPES, load_network, load_pipeline
from diffusers_ucgm.names import BUNDLED, local_or_hub, local_path
from diffusers_ucgm.processes import check_launch, is_first_process
from diffusers_ucgm.run_folder import RunFolder

from .adapters import adapter_for_pipeline
from .classes import classes_of, matched_source
from .config import SETTING_TYPES, UCGMTrainingConfig
from .encoding import encode_null, encode_pixels, encode_prompts, encoder_of
from .experts import expert_of
from .network_adapter import NetworkAdapter, convention_of_scheduler
from .preparation import give_second_time
from .recipes import default_recipe, get_recipe
from .requirements import check_environment, check_image_size, check_run, validation_conditions
from .settings import override, read_settings_file, read_words, recipe_settings


if TYPE_CHECKING:
    from .trainer import UCGMTrainer

__all__ = ["COMMANDS"]

DATA_KINDS = "a folder of `ucgm cache` or a safetensors file"
NULL_CONDITION = "null_condition.safetensors"
# The options on which the entries of a cache depend.
CACHE_IDENTITY = (
    "pipeline",
    "source",
    "split",
    "size",
    "crop",
    "flip",
    "seed",
    "torch_dtype",
    "max_sequence_length",
    "background",
)


def _config(args: argparse.Namespace, **defaults: object) -> UCGMTrainingConfig:
    """The settings in force: the options win over `--config`, and the file wins over `--recipe`."""
    _check_names(args)
    given = {**defaults, **_given_settings(args)}
    if "output_dir" not in given:
        raise ValueError("`--output-dir` must be given, here or in the file of `--config`.")
    recipe, origin = _recipe(args, given)
    if recipe is not None:
        given = recipe_settings(recipe, given)
    config = UCGMTrainingConfig(**given)
    if is_first_process():
        print(origin)
    return config


def _given_settings(args: argparse.Namespace) -> JsonObject:
    """The settings of the options and, below them, of `--config`, whose names are kept for errors."""
    words = {
        name.removeprefix("setting_"): value
        for name, value in vars(args).items()
        if name.startswith("setting_") and value is not None
    }
    if empty := sorted(name for name, value in {**words, "config": args.config}.items() if value in ("", [""])):
        raise ValueError(f"`--{empty[0].replace('_', '-')}` must not be empty, got ''. Leave the option out.")
    given = read_words(words, SETTING_TYPES)
    if not args.config:
        return given
    file = read_settings_file(args.config, SETTING_TYPES, argument="--config")
    args.config_names = set(file)
    return override(file, given)


def _recipe(args: argparse.Namespace, given: JsonObject) -> tuple[str | None, str]:
    """The recipe in force, or None, and a line that says where the settings come from."""
    recipe, reason = args.recipe, "as `--recipe` names it"
    if recipe is None and args.config:
        return None, f"Settings: {args.config}"
    if recipe is None:
        is_pretrained = args.pipeline is not None or not Path(args.model).is_file()
        has_prompts = (Path(args.data) / NULL_CONDITION).is_file()
        recipe, reason = default_recipe(given, is_pretrained=is_pretrained, has_prompts=has_prompts)
    return recipe, f"Recipe: {recipe}, {reason}. {get_recipe(recipe).summary}"


def _check_names(args: argparse.Namespace) -> None:
    """See that everything that the options name exists, before anything is loaded."""
    if args.pipeline:
        local_or_hub("--pipeline", args.pipeline, BUNDLED)
    else:
        local_or_hub("--model", args.model)
    local_path("--data", args.data, DATA_KINDS)
    if args.config:
        local_path("--config", args.config, "a JSON or YAML file of settings")


def _data(name: str) -> tuple[LatentDataset | CachedLatents, dict[str, Tensor] | None]:
    """The data set and, where the cache has it, the condition that stands for no prompt."""
    path = local_path("--data", name, DATA_KINDS)
    if path.is_dir():
        null = path / NULL_CONDITION
        return CachedLatents(path), read_tensors(null) if null.is_file() else None
    if not path.is_file():
        raise ValueError(f"`--data` must be {DATA_KINDS}, got {name!r}.")
    tensors = read_tensors(path, ("latents", "class_labels"))
    latents, labels = tensors["latents"], tensors["class_labels"]
    _check_latents(latents, labels, name)
    return LatentDataset(latents, labels.long()), None


def _check_latents(latents: Tensor, labels: Tensor, name: str) -> None:
    if not latents.is_floating_point() or latents.ndim < 2 or len(latents) == 0:
        raise ValueError(
            f"`--data` must hold floating 'latents' of shape (N, C, ...), got {latents.dtype} of shape "
            f"{tuple(latents.shape)} in {name!r}."
        )
    if labels.is_floating_point() or labels.shape != latents.shape[:1]:
        raise ValueError(
            f"`--data` must hold whole 'class_labels' of shape ({len(latents)},), got {labels.dtype} of shape "
            f"{tuple(labels.shape)} in {name!r}."
        )


def _network(args: argparse.Namespace, config: UCGMTrainingConfig) -> ModelMixin:
    """The network of `--model`; new weights follow from the seed, so that a run that is begun anew repeats itself."""
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return load_network(args.model, DTYPES[args.torch_dtype], argument="--model")


def train(args: argparse.Namespace) -> int:
    """Train or tune; under `accelerate launch` in several processes."""
    check_repository("--push-to-hub", args.push_to_hub)
    config = _config(args)
    check_run(config)
    check_device(None, DTYPES[args.torch_dtype])
    trainer = _make_trainer(args, config)
    # The folder is locked until the last file is written.
    with trainer.run_folder:
        folder = trainer.train()
        if folder is None:
            assert trainer.interrupted_by is not None
            raise Stopped(trainer.interrupted_by)
        lines = [f"Weights: {folder.resolve()}"]
        if args.pipeline and not config.lora_rank:
            lines.append(f"Pipeline: {trainer.save_pipeline().resolve()}")
    if args.push_to_hub:
        lines.append(f"Hub: {trainer.push_to_hub(args.push_to_hub)}")
    if trainer.accelerator.is_main_process:
        print("\n".join(lines))
    # gloo may wait for ever in a process whose peer is busy while it leaves the group.
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    return 0


def _make_trainer(args: argparse.Namespace, config: UCGMTrainingConfig) -> "UCGMTrainer":
    from .trainer import UCGMTrainer

    dataset, null = _data(args.data)
    if not args.pipeline:
        return UCGMTrainer(config, _network(args, config), dataset)
    pipeline = load_pipeline(args.pipeline, DTYPES[args.torch_dtype], argument="--pipeline")
    return UCGMTrainer.from_pipeline(config, pipeline, dataset, null_condition=null)


def doctor(args: argparse.Namespace) -> int:
    """Examine model, data and settings; 1 if something is wrong."""
    from .doctor import examine

    config = _config(args, output_dir="run")  # where nothing is written
    dtype = DTYPES[args.torch_dtype]
    check_device(None, dtype)
    check_environment(config)
    dataset, null = _data(args.data)
    if args.pipeline:
        pipeline = load_pipeline(args.pipeline, dtype, argument="--pipeline")
        if config.validation_steps:
            validation_conditions(pipeline, config.validation_inputs)
        expert = expert_of(pipeline, config.expert)
        give_second_time(config, expert.network)
        adapter = adapter_for_pipeline(pipeline)
        if null is not None:
            adapter.null_condition = null
        transport = convention_of_scheduler(pipeline.scheduler).transport
        findings = examine(
            config,
            expert.network,
            dataset,
            adapter=adapter,
            transport=transport,
            time_range=expert.time_range,
            classes=classes_of(pipeline),
            target_time=getattr(pipeline.scheduler.config, "target_time", "auto"),
        )
    else:
        is_pretrained = not Path(args.model).is_file()
        findings = examine(config, _network(args, config), dataset, is_pretrained=is_pretrained)
    for finding in findings:
        print(f"{finding.level}: {finding.name}: {finding.message}")
    errors = sum(finding.level == "error" for finding in findings)
    print(f"{errors} errors, {len(findings) - errors} warnings")
    return 1 if errors else 0


def cache(args: argparse.Namespace) -> int:
    """Encode images and captions; under `accelerate launch` in several processes."""
    local_or_hub("--pipeline", args.pipeline, BUNDLED)
    check_image_source("--source", args.source)
    # Only Accelerator reads this variable by itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    check_launch(state.num_processes)
    check_device(state.device, DTYPES[args.torch_dtype])
    check_writable(args.output, "output", folder=True)
    pipeline = load_pipeline(args.pipeline, DTYPES[args.torch_dtype], argument="--pipeline").to(state.device)
    adapter = adapter_for_pipeline(pipeline)
    encoder_of(pipeline)
    check_image_size(pipeline, adapter, args.size)
    takes_prompts = bool(adapter.prompt_outputs)
    text = _text_options(args, pipeline, takes_prompts)
    items = _image_items(args, pipeline, adapter)
    known_classes = _print_classes(items.labels) if state.is_main_process else 0
    run = RunFolder(args.output, "cache", process_index=state.process_index, num_processes=state.num_processes)
    # The folder is locked until the last file is written.
    with run:
        index = _write_cache(args, pipeline, adapter, items, run, state, text)
    if index is not None:
        if not known_classes:
            # Those of a stream are known once it was read.
            _print_classes(items.labels)
        _print_cache(run.folder, index, args.background)
    state.wait_for_everyone()
    return 0


def _write_cache(
    args: argparse.Namespace,
    pipeline: DiffusionPipeline,
    adapter: NetworkAdapter,
    items: ImageItems,
    run: RunFolder,
    state: PartialState,
    text: Mapping[str, int],
) -> JsonObject | None:
    """Write all files of a cache; its index in the main process, None in others."""
    takes_prompts = bool(adapter.prompt_outputs)
    folder = cache_latents(
        items,
        lambda pixels, generator: encode_pixels(pipeline, pixels, generator, args.posterior_mean),
        run,
        encode_captions=(lambda texts: encode_prompts(pipeline, adapter, texts, **text)) if takes_prompts else None,
        batch_size=args.batch_size,
        shard_size=args.shard_size,
        fingerprint=_cache_identity(args, items.source),
        process_index=state.process_index,
        num_processes=state.num_processes,
        overwrite_output_dir=args.overwrite_output_dir,
        state=state,
        progress=state.is_local_main_process,
    )
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    if takes_prompts:
        files.write_tensors(folder / NULL_CONDITION, encode_null(pipeline, adapter, **text))
    return finish_cache(folder, items.source.left_out)


def _image_items(args: argparse.Namespace, pipeline: DiffusionPipeline, adapter: NetworkAdapter) -> ImageItems:
    """The images of `--source` with their classes and captions, in the form that the pipeline's encoders take."""
    label_map = None if args.label_map is None else read_label_map(args.label_map)
    source = load_image_dataset(
        args.source,
        args.split,
        image_column=args.image_column,
        label_column=args.label_column,
        caption_column=args.caption_column,
        streaming=args.streaming,
        allow_remote_files=args.allow_remote_files,
    )
    vae = getattr(pipeline, "vae", None)
    channels = getattr(vae.config, "in_channels", 3) if vae is not None else 3
    source, labels = matched_source(source, pipeline, adapter, label_map)
    return ImageItems(source, args.size, args.crop, args.flip, channels, args.seed, labels, args.background)


def _text_options(args: argparse.Namespace, pipeline: DiffusionPipeline, takes_prompts: bool) -> dict[str, int]:
    """Arguments of the text encoders."""
    if args.max_sequence_length is None:
        return {}
    if not takes_prompts:
        raise ValueError(f"`--max-sequence-length` must be left out for {args.pipeline}, which takes no prompts.")
    if "max_sequence_length" not in inspect.signature(getattr(pipeline, "encode_prompt", print)).parameters:
        raise ValueError(
            f"`--max-sequence-length` must be left out for {args.pipeline}: {type(pipeline).__name__} has one length "
            "for all prompts."
        )
    if args.max_sequence_length < 1:
        raise ValueError(f"`--max-sequence-length` must be at least 1, got {args.max_sequence_length}.")
    return {"max_sequence_length": args.max_sequence_length}


def _cache_identity(args: argparse.Namespace, source: ImageSource) -> JsonObject:
    """The settings on which the entries of a cache depend."""
    options = {name: getattr(args, name) for name in CACHE_IDENTITY}
    columns = {name: getattr(source, name) for name in ("image_column", "label_column", "caption_column")}
    # Caches from before these options go on.
    later = {name: True for name in ("posterior_mean", "allow_remote_files") if getattr(args, name)}
    return options | columns | later


def _print_cache(folder: Path, index: JsonObject, background: str) -> None:
    print(f"Cache: {folder.resolve()}, {index['num_samples']} samples, {len(index['skipped'])} images left out")
    print(f"  background of transparent images: {background}")
    for each in index["skipped"][:10]:
        print(f"  {each}")
    for name in ("latents_mean", "latents_std"):
        print(f"  {name}: {', '.join(f'{value:.3f}' for value in index[name])}")


def _print_classes(labels: LabelMapping | None) -> int:
    """Print the model's class of each label that is known so far, and return the number of lines."""
    lines = [] if labels is None else labels.lines()
    if lines:
        print("\n".join(["Classes:", *(f"  {line}" for line in lines)]))
    return len(lines)


COMMANDS = {"cache": cache, "doctor": doctor, "train": train}
