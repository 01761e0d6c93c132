"""How well images match their prompts and how much they differ, generated and real ones, by the kind of prompt."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle, islice
from pathlib import Path

from PIL import Image
from torch import Tensor

from diffusers_ucgm.contracts import Pipeline, takes_classes
from diffusers_ucgm.data.image_files import open_image, reason_of
from diffusers_ucgm.data.images import prepare_image
from diffusers_ucgm.files import JsonObject
from diffusers_ucgm.generation.prompts import Prompt

from .features import features_of
from .references import pixel_bytes
from .text_agreement import CHOICES, diversity, text_matches, text_similarity
from .text_image_model import TextImageModel


__all__ = ["PromptJudge", "PromptScores", "check_prompts", "score_images", "score_real_images"]

GENERATED, REAL = "generated", "real"
# A result with a row for each of more kinds says nothing.
MOST_KINDS = 100


@dataclass(frozen=True)
class PromptScores:
    """The scores of some images.

    Attributes:
        images: "generated" or "real".
        kind: The kind of their prompts; None is all of them.
        num_images: The number of images.
        metrics: `text_agreement`, `text_similarity` and `diversity`, as far as the prompts give them.
        left_out: The reason why each of the others is missing.
    """

    images: str
    kind: str | None
    num_images: int
    metrics: dict[str, float]
    left_out: dict[str, str]


def score_images(
    images: str, image_features: Tensor, text_features: Tensor, prompts: Sequence[Prompt]
) -> list[PromptScores]:
    """The scores of all images, and of those of each kind where there are kinds.

    The text agreement searches the own prompt of an image among prompts of its kind alone; that of all images is the
    mean over those that are in a kind with enough prompts. The diversity is that of images with a text in common.

    Args:
        images: "generated" or "real".
        image_features: The features of the images, shape `(N, D)`.
        text_features: The features of the prompt of each image, shape `(N, D)`.
        prompts: The prompt of each image. Of a file that several have, one counts for the diversity.
    """
    kinds = {kind: [i for i, each in enumerate(prompts) if each.kind == kind] for kind in _kinds(prompts)}
    matches, reasons = _matches(image_features, text_features, kinds)

    def scores(kind: str | None, rows: list[int]) -> PromptScores:
        known = [matches[row] for row in rows if row in matches]
        computed: dict[str, Callable[[], float]] = {
            "text_agreement": lambda: _share(known, reasons.get(prompts[rows[0]].kind, "")),
            "text_similarity": lambda: text_similarity(image_features[rows], text_features[rows]),
            "diversity": lambda: diversity(image_features, _with_common_text(prompts, rows)),
        }
        return PromptScores(images, kind, len(rows), *_values(computed))

    groups = {kind: rows for kind, rows in kinds.items() if kind is not None}
    return [scores(None, list(range(len(prompts)))), *(scores(kind, rows) for kind, rows in groups.items())]


def _matches(
    image_features: Tensor, text_features: Tensor, kinds: Mapping[str | None, list[int]]
) -> tuple[dict[int, bool], dict[str | None, str]]:
    """Whether the image of a row matches its text, and the reason for each kind without enough texts."""
    matches: dict[int, bool] = {}
    reasons: dict[str | None, str] = {}
    for kind, rows in kinds.items():
        try:
            found = text_matches(image_features[rows], text_features[rows]).tolist()
        except ValueError as error:
            reasons[kind] = str(error)
        else:
            matches |= dict(zip(rows, found, strict=True))
    return matches, reasons


def _share(matches: Sequence[bool], reason: str) -> float:
    """The fraction of matches; where there are none, an error with the reason."""
    if not matches:
        raise ValueError(reason)
    return sum(matches) / len(matches)


def score_real_images(
    model: TextImageModel,
    prompts: Sequence[Prompt],
    size: int | tuple[int, int] | None = None,
    background: str = "white",
    batch_size: int = 64,
) -> list[PromptScores]:
    """The scores of the real images that prompts name; none where no prompt names one.

    Args:
        model: The model of images and texts.
        prompts: The prompts.
        size: See `prepare_image`, as for the next.
        background: What transparent images are composed on.
        batch_size: Images and texts in a call of the model.

    Raises:
        ValueError: If an image cannot be read.
    """
    shown = [prompt for prompt in prompts if prompt.image is not None]
    if not shown:
        return []
    features = features_of(model.images, _real_images(shown, size, background), batch_size).features
    return score_images(REAL, features, model.text_features([each.text for each in shown], batch_size), shown)


@dataclass(frozen=True)
class PromptJudge:
    """The part of an evaluation that compares images with prompts.

    Attributes:
        model: The model of images and texts.
        prompts: All prompts, which the samples take in turn.
        num_samples: The number of samples.
        size: The size that real images are scaled and cropped to; None leaves them as they are.
        background: What transparent real images are composed on.
        batch_size: Images and texts in a call of the model.
    """

    model: TextImageModel
    prompts: Sequence[Prompt]
    num_samples: int
    size: int | tuple[int, int] | None = None
    background: str = "white"
    batch_size: int = 64

    def check(self) -> None:
        """Check that prompts and real images can be read, before hours of sampling.

        Raises:
            ValueError: If the model cannot read a prompt, a real image is missing, or there are too many kinds.
        """
        if len(kinds := _kinds(self.prompts)) > MOST_KINDS:
            raise ValueError(f"`kind` must be one of at most {MOST_KINDS} groups of prompts, got {len(kinds)} groups.")
        for prompt in self._with_samples():
            if prompt.image is not None:
                _check_image(prompt.image)
        self.model.tokens([each.text for each in self.prompts])

    def results(self, image_features: Tensor) -> JsonObject:
        """The scores of generated and real images, as the results of an evaluation have them.

        Args:
            image_features: The features of the samples in their order, shape `(N, D)`.
        """
        # What is known of the real image is not known of a sample.
        prompts = [replace(each, image=None, captions=()) for each in islice(cycle(self.prompts), self.num_samples)]
        texts = self.model.text_features([each.text for each in prompts], self.batch_size)
        scores = [
            *score_images(GENERATED, image_features, texts, prompts),
            *score_real_images(self.model, self._with_samples(), self.size, self.background, self.batch_size),
        ]
        return {
            "model": self.model.name,
            "choices": CHOICES,
            "num_prompts": len(self.prompts),
            "num_used_prompts": len(self._with_samples()),
            "scores": [asdict(each) for each in scores],
        }

    def _with_samples(self) -> Sequence[Prompt]:
        """The prompts that have a sample."""
        return self.prompts[: self.num_samples]


def check_prompts(pipe: Pipeline, conditions: Sequence[int | str | Prompt] | None) -> list[Prompt]:
    """The prompts among conditions, if a pipeline takes any.

    Raises:
        ValueError: If the pipeline takes classes, or a condition is no prompt.
    """
    if takes_classes(pipe):
        raise ValueError(
            f"`text_image_model` must be None for {type(pipe).__name__}, which takes classes and no prompts."
        )
    prompts = [Prompt(each) if isinstance(each, str) else each for each in conditions or ()]
    return [each for each in prompts if isinstance(each, Prompt)]


def _kinds(prompts: Sequence[Prompt]) -> list[str | None]:
    return list(dict.fromkeys(each.kind for each in prompts))


def _with_common_text(prompts: Sequence[Prompt], rows: Sequence[int]) -> list[list[int]]:
    """The rows of images that share a text, for each text."""
    sets: dict[str, dict[Hashable, int]] = {}
    for row in rows:
        for text in dict.fromkeys([prompts[row].text, *prompts[row].captions]):
            sets.setdefault(text, {}).setdefault(prompts[row].image or row, row)
    return [list(each.values()) for each in sets.values()]


def _values(computed: dict[str, Callable[[], float]]) -> tuple[dict[str, float], dict[str, str]]:
    """What can be computed, and the reasons why the others cannot."""
    values, left_out = {}, {}
    for name, compute in computed.items():
        try:
            values[name] = compute()
        except (ValueError, ImportError) as error:
            left_out[name] = str(error)
    return values, left_out


def _check_image(file: Path) -> None:
    """Check that a file begins as an image does."""
    try:
        with Image.open(file):
            return
    # Pillow raises whatever its depths do.
    except Exception as error:
        raise _unreadable(file, error) from error


def _real_images(prompts: Sequence[Prompt], size: int | tuple[int, int] | None, background: str) -> Iterator[Tensor]:
    """The real images of prompts, bytes of shape `(3, H, W)`."""
    for prompt in prompts:
        assert prompt.image is not None
        try:
            yield pixel_bytes(prepare_image(open_image(prompt.image.read_bytes()), size, background=background))
        except Exception as error:
            raise _unreadable(prompt.image, error) from error


def _unreadable(file: Path, error: Exception) -> ValueError:
    reason = "it does not exist" if isinstance(error, FileNotFoundError) else reason_of(error)
    return ValueError(f"`file_name` must be an image that can be read, got {str(file)!r}: {reason}.")
