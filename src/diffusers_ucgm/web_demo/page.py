"""The page: what a visitor chooses, and the pictures and the plot that follow from it."""

import html
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import gradio as gr

from diffusers_ucgm.console import is_own

from .models import ModelHolder, ServedModel
from .pictures import MOST_CALLS, NUM_IMAGES, draw_picture
from .quality import BUDGETS, MOST_SAMPLES, measure_quality, num_measured_calls


__all__ = ["CSS", "THEME", "demo_page"]

TITLE = "diffusers-ucgm"
INTRODUCTION = "Two solvers draw from the same noise: with few network calls they differ, with many they agree."
# The system's fonts: those of a theme may be fetched from elsewhere.
THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue=gr.themes.colors.blue
)
CSS = "#left-picture img, #right-picture img { image-rendering: pixelated }"
# The page's names of the arguments that errors are about.
LABELS = {
    "calls": "Network calls",
    "class": "Class",
    "classes": "Classes",
    "class_labels": "Class",
    "guidance": "Guidance scale",
    "guidance_scale": "Guidance scale",
    "model": "Model",
    "num_images": "Images",
    "num_samples": "Samples",
    "prompt": "Prompt",
    "prompts": "Prompts",
    "seed": "Seed",
    "solver": "Solver",
}
# All events take turns at the one model, and get any value that somebody sends: Gradio's own checks name no control.
EVENTS: Any = {"concurrency_id": "model", "concurrency_limit": 1, "preprocess": False}
# Visitors that may wait for their turn; another one is asked to come back.
MOST_WAITING = 16

# The components of the page by name, of which each class has its own events; and what components show.
Components = dict[str, Any]
Settings = dict[str, dict[str, Any]]


def demo_page(holder: ModelHolder) -> gr.Blocks:
    """The page, which is not served yet, over the model that a holder has."""
    with holder.use(holder.start) as model:
        settings = _settings(model)
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {TITLE}\n{INTRODUCTION}")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                controls = {**_model_controls(holder), **_common_controls(settings)}
            with gr.Column(scale=3, min_width=480):
                with gr.Tab("Side by side"):
                    controls |= _picture_controls(settings)
                with gr.Tab("Quality against calls"):
                    controls |= _quality_controls(settings)
        _connect_loading(holder, controls, list(settings))
        _connect_drawing(holder, controls)
        _connect_measuring(holder, controls)
    return page.queue(max_size=MOST_WAITING)


def _settings(model: ServedModel) -> Settings:
    """What controls show for a model, by the control."""
    classes, prompts = model.classes, model.prompts
    solvers = {"choices": list(model.ways)}
    return {
        "left": {**solvers, "value": model.solvers[0]},
        "right": {**solvers, "value": model.solvers[1]},
        "guidance": {"value": model.guidance, "visible": model.takes_guidance},
        "prompt": {"value": next(iter(prompts), ""), "visible": not classes},
        "class": {"choices": classes, "value": next(iter(classes), None), "visible": bool(classes)},
        "calls": {"value": model.num_calls},
        "prompts": {"value": "\n".join(prompts), "visible": not classes},
        "classes": {"choices": classes, "value": classes[:4], "visible": bool(classes)},
    }


def _model_controls(holder: ModelHolder) -> Components:
    info = "A bundled model, or the folder of a pipeline on this machine." if holder.takes_folders else None
    return {
        "name": gr.State(holder.start),
        "model": gr.Dropdown(
            holder.names,
            value=holder.start,
            label="Model",
            info=info,
            allow_custom_value=holder.takes_folders,
            elem_id="model",
        ),
        "load": gr.Button("Load", elem_id="load"),
        "status": gr.Markdown(_status(holder.start), elem_id="status"),
    }


def _common_controls(settings: Settings) -> Components:
    return {
        "left": gr.Dropdown(**settings["left"], label="Left solver", elem_id="left"),
        "right": gr.Dropdown(**settings["right"], label="Right solver", elem_id="right"),
        "guidance": gr.Number(
            **settings["guidance"],
            label="Guidance scale",
            info="Leave it empty for the pipeline's own.",
            elem_id="guidance",
        ),
        "seed": gr.Number(0, label="Seed", info="The seed decides the noise of both sides.", elem_id="seed"),
    }


def _picture_controls(settings: Settings) -> Components:
    # An unknown class is refused with a message of this package, which names the nearest one.
    controls: Components = {
        "prompt": gr.Textbox(**settings["prompt"], label="Prompt", max_lines=3, elem_id="prompt"),
        "class": gr.Dropdown(**settings["class"], label="Class", allow_custom_value=True, elem_id="class"),
    }
    with gr.Row():
        controls["calls"] = gr.Slider(
            1, MOST_CALLS, **settings["calls"], step=1, label="Network calls", elem_id="calls"
        )
        controls["num_images"] = gr.Radio(NUM_IMAGES, value=4, label="Images", elem_id="num-images")
    controls["draw"] = gr.Button("Draw", variant="primary", elem_id="draw")
    with gr.Row():
        for side in ("left", "right"):
            with gr.Column(min_width=200):
                controls[f"{side}_picture"] = _image(f"{side}-picture")
                controls[f"{side}_caption"] = gr.Markdown(elem_id=f"{side}-caption")
    return controls


def _quality_controls(settings: Settings) -> Components:
    controls: Components = {
        "prompts": gr.Textbox(
            **settings["prompts"], label="Prompts, one on each line", lines=4, max_lines=8, elem_id="prompts"
        ),
        "classes": gr.Dropdown(
            **settings["classes"], label="Classes", multiselect=True, allow_custom_value=True, elem_id="classes"
        ),
    }
    with gr.Row():
        controls["budget"] = gr.Radio(BUDGETS, value=BUDGETS[0], label="Largest number of calls", elem_id="budget")
        controls["num_samples"] = gr.Slider(2, MOST_SAMPLES, value=4, step=1, label="Samples", elem_id="num-samples")
    controls["measure"] = gr.Button("Measure", variant="primary", elem_id="measure")
    controls["plot"] = _image("plot")
    controls["table"] = gr.Markdown(elem_id="table")
    return controls


def _image(elem_id: str) -> gr.Image:
    # The button that is left out would upload to the Hub.
    return gr.Image(
        format="png", interactive=False, show_label=False, buttons=["download", "fullscreen"], elem_id=elem_id
    )


def _status(name: str) -> str:
    return f"Loaded: `{name}`"


def _connect_loading(holder: ModelHolder, controls: Components, names: Sequence[str]) -> None:
    """Let the button load the model, and the controls show what it takes."""
    shown = ("left_picture", "left_caption", "right_picture", "right_caption", "plot", "table")

    def load(name: str, progress: gr.Progress = gr.Progress()) -> list[Any]:  # noqa: B008
        with _messages():
            progress(0.0, desc="Loading")
            with holder.use(name) as model:
                settings = _settings(model)
        updates = [gr.update(**settings[name]) for name in names]
        return [model.name, _status(model.name), *updates, *(None for _ in shown)]

    outputs = [controls[name] for name in ("name", "status", *names, *shown)]
    progress_on = [controls[name] for name in ("left_picture", "right_picture", "plot")]
    controls["load"].click(load, controls["model"], outputs, show_progress_on=progress_on, **EVENTS)


def _connect_drawing(holder: ModelHolder, controls: Components) -> None:
    """Let the button draw both pictures."""

    def draw(
        name: str,
        left: str,
        right: str,
        guidance: float | None,
        seed: int,
        prompt: str,
        label: str,
        calls: int,
        num_images: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> list[Any]:
        def show(number: int) -> None:
            _show_calls(progress, number, 2 * calls)

        with _messages(), holder.use(name, show) as model:
            condition = label if model.classes else prompt
            pictures = [
                draw_picture(
                    model, solver, condition, calls=calls, guidance=guidance, seed=seed, num_images=num_images
                )
                for solver in (left, right)
            ]
        return [part for picture in pictures for part in (picture.image, picture.caption)]

    inputs = ("name", "left", "right", "guidance", "seed", "prompt", "class", "calls", "num_images")
    outputs = ("left_picture", "left_caption", "right_picture", "right_caption")
    gr.on(
        [controls["draw"].click, controls["prompt"].submit],
        draw,
        [controls[name] for name in inputs],
        [controls[name] for name in outputs],
        show_progress_on=[controls["left_picture"], controls["right_picture"]],
        **EVENTS,
    )


def _connect_measuring(holder: ModelHolder, controls: Components) -> None:
    """Let the button measure both solvers."""

    def measure(
        name: str,
        left: str,
        right: str,
        guidance: float | None,
        seed: int,
        prompts: str | None,
        labels: list[str] | None,
        budget: int,
        num_samples: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, str]:
        def show(number: int) -> None:
            _show_calls(progress, number, num_measured_calls((left, right), budget))

        with _messages(), holder.use(name, show) as model:
            conditions = (labels if model.classes else _lines(prompts)) or []
            found = measure_quality(
                model,
                (left, right),
                conditions,
                calls=budget,
                num_samples=num_samples,
                guidance=guidance,
                seed=seed,
            )
        return found.plot, found.text

    inputs = ("name", "left", "right", "guidance", "seed", "prompts", "classes", "budget", "num_samples")
    outputs = [controls["plot"], controls["table"]]
    controls["measure"].click(
        measure, [controls[name] for name in inputs], outputs, show_progress_on=controls["plot"], **EVENTS
    )


def _show_calls(progress: gr.Progress, number: int, total: int) -> None:
    """Show how many of a number of network calls have been made."""
    progress((min(number, total), total), unit="network calls")


def _lines(prompts: str | None) -> Any:
    """The lines of a text that are not empty; another value as it is, to be refused."""
    return [line for line in prompts.splitlines() if line.strip()] if isinstance(prompts, str) else prompts


@contextmanager
def _messages() -> Iterator[None]:
    """Show an error as a message on the page; what is nobody's mistake is also printed with its traceback."""
    try:
        yield
    except Exception as error:
        text = str(error) or type(error).__name__
        text = re.sub(r"`(\w+)`", lambda found: LABELS.get(found[1], found[0]), text)
        is_expected = is_own(error) or isinstance(error, OSError)
        raise gr.Error(html.escape(text), print_exception=not is_expected) from error
