"""The options of `ucgm evaluate`, and those of every command that takes a reference."""

import pytest
from command_calls import arguments_of, default_of, parsed

from diffusers_ucgm.generation.prompts import Prompt
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline


EVALUATE = ["evaluate", "--model", "fashion-mnist", "--reference"]


def test_each_option_reaches_the_evaluation(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    words = ["--output", tmp_path / "out", "--features", "fashion-mnist-classifier", "--num-samples", "77"]
    words += ["--labels", "3", "Bag", "--steps", "5", "--guidance-scale", "2.5", "--call", "guidance_rescale=0.5"]
    words += ["--batch-size", "9", "--seed", "4", "--split", "test", "--size", "48", "--image-column", "photo"]
    words += ["--background", "black", "--allow-remote-files", "--save-reference", tmp_path / "r.npz"]
    found = arguments_of(
        monkeypatch,
        "image_metrics.evaluate:evaluate_pipeline",
        *(*EVALUATE, tmp_path / "real", *words, "--overwrite-output-dir", "--device", "cpu"),
        *("--text-image-model", tmp_path / "real"),
    )
    assert type(found.pop("pipe")).__name__ == "UCGMPipeline"
    assert found.pop("state").num_processes == 1
    assert found == {
        "reference": str(tmp_path / "real"),
        "output": str(tmp_path / "out"),
        "features": "fashion-mnist-classifier",
        "num_samples": 77,
        "conditions": [3, "Bag"],
        "num_inference_steps": 5,
        "call": {"guidance_scale": 2.5, "guidance_rescale": 0.5},
        "batch_size": 9,
        "seed": 4,
        "text_image_model": str(tmp_path / "real"),
        "split": "test",
        "size": 48,
        "image_column": "photo",
        "background": "black",
        "allow_remote_files": True,
        "reference_file": str(tmp_path / "r.npz"),
        "overwrite_output_dir": True,
    }


@pytest.mark.parametrize(
    "name",
    [
        "features",
        "num_samples",
        "batch_size",
        "seed",
        "split",
        "size",
        "image_column",
        "background",
        "text_image_model",
    ],
)
def test_defaults_are_those_of_the_function(name):
    assert getattr(parsed(*EVALUATE, "real"), name) == default_of(evaluate_pipeline, name)


def test_prompts_keep_what_their_file_says_of_them(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "prompts.jsonl").write_text('{"text": "a cat", "kind": "animals", "file_name": "cat.png"}')
    words = [*EVALUATE, tmp_path / "real", "--prompts", tmp_path / "prompts.jsonl", "--device", "cpu"]
    found = arguments_of(monkeypatch, "image_metrics.evaluate:evaluate_pipeline", *words)
    assert found["conditions"] == [Prompt("a cat", "animals", tmp_path / "cat.png")]


def test_an_evaluation_needs_a_reference_and_other_commands_say_what_it_is_for(capsys):
    with pytest.raises(SystemExit):
        parsed(*EVALUATE[:-1])
    assert "the following arguments are required: --reference" in capsys.readouterr().err
    for words, purpose in (
        (["compare", "--model", "m"], "for a Fréchet distance too: folder of images"),
        (["tune-sampler", "--model", "m", "--steps", "4"], "for --objective frechet: folder of images"),
    ):
        assert parsed(*words).reference is None
        with pytest.raises(SystemExit):
            parsed(*words, "--help")
        assert purpose in " ".join(capsys.readouterr().out.split())
