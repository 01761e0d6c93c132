"""Evaluation of any pipeline: generate samples, compare them with real images, and write down the metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from diffusers_ucgm import files
from diffusers_ucgm.constraints import check
from diffusers_ucgm.contracts import Pipeline
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.generation.prompts import Prompt, prompt_texts
from diffusers_ucgm.run_folder import RunFolder

from .arguments import EVALUATE_ARGUMENTS
from .features import FeatureNetwork, ImageFeatures, features_of, load_features
from .prompt_scores import GENERATED, PromptJudge, check_prompts
from .references import Reference, ReferenceSource, save_reference
from .requirements import check_call, check_outputs, check_reference_fits
from .samples import EARLIER_PLAN, SamplePlan, read_images, sample_grid
from .statistics import FeatureStatistics, frechet_distance, inception_score, precision_recall
from .text_image_model import TextImageModel


__all__ = ["EvaluationResult", "evaluate_pipeline", "measure"]

RESULTS, GRID = "results.json", "samples.png"
PACKAGES = ("diffusers-ucgm", "diffusers", "torch", "torchmetrics")


@dataclass(frozen=True)
class EvaluationResult:
    """The metrics of an evaluation, and how they came about.

    Attributes:
        metrics: `frechet_distance`, `spatial_frechet_distance`, `inception_score` with `inception_score_std`,
            `precision` and `recall`, as far as features and reference give them; with a model of images and texts also
            `text_agreement`, `text_similarity` and `diversity`.
        left_out: The reason why each of the others is missing.
        num_samples: The number of generated images.
        features: The name of the feature network. With "inception" the distances are FID and sFID.
        reference: Source, split, size, number of images and those that could not be read.
        settings: The settings that the generated images depend on.
        versions: The versions of the packages that are installed.
        text_image: The model of images and texts, the numbers of prompts, and the `PromptScores` of generated and
            real images by the kind of prompt; None without a model.
    """

    metrics: dict[str, float]
    left_out: dict[str, str]
    num_samples: int
    features: str
    reference: JsonObject
    settings: JsonObject
    versions: dict[str, str]
    text_image: JsonObject | None = None

    def to_dict(self) -> JsonObject:
        """All of it, in the form that JSON holds; without `text_image` where there is none."""
        return {name: value for name, value in asdict(self).items() if name != "text_image" or value is not None}


def evaluate_pipeline(
    pipe: Pipeline,
    reference: str | Path | Reference,
    output: str | Path,
    *,
    features: str | FeatureNetwork = "inception",
    num_samples: int = 5000,
    conditions: Sequence[int | str | Prompt] | None = None,
    num_inference_steps: int | None = None,
    call: Mapping[str, object] | None = None,
    batch_size: int = 64,
    seed: int = 0,
    text_image_model: str | Path | None = None,
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
    """Generate samples and measure them, or go on with an evaluation that was stopped.

    Args:
        pipe: A `UCGMPipeline`, or a stock pipeline that takes a `prompt` or `class_labels`. It is left as it was.
        reference: The real images, see `load_reference`, as for `split`, `size` and `image_column`.
        output: The folder of samples, `results.json` and `samples.png`. It holds one evaluation; with more
            `num_samples`, or another reference or features, the samples in it are kept.
        features: A feature network, or a name that `load_features` takes.
        num_samples: The number of samples.
        conditions: Classes or prompts in turn; None is every class equally often. A `Prompt` also has a kind and the
            file of a real image, for `text_image_model`.
        num_inference_steps: The number of steps; None is the pipeline's own default.
        call: Further arguments of the pipeline's call, such as `guidance_scale`.
        batch_size: Samples in a call of the pipeline and in a file.
        seed: The seed of all samples.
        text_image_model: A folder or repository of the Hub with a model of images and texts of `transformers`, which
            compares the samples with their prompts; None compares nothing.
        split: The split of the reference.
        size: The height and width of the reference's images.
        image_column: The column of the reference's images.
        background: The background of transparent images, see `load_reference`, as for the next.
        allow_remote_files: Whether rows of the reference may name files outside its folder.
        reference_file: The `.npz` file for the reference's statistics; None writes none.
        overwrite_output_dir: Whether what another run left in the folder is removed; files of others stay.
        state: accelerate's state of several processes that share the sampling; None is one process.
        progress: Whether bars are shown.

    Returns:
        The result, in the main process; None in the others.

    Raises:
        ValueError: If the folder holds another evaluation, the pipeline generates no images, or `text_image_model`
            cannot compare them with prompts.
        OSError: If a file cannot be written.
        RuntimeError: If another process works in the folder.
    """
    check(EVALUATE_ARGUMENTS, locals())
    is_main = state is None or state.is_main_process
    if is_main:
        check_outputs(output, reference_file)
    check_call(pipe, num_inference_steps, call or {})
    texts = prompt_texts(conditions)
    plan = SamplePlan(pipe, num_samples, texts, num_inference_steps, call or {}, batch_size, seed)
    prompts = [] if text_image_model is None else check_prompts(pipe, conditions)
    measuring = None
    if is_main:
        source = ReferenceSource(reference, split, size, image_column, background, allow_remote_files)
        device = (pipe.device if state is None else state.device) or "cpu"
        judge = _judge(text_image_model, prompts, num_samples, source, batch_size, device)
        measuring = _Measuring.prepare(source, features, device, reference_file, batch_size, progress, judge)
    settings = plan.settings()
    with _run_folder(output, state) as run:
        run.begin_together(settings, state, overwrite=overwrite_output_dir, earlier=EARLIER_PLAN)
        plan.generate_missing(run, progress and is_main)
        if state is not None:
            state.wait_for_everyone()
        if measuring is None:
            # It does not wait for the metrics: a process group times out after a few minutes.
            return None
        result = measuring.evaluate(plan, settings, output)
        files.write_image(
            Path(output) / GRID, sample_grid(pipe, output, plan.sample_conditions(), num_inference_steps)
        )
        files.write_json(Path(output) / RESULTS, result.to_dict())
        return result


def measure(generated: ImageFeatures, reference: Reference) -> tuple[dict[str, float], dict[str, str]]:
    """All metrics that features and reference give, and the reasons why the others are missing.

    Args:
        generated: The features of the generated images.
        reference: The real images.
    """
    metrics: dict[str, float] = {}
    left_out: dict[str, str] = {}
    metrics["frechet_distance"] = frechet_distance(FeatureStatistics.of(generated.features), reference.statistics)
    for names, compute in OPTIONAL_METRICS.items():
        try:
            metrics |= compute(generated, reference)
        except (ValueError, ImportError) as error:
            left_out |= dict.fromkeys(names, str(error))
    return metrics, left_out


def _spatial_distance(generated: ImageFeatures, reference: Reference) -> dict[str, float]:
    if generated.spatial is None:
        raise ValueError("the features have no spatial part")
    if reference.spatial_statistics is None:
        raise ValueError("the reference has no statistics of spatial features")
    statistics = FeatureStatistics.of(generated.spatial)
    return {"spatial_frechet_distance": frechet_distance(statistics, reference.spatial_statistics)}


def _inception_score(generated: ImageFeatures, reference: Reference) -> dict[str, float]:
    if generated.logits is None:
        raise ValueError("the features have no classes")
    mean, deviation = inception_score(generated.logits)
    return {"inception_score": mean, "inception_score_std": deviation}


def _precision_recall(generated: ImageFeatures, reference: Reference) -> dict[str, float]:
    if reference.features is None:
        raise ValueError("the reference has statistics only, no images")
    precision, recall = precision_recall(generated.features, reference.features)
    return {"precision": precision, "recall": recall}


# The metrics that not all features and references give, by the names under which they are reported as missing. Each
# function raises ValueError with the reason.
OPTIONAL_METRICS = {
    ("spatial_frechet_distance",): _spatial_distance,
    ("inception_score",): _inception_score,
    ("precision", "recall"): _precision_recall,
}


@dataclass(frozen=True)
class _Measuring:
    """The part of an evaluation that the main process does alone: features, reference and metrics."""

    source: ReferenceSource
    network: FeatureNetwork
    features: str
    reference_file: str | Path | None
    batch_size: int
    progress: bool
    judge: PromptJudge | None = None

    @classmethod
    def prepare(
        cls,
        source: ReferenceSource,
        features: str | FeatureNetwork,
        device: str | torch.device,
        reference_file: str | Path | None,
        batch_size: int,
        progress: bool,
        judge: PromptJudge | None,
    ) -> "_Measuring":
        """Load the features and check the reference, before hours of sampling: what they need may be missing."""
        if judge is not None and features == judge.model.name:
            network = judge.model.images
        else:
            network = load_features(features, device) if isinstance(features, str) else features
        name = features if isinstance(features, str) else getattr(features, "__name__", "own")
        check_reference_fits(source, network, name)
        return cls(source, network, name, reference_file, batch_size, progress, judge)

    def evaluate(self, plan: SamplePlan, settings: JsonObject, output: str | Path) -> EvaluationResult:
        """The metrics of the samples in a folder."""
        reference = self.source.load(self.network, self.features, self.batch_size, self.progress)
        if self.reference_file is not None:
            save_reference(self.reference_file, reference, self.features)
        description = {
            **self.source.description(),
            "num_samples": reference.num_samples,
            "skipped": list(reference.skipped),
        }
        generated = self._features_of(self.network, plan, output)
        metrics, left_out = measure(generated, reference)
        found = None
        if self.judge is not None:
            same = self.judge.model.images is self.network
            own = generated if same else self._features_of(self.judge.model.images, plan, output)
            found = self.judge.results(own.features)
            overall = _overall(found)
            metrics, left_out = metrics | overall["metrics"], left_out | overall["left_out"]
        return EvaluationResult(
            metrics, left_out, plan.num_samples, self.features, description, settings, _versions(), found
        )

    def _features_of(self, network: FeatureNetwork, plan: SamplePlan, output: str | Path) -> ImageFeatures:
        """The features of the samples in a folder."""
        images = tqdm(
            read_images(output, plan.num_samples),
            total=plan.num_samples,
            disable=not self.progress,
            unit="image",
            desc="features",
        )
        return features_of(network, images, self.batch_size)


def _judge(
    name: str | Path | None,
    prompts: list[Prompt],
    num_samples: int,
    source: ReferenceSource,
    batch_size: int,
    device: str | torch.device,
) -> PromptJudge | None:
    """The model that compares images with prompts, which are checked; None where no name is given."""
    if name is None:
        return None
    model = TextImageModel(str(name), device)
    judge = PromptJudge(model, prompts, num_samples, source.size, source.background, batch_size)
    judge.check()
    return judge


def _overall(text_image: JsonObject) -> JsonObject:
    """The scores of all generated images."""
    return next(each for each in text_image["scores"] if each["images"] == GENERATED and each["kind"] is None)


def _run_folder(output: str | Path, state: PartialState | None) -> RunFolder:
    """The evaluation's folder, for this process of a launch."""
    if state is None:
        return RunFolder(output, "evaluate")
    return RunFolder(output, "evaluate", process_index=state.process_index, num_processes=state.num_processes)


def _versions() -> dict[str, str]:
    """The versions of the packages, as far as they are installed."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
