"""Evaluation of any pipeline: draw samples, compare them with real pictures, and write down what was found.

A sample follows from its number, the seed and the settings alone. Samples are kept in files of one batch each, so a
stopped evaluation goes on with the files that are missing, and any number of processes writes the same files.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.checks import SAMPLING_REMEDY, check_finite
from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.generation.conditions import conditions_for
from diffusers_ucgm.generation.generate import generate
from diffusers_ucgm.generation.image_grid import image_grid
from diffusers_ucgm.labels import class_names
from diffusers_ucgm.lora import active_adapters
from diffusers_ucgm.network_caches import cache_settings
from diffusers_ucgm.randomness import numbered_seed
from diffusers_ucgm.run_folder import RunFolder

from .arguments import EVALUATE_ARGUMENTS
from .features import FeatureNetwork, ImageFeatures, features_of, load_features
from .references import Reference, load_reference, save_reference
from .requirements import check_call, check_outputs, check_reference_fits
from .statistics import FeatureStatistics, frechet_distance, inception_score, precision_recall


__all__ = ["EvaluationResult", "draw_samples", "drawn_pictures", "evaluate_pipeline", "measure", "sample_seeds"]

# Where version 0.1.0 had what is now in `run.json`.
EARLIER_PLAN = "plan.json"
RESULTS, GRID = "results.json", "samples.png"
# Of the grid. Pictures are shrunk to this many pixels, very small ones enlarged, and long prompts cut.
ROWS, COLUMNS, LARGEST, SMALL, LETTERS = 10, 8, 256, 64, 24


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found, and how.

    Attributes:
        metrics: `frechet_distance`, `spatial_frechet_distance`, `inception_score` with `inception_score_std`,
            `precision` and `recall`, as far as features and reference give them.
        left_out: Why each of the others is missing.
        num_samples: Drawn pictures.
        features: The name of the feature network. With "inception" the distances are FID and sFID.
        reference: Source, split, size, number of pictures and those that could not be read.
        settings: What the drawn pictures depend on.
        versions: Of the packages.
    """

    metrics: dict[str, float]
    left_out: dict[str, str]
    num_samples: int
    features: str
    reference: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return asdict(self)


def evaluate_pipeline(
    pipe: Pipeline,
    reference: str | Path | Reference,
    output: str | Path,
    *,
    features: str | FeatureNetwork = "inception",
    num_samples: int = 5000,
    conditions: Sequence[int | str] | None = None,
    num_inference_steps: int | None = None,
    call: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    split: str = "train",
    size: int | tuple[int, int] | None = None,
    image_column: str | None = None,
    background: str = "white",
    allow_remote_files: bool = False,
    reference_file: str | Path | None = None,
    overwrite_output_dir: bool = False,
    state: PartialState | None = None,
    progress: bool = True,
) -> EvaluationResult | None:
    """Draw samples and measure them, or go on with an evaluation that was stopped.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        reference: The real pictures, see `load_reference`, as for `split`, `size` and `image_column`.
        output: The folder of samples, `results.json` and `samples.png`. It holds one evaluation; with more
            `num_samples`, or another reference or features, the samples in it are kept.
        features: A feature network, or what `load_features` takes.
        num_samples: How many pictures are drawn.
        conditions: Classes or prompts in turn; None is every class equally often.
        num_inference_steps: None is the pipeline's own default.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.
        batch_size: Samples in a call of the pipeline and in a file.
        seed: Of all samples.
        split: Of the reference.
        size: Of the reference's pictures.
        image_column: Of the reference.
        background: See `load_reference`, as for the next.
        allow_remote_files: Whether rows of the reference may name files outside its folder.
        reference_file: Where the reference's statistics are written, an `.npz` file; None writes none.
        overwrite_output_dir: Whether what another run left in the folder is removed; files of others stay.
        state: accelerate's, of several processes that share the drawing; None is one process.
        progress: Whether bars are shown.

    Returns:
        The result, in the main process; None in the others.

    Raises:
        ValueError: If the folder holds another evaluation, or the pipeline draws no pictures.
        OSError: If a file cannot be written.
        RuntimeError: If another process works in the folder.
    """
    check(EVALUATE_ARGUMENTS, locals())
    is_main = state is None or state.is_main_process
    if is_main:
        check_outputs(output, reference_file)
    check_call(pipe, num_inference_steps, call or {})
    wanted = conditions_for(pipe, num_samples, conditions)
    network, name = None, features if isinstance(features, str) else getattr(features, "__name__", "own")
    if is_main:
        # Before hours of drawing: what they need may not be there.
        device = pipe.device if state is None else state.device
        network = load_features(features, device or "cpu") if isinstance(features, str) else features
        check_reference_fits(
            reference,
            network,
            split=split,
            size=size,
            image_column=image_column,
            feature_name=name,
            background=background,
            allow_remote_files=allow_remote_files,
        )
    settings = _settings(pipe, conditions, num_inference_steps, call or {}, batch_size, seed)
    run = RunFolder(
        output,
        "evaluate",
        process_index=0 if state is None else state.process_index,
        num_processes=1 if state is None else state.num_processes,
    )
    with run:
        run.begin_together(settings, state, overwrite=overwrite_output_dir, earlier=EARLIER_PLAN)
        _draw_share(run, pipe, wanted, settings, call or {}, progress and is_main)
        if state is not None:
            state.wait_for_everyone()
        if network is None:
            # Not kept waiting for the metrics: a group of processes loses patience after some minutes.
            return None
        described: dict[str, Any] = {"source": "given"}
        if not isinstance(reference, Reference):
            # A statistics file has no splits.
            known_split = None if str(reference).endswith(".npz") else split
            described = {"source": str(reference), "split": known_split, "size": size, "image_column": image_column}
            described |= {} if str(reference).endswith(".npz") else {"background": background}
            reference = load_reference(
                reference,
                network,
                split=split,
                size=size,
                image_column=image_column,
                background=background,
                allow_remote_files=allow_remote_files,
                feature_name=name,
                batch_size=batch_size,
                progress=progress,
            )
        if reference_file is not None:
            save_reference(reference_file, reference, name)
        described |= {"num_samples": reference.num_samples, "skipped": list(reference.skipped)}
        pictures = drawn_pictures(output, num_samples)
        shown = tqdm(pictures, total=num_samples, disable=not progress, unit="image", desc="features")
        metrics, left_out = measure(features_of(network, shown, batch_size), reference)
        packages = {each: version(each) for each in ("diffusers-ucgm", "diffusers", "torch", "torchmetrics")}
        result = EvaluationResult(metrics, left_out, num_samples, name, described, settings, packages)
        grid = _grid(pipe, output, wanted, num_inference_steps)
        files.write_image(Path(output) / GRID, grid)
        files.write_json(Path(output) / RESULTS, result.to_dict())
        return result


def draw_samples(
    pipe: Pipeline,
    output: str | Path,
    *,
    num_samples: int = 5000,
    conditions: Sequence[int | str] | None = None,
    num_inference_steps: int | None = None,
    call: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    process_index: int = 0,
    num_processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Draw this process's share of an evaluation's samples, as far as they are not there yet.

    Args:
        pipe: See `evaluate_pipeline`, as for the next seven.
        output: The evaluation's folder.
        num_samples: How many pictures are drawn by all processes together.
        conditions: Classes or prompts in turn.
        num_inference_steps: Of each picture.
        call: Further arguments of the pipeline's call.
        batch_size: Samples in a call of the pipeline and in a file.
        seed: Of all samples.
        process_index: This process. It makes the files `process_index`, `process_index + num_processes`, ...
        num_processes: How many take part.
        progress: Whether a bar is shown.

    Returns:
        What the samples depend on, as `run.json` has it.

    Raises:
        ValueError: If the folder holds another evaluation, or the pipeline draws no pictures.
    """
    wanted = conditions_for(pipe, num_samples, conditions)
    settings = _settings(pipe, conditions, num_inference_steps, call or {}, batch_size, seed)
    with RunFolder(output, "evaluate", process_index=process_index, num_processes=num_processes) as run:
        run.begin(settings, earlier=EARLIER_PLAN)
        _draw_share(run, pipe, wanted, settings, call or {}, progress)
    return settings


def _draw_share(
    run: RunFolder,
    pipe: Pipeline,
    wanted: list[Any],
    settings: dict[str, Any],
    call: Mapping[str, Any],
    progress: bool,
) -> None:
    """Draw the samples of this process that are not there yet."""
    batch_size, num_samples = settings["batch_size"], len(wanted)
    parts = [range(start, min(start + batch_size, num_samples)) for start in range(0, num_samples, batch_size)]
    own = parts[run.process_index :: run.num_processes]
    with tqdm(total=sum(map(len, own)), disable=not progress, unit="image", desc="samples") as bar:
        for part in own:
            file = _file(run.folder, part.start // batch_size)
            if _rows_in(file) < len(part):
                pixels = generate(
                    pipe,
                    [wanted[i] for i in part],
                    sample_seeds(settings["seed"], part),
                    num_inference_steps=settings["num_inference_steps"],
                    output_type="pt",
                    batch_size=batch_size,
                    call=call,
                )
                _save(file, pixels)
            bar.update(len(part))


def sample_seeds(seed: int, numbers: Sequence[int]) -> list[int]:
    """The seed of each sample's noise."""
    return [numbered_seed(seed, i) for i in numbers]


def drawn_pictures(output: str | Path, num_samples: int | None = None) -> Iterator[Tensor]:
    """The drawn pictures of an evaluation's folder in their order, bytes of shape `(C, H, W)`.

    Args:
        output: The evaluation's folder.
        num_samples: How many, from the first; None is all.
    """
    remaining = num_samples
    for file in sorted(Path(output).glob("samples/*.safetensors")):
        images = load_file(file)["images"][:remaining]
        if remaining is not None:
            remaining -= len(images)
        yield from images


def measure(generated: ImageFeatures, reference: Reference) -> tuple[dict[str, float], dict[str, str]]:
    """All metrics that features and reference give, and why the others are missing.

    Args:
        generated: Of the drawn pictures.
        reference: The real ones.
    """
    metrics: dict[str, float] = {}
    left_out: dict[str, str] = {}
    metrics["frechet_distance"] = frechet_distance(FeatureStatistics.of(generated.features), reference.statistics)
    if generated.spatial is None:
        left_out["spatial_frechet_distance"] = "the features have no spatial part"
    elif reference.spatial_statistics is None:
        left_out["spatial_frechet_distance"] = "the reference has no statistics of spatial features"
    else:
        statistics = FeatureStatistics.of(generated.spatial)
        metrics["spatial_frechet_distance"] = frechet_distance(statistics, reference.spatial_statistics)
    try:
        if generated.logits is None:
            raise ValueError("the features have no classes")
        scores = inception_score(generated.logits)
        metrics |= dict(zip(("inception_score", "inception_score_std"), scores, strict=True))
    except ValueError as error:
        left_out["inception_score"] = str(error)
    try:
        if reference.features is None:
            raise ValueError("the reference has statistics only, no pictures")
        scores = precision_recall(generated.features, reference.features)
        metrics |= dict(zip(("precision", "recall"), scores, strict=True))
    except ValueError as error:
        left_out |= dict.fromkeys(("precision", "recall"), str(error))
    return metrics, left_out


def _settings(
    pipe: Pipeline,
    conditions: Sequence[int | str] | None,
    num_inference_steps: int | None,
    call: Mapping[str, Any],
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """What the samples depend on, as JSON has it. Numbers of processes and samples are not among it."""
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    config = {name: value for name, value in pipe.scheduler.config.items() if not name.startswith("_")}
    conditions = None if conditions is None else list(conditions)
    text = json.dumps(conditions)
    settings = {
        "pipeline": type(pipe).__name__,
        "weights": _digest(pipe),
        "scheduler": {"class": type(pipe.scheduler).__name__, **config},
        "num_inference_steps": num_inference_steps,
        "call": dict(call),
        # Of many prompts only a fingerprint.
        "conditions": conditions if len(text) < 1000 else hashlib.sha256(text.encode()).hexdigest(),
        "batch_size": batch_size,
        "seed": seed,
    }
    if (boundary := pipe.config.get("boundary_ratio")) is not None:
        settings["boundary_ratio"] = boundary
    return json.loads(json.dumps(settings, default=str))


def _digest(pipe: Pipeline) -> str:
    """A fingerprint of the weights, from a few of each: a model that was trained further has another one."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if not isinstance(component, nn.Module):
            continue
        for key, value in component.state_dict().items():
            digest.update(f"{name}.{key} {tuple(value.shape)} {value.dtype}".encode())
            if not value.is_meta:
                flat = value.detach().flatten()
                digest.update(flat[:: max(1, flat.numel() // 64)].float().cpu().numpy().tobytes())
        # What the weights do not tell, where there is any.
        for others in (active_adapters(component), cache_settings(component)):
            if others:
                digest.update(repr(others).encode())
    return digest.hexdigest()


def _file(folder: Path, number: int) -> Path:
    return folder / "samples" / f"samples-{number:05d}.safetensors"


def _rows_in(file: Path) -> int:
    """Pictures in a file; none where it is missing or torn."""
    try:
        with safe_open(file, "pt") as opened:
            return opened.get_slice("images").get_shape()[0]
    except (OSError, SafetensorError):
        return 0


def _save(file: Path, pixels: Tensor) -> None:
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        raise ValueError(f"`pipe` must draw pictures of shape (B, 1 or 3, H, W), got {tuple(pixels.shape)}.")
    check_finite("pixels", pixels, f"the samples of {str(file)!r}", SAMPLING_REMEDY)
    files.write_tensors(file, {"images": (pixels.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)})


def _grid(pipe: Any, output: str | Path, conditions: list[Any], num_inference_steps: int | None) -> Image.Image:
    """A row for each condition, or the first samples in rows where there are too many conditions for that."""
    labels = class_names(pipe)
    is_named = len(set(conditions)) <= ROWS
    number = COLUMNS * (len(set(conditions)) if is_named else ROWS)
    rows: dict[Any, list[Image.Image]] = {}
    for i, image in enumerate(drawn_pictures(output, min(number, len(conditions)))):
        picture = Image.fromarray(image.expand(3, -1, -1).permute(1, 2, 0).numpy())
        picture.thumbnail((LARGEST, LARGEST))
        rows.setdefault(conditions[i] if is_named else i // COLUMNS, []).append(picture)
    names = [str(labels.get(each, each))[:LETTERS] if is_named else "" for each in rows]
    title = "samples" if num_inference_steps is None else f"{num_inference_steps} steps"
    first = next(iter(rows.values()))[0]
    return image_grid({title: list(rows.values())}, names, scale=2 if first.width < SMALL else 1)
