"""The bundled text-to-image model by number of steps, guidance and LoRA: does an image show what its prompt says?

    python benchmarks/text_to_image.py --data runs/emoji/data --results benchmarks/results/emoji/text-to-image.json

`--data` is what `examples/train_emoji.py prepare` writes.
Every row generates images of the same prompts from the same noise: of subjects that training saw, of combinations of
subject and skin tone, gender or style that it did not see, and of whole subjects that it did not see. "agreement" is
how often an image's own prompt is the most similar among 20 of its kind, beside that of the real images of the same
prompts; "distance" is the Frechet distance to the real images that were held out, in the features of that model;
"diversity" is the mean of 1 - cosine between the features of images of one prompt. Finished rows are kept in
`<output>/<row>/results.json`, and a stopped run goes on; two processes can share the rows by `--rows`, and a third
without it then makes the table. `--picture euler-20-2 images.png` shows an image of every prompt of a row.
"""

import argparse
import random
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from results_file import PrintedTable, add_results_option, keep

from diffusers_ucgm import UCGMScheduler
from diffusers_ucgm.files import write_text
from diffusers_ucgm.generation.prompts import Prompt, read_prompts
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline
from diffusers_ucgm.image_metrics.samples import read_images
from diffusers_ucgm.loading import load_pipeline, load_pipeline_lora


KINDS = ("seen", "combination", "subject")


class Row(NamedTuple):
    """A way of sampling; the guidance scale is that of `ZImagePipeline`, one less than elsewhere."""

    sampler: str
    steps: int
    guidance: float

    @property
    def folder(self) -> str:
        return f"{self.sampler}-{self.steps}-{self.guidance:g}".lower().replace(" ", "-")


ROWS = (
    *(Row("Euler", steps, 2.0) for steps in (2, 4, 8, 12, 20)),
    *(Row("UCGM-S", steps, 2.0) for steps in (2, 4, 8, 12, 20)),
    Row("UCGM-S", 20, 0.0),
    Row("UCGM-S", 20, 5.0),
    *(Row("LoRA", steps, 0.0) for steps in (1, 2, 4, 8)),
)


def rows_of(tuned: list[str]) -> dict[str, Row]:
    """All rows by their folders, those of further tuned pipelines included."""
    names = [each.partition("=")[0] for each in tuned]
    rows = [*ROWS, *(Row(name, steps, 0.0) for name in names for steps in (1, 2, 4, 8))]
    return {row.folder: row for row in rows}


def prompts_of(data: Path, number: int) -> list[Prompt]:
    """A number of prompts of each kind, drawn by a fixed seed."""
    known = [*read_prompts(data / "train" / "metadata.jsonl"), *read_prompts(data / "test" / "metadata.jsonl")]
    drawn = []
    for kind in KINDS:
        of_kind = [each for each in known if each.kind == kind]
        drawn += random.Random(0).sample(of_kind, min(number, len(of_kind)))
    return drawn


def pipeline_of(row: Row, args: argparse.Namespace) -> Any:
    tuned = dict(each.partition("=")[::2] for each in args.tuned)
    pipe: Any = load_pipeline(tuned.get(row.sampler, args.model))
    if row.sampler == "LoRA":
        load_pipeline_lora(pipe, args.lora)
    elif row.sampler == "UCGM-S":
        pipe.scheduler = UCGMScheduler.from_config(pipe.scheduler.config)
    return pipe


def measured(row: Row, args: argparse.Namespace, prompts: list[Prompt]) -> dict[str, Any]:
    result = evaluate_pipeline(
        pipeline_of(row, args),
        args.data / "test",
        args.output / row.folder,
        features=str(args.text_image_model),
        text_image_model=args.text_image_model,
        num_samples=len(prompts) * args.images,
        conditions=prompts,
        num_inference_steps=row.steps,
        call={"guidance_scale": row.guidance},
        batch_size=args.batch_size,
        progress=False,
    )
    assert result is not None
    return result.to_dict()


def cells(result: dict[str, Any], images: str) -> Iterator[str]:
    """The agreement of each kind, and the diversity of all."""
    scores = {each["kind"]: each["metrics"] for each in result["text_image"]["scores"] if each["images"] == images}
    for kind in KINDS:
        yield f"{scores[kind]['text_agreement']:.3f}"
    yield f"{scores[None]['diversity']:.3f}" if "diversity" in scores[None] else ""


def seconds_of(file: Path, elapsed: float) -> str:
    """The seconds that a row took when it ran, which stay in a file: a finished row is only read."""
    if not file.exists():
        write_text(file, f"{elapsed:.0f}")
    return file.read_text()


def draw_picture(file: Path, folder: Path, prompts: list[Prompt], columns: int = 10) -> None:
    """The first image of each prompt above its prompt, kind by kind.

    Args:
        file: The picture.
        folder: The results of a row, whose samples take the prompts in turn.
        prompts: Those of `prompts_of`.
        columns: Images beside each other.
    """
    figure = Figure(figsize=(columns, 1.45 * len(prompts) / columns))
    axes = figure.subplots(-(-len(prompts) // columns), columns).ravel()
    for panel in axes:
        panel.axis("off")
    for panel, image, prompt in zip(axes, read_images(folder, len(prompts)), prompts, strict=False):
        panel.imshow(image.permute(1, 2, 0).numpy())
        panel.set_title(textwrap.fill(prompt.text, 20), fontsize=5, y=-0.02, pad=0.0, va="top")
    figure.subplots_adjust(left=0.0, right=1.0, bottom=0.03, top=1.0, wspace=0.05, hspace=0.4)
    figure.savefig(file, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--text-image-model", type=Path, default=Path(__file__).parent / "emoji-towers")
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--lora", default="emoji-few-step")
    parser.add_argument(
        "--tuned", nargs="+", default=[], metavar="NAME=FOLDER", help="few-step pipelines, as rows too"
    )
    parser.add_argument("--prompts-of-a-kind", type=int, default=80)
    parser.add_argument("--images", type=int, default=2, help="of each prompt")
    parser.add_argument("--batch-size", type=int, default=40)
    parser.add_argument("--rows", nargs="+", help="folders of rows, such as lora-4-0; all by default")
    parser.add_argument("--output", type=Path, default=Path("runs/text-to-image"))
    parser.add_argument("--picture", nargs=2, metavar=("ROW", "FILE"), help="an image of each prompt of a row")
    add_results_option(parser)
    args = parser.parse_args()
    rows = rows_of(args.tuned)
    if unknown := set(args.rows or ()) - set(rows):
        parser.error(f"--rows must be of {[*rows]}, got {sorted(unknown)}")
    prompts = prompts_of(args.data, args.prompts_of_a_kind)
    table = PrintedTable("sampler", "steps", "guidance", *KINDS, "diversity", "distance", "seconds")
    is_first = True
    for folder in args.rows or rows:
        row = rows[folder]
        started = time.perf_counter()
        result = measured(row, args, prompts)
        seconds = seconds_of(args.output / f"{row.folder}.seconds", time.perf_counter() - started)
        if is_first:
            table.add("real images", "", "", *cells(result, "real"), "", "")
            is_first = False
        figures = (f"{result['metrics']['frechet_distance']:.4f}", seconds)
        table.add(row.sampler, f"{row.steps}", f"{row.guidance:g}", *cells(result, "generated"), *figures)
    write_text(args.output / "table.md", f"{table.markdown()}\n")
    if args.picture is not None:
        row, file = args.picture
        draw_picture(Path(file), args.output / row, prompts)
    title = "The bundled text-to-image model by sampler, steps, guidance and LoRA"
    keep(args.results, title, {"table": table.markdown()})


if __name__ == "__main__":
    main()
