"""Everything that can be known is checked before the first call of the network, and before any file is left."""

import contextlib
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from diffusers_ucgm import UCGMPipeline, UCGMTrainer, UCGMTrainingConfig
from diffusers_ucgm.cli import main
from diffusers_ucgm.image_metrics.evaluate import evaluate_pipeline
from diffusers_ucgm.names import BUNDLED
from diffusers_ucgm.solver_study.compare import compare_solvers
from diffusers_ucgm.solver_study.tune import tune_sampler


FEATURES = "fashion-mnist-classifier"


@pytest.fixture(scope="module")
def pipe():
    found = UCGMPipeline.from_pretrained("fashion-mnist")
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(autouse=True)
def calls(monkeypatch, own_datasets_cache):
    """The calls of any network and autoencoder of diffusers while a test runs."""
    made = []
    from diffusers import AutoencoderKL, DiTTransformer2DModel

    for cls, name in ((DiTTransformer2DModel, "forward"), (AutoencoderKL, "encode"), (AutoencoderKL, "decode")):
        before = getattr(cls, name)

        def counted(self, *args, _before=before, **options):
            made.append(type(self).__name__)
            return _before(self, *args, **options)

        counted.__wrapped__ = before
        monkeypatch.setattr(cls, name, counted)
    return made


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with what the bad inputs name, beside which nothing may be left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_text("a file")
    for name in ("photos/Bag", "photos/Coat", "hats/Bag", "hats/Hat"):
        (tmp_path / name).mkdir(parents=True)
        Image.effect_noise((32, 32), 60).save(tmp_path / name / "0.png")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "cache.json").write_text("{}")
    Image.effect_noise((32, 32), 60).save(tmp_path / "captions" / "0.png")
    (tmp_path / "captions" / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a bag"}))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_bytes(b"no image")
    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.eye(3))
    np.savez(tmp_path / "nan.npz", mu=np.full(3, np.nan), sigma=np.eye(3))
    (tmp_path / "torn.npz").write_bytes(b"PK")
    latents, labels = torch.zeros(4, 4, 8, 8), torch.arange(4)
    save_file({"latents": latents, "class_labels": labels}, tmp_path / "good.safetensors")
    save_file({"latents": torch.zeros(4, 4, 16, 16), "class_labels": labels}, tmp_path / "large.safetensors")
    save_file({"latents": torch.zeros(4, 3, 8, 8), "class_labels": labels}, tmp_path / "channels.safetensors")
    save_file({"latents": latents, "class_labels": labels + 7}, tmp_path / "range.safetensors")
    save_file({"latents": latents + torch.nan, "class_labels": labels}, tmp_path / "nan.safetensors")
    return tmp_path


def left_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


CACHE = ["cache", "--pipeline", "fashion-mnist", "--source", "photos", "--size", "32", "--output", "out"]
TRAIN = ["train", "--pipeline", "fashion-mnist", "--data", "good.safetensors", "--output-dir", "out"]
TRAIN += ["--max-train-steps", "1", "--train-batch-size", "2"]
DOCTOR = ["doctor", *TRAIN[1:]]
EVALUATE = ["evaluate", "--model", "fashion-mnist", "--features", FEATURES, "--reference", "photos", "--output", "out"]
# Small, for the day when a check is missing.
EVALUATE += ["--num-samples", "2", "--steps", "1"]
COMPARE = [
    "compare",
    "--model",
    "fashion-mnist",
    "--num-samples",
    "2",
    "--calls",
    "2",
    "--solution-calls",
    "2",
    "--output",
    "out",
]
TUNE = ["tune-sampler", "--model", "fashion-mnist", "--steps", "2", "--solution-calls", "2", "--output", "out"]
SAMPLE = ["sample", "--output", "out.png"]
VALIDATE = ["--validation-steps", "1", "--validation-inputs"]
CONVERT = ["convert", "--preset", "edm2-s-512", "--checkpoint", "good.safetensors", "--output", "out"]
BAD = {
    "cache, size": ([*CACHE, "--size", "33"], "`size` must be a multiple of 4"),
    "cache, another size than the model's": (
        [*CACHE, "--size", "64"],
        "`size` must fit DiTTransformer2DModel, got 64",
    ),
    "cache, no size": ([*CACHE, "--size", "0"], "`size` must be at least 1"),
    "cache, captions for classes": ([*CACHE, "--source", "captions"], "must name the classes"),
    "cache, folder's option": (
        [*CACHE, "--output", "captions", "--source", "photos"],
        "argument --output: `output` must be a new folder or of a run",
    ),
    "cache, length of prompts": ([*CACHE, "--max-sequence-length", "8"], "which takes no prompts"),
    "doctor, class of a grid": ([*DOCTOR, *VALIDATE, "Bagg"], "'Bagg' is no class. Did you mean 'Bag'?"),
    "convert, output": ([*CONVERT, "--output", "plain"], "`--output` must be a folder that can be written"),
    "convert, autoencoder": ([*CONVERT, "--vae", "plain"], "must be a whole file of tensors, got 'plain'"),
    "doctor, data's option": ([*DOCTOR, "--data", "photos"], "argument --data: `folder` must be a finished cache"),
    "sample, LoRA's option": ([*SAMPLE, "--lora", "photos"], "`--lora` must hold a LoRA in a safetensors file"),
    # Not `--model`, which has the same value.
    "sample, whole model as LoRA": (
        [*SAMPLE, "--model", str(BUNDLED["fashion-mnist"]), "--lora", str(BUNDLED["fashion-mnist"])],
        "ucgm: error: `--lora` must hold a LoRA",
    ),
    "sample, a device as LoRA": ([*SAMPLE, "--lora", os.devnull], "`--lora` must be a LoRA in a safetensors file"),
    "sample, a file as model": ([*SAMPLE, "--model", "plain"], "`--model` must be the folder of a pipeline"),
    "sample, too many": ([*SAMPLE, "--num-images", "9" * 20], "`num_images` must be at most 10000"),
    "sample, no name": ([*SAMPLE, "--output", ""], "`--output` must be a file that can be written, got ''"),
    "cache, no name": ([*CACHE, "--output", ""], "`output` must be a folder that can be written, got ''"),
    "cache, a file": ([*CACHE, "--source", "plain"], "`--source` must be a folder of images"),
    "cache, unknown user": ([*CACHE, "--source", "~nobody-of-this-name"], "which does not exist"),
    "evaluate, a file as reference": ([*EVALUATE, "--reference", "plain"], "`--reference` must be a folder of images"),
    "evaluate, a file as features": (
        [*EVALUATE, "--features", "captions/cache.json"],
        "`features` must be an image model that transformers can load, got 'captions/cache.json'",
    ),
    "train, network for a pipeline": (
        [*TRAIN, "--pipeline", str(BUNDLED["fashion-mnist"] / "transformer")],
        "It holds one network, which `ucgm train --model` takes.",
    ),
    "train, pipeline for a network": (
        ["train", "--model", str(BUNDLED["fashion-mnist"]), *TRAIN[3:]],
        "It holds a whole pipeline, which `ucgm train --pipeline` takes.",
    ),
    "compare, a name twice": (
        [*COMPARE, "--scheduler", f"UCGM-S={BUNDLED['fashion-mnist'] / 'scheduler'}"],
        "`--scheduler` must have a name that no other solver has, got 'UCGM-S'",
    ),
    "recipes, steps without a name": (["recipes", "--max-train-steps", "9"], "must go with the name of a recipe"),
    "train, output's option": ([*TRAIN, "--output-dir", "plain"], "argument --output-dir: `output_dir` must be"),
    "cache, unknown class": ([*CACHE, "--source", "hats"], "'Hat' is no class"),
    "cache, label map": ([*CACHE, "--label-map", "plain"], "cannot be read"),
    "cache, output": ([*CACHE, "--output", "plain"], "`output` must be a folder that can be written"),
    "cache, no place": ([*CACHE, "--output", "/proc/x"], "`output` must be a folder that can be written"),
    "cache, float16": ([*CACHE, "--torch-dtype", "fp16"], "`--torch-dtype` must be fp32 or bf16 on a CPU"),
    "train, repository": ([*TRAIN, "--push-to-hub", "bad name/x"], "`--push-to-hub` must be owner/name on the Hub"),
    "convert, repository": ([*CONVERT, "--push-to-hub", "a/b/c"], "`--push-to-hub` must be owner/name on the Hub"),
    "train, output": ([*TRAIN, "--output-dir", "/proc/x"], "`output_dir` must be a folder that can be written"),
    "train, a file": ([*TRAIN, "--output-dir", "plain"], "`output_dir` must be a folder that can be written"),
    "train, below a file": (
        [*TRAIN, "--output-dir", "plain/run"],
        "`output_dir` must be a folder that can be written",
    ),
    "train, tracker": ([*TRAIN, "--report-to", "wandb"], "must be a tracker whose package is installed"),
    "train, tracker's name": ([*TRAIN, "--report-to", "tensorbord"], "Did you mean 'tensorboard'?"),
    "train, checkpoint": ([*TRAIN, "--resume-from-checkpoint", "nowhere"], "`resume_from_checkpoint` must be"),
    "train, precision": ([*TRAIN, "--mixed-precision", "fp16"], "`mixed_precision` must be 'no' or 'bf16' on a CPU"),
    "train, float16": ([*TRAIN, "--torch-dtype", "fp16"], "`--torch-dtype` must be fp32 or bf16 on a CPU"),
    "train, larger latents": ([*TRAIN, "--data", "large.safetensors"], "`latents` must have shape (4, 8, 8)"),
    "train, channels": ([*TRAIN, "--data", "channels.safetensors"], "`latents` must have shape (4, 8, 8)"),
    "train, range": ([*TRAIN, "--data", "range.safetensors"], "`class_labels` must be in [0, 9]"),
    "train, NaN": ([*TRAIN, "--data", "nan.safetensors"], "`latents` must be finite"),
    "train, class of a grid": ([*TRAIN, *VALIDATE, "Bagg"], "'Bagg' is no class. Did you mean 'Bag'?"),
    "train, id of a grid": ([*TRAIN, *VALIDATE, "10"], "`validation_inputs` must be classes of the network"),
    "doctor, float16": ([*DOCTOR, "--torch-dtype", "fp16"], "`--torch-dtype` must be fp32 or bf16 on a CPU"),
    "doctor, precision": ([*DOCTOR, "--mixed-precision", "fp16"], "`mixed_precision` must be 'no' or 'bf16' on a CPU"),
    "doctor, tracker": ([*DOCTOR, "--report-to", "wandb"], "must be a tracker whose package is installed"),
    "evaluate, output": ([*EVALUATE, "--output", "/proc/x"], "`output` must be a folder that can be written"),
    "evaluate, a file": ([*EVALUATE, "--output", "plain"], "`output` must be a folder that can be written"),
    "evaluate, no reference": ([*EVALUATE, "--reference", "none.npz"], "must be a file of statistics or images"),
    "evaluate, width": ([*EVALUATE, "--reference", "narrow.npz"], "as `features` gives, got 3"),
    "evaluate, NaN": ([*EVALUATE, "--reference", "nan.npz"], "must hold statistics as 'mu' and 'sigma'"),
    "evaluate, torn": ([*EVALUATE, "--reference", "torn.npz"], "must be a whole .npz file"),
    "evaluate, no images": ([*EVALUATE, "--reference", "broken"], "got none that can be read"),
    "evaluate, split": ([*EVALUATE, "--split", "tset"], "tset"),
    "evaluate, column": ([*EVALUATE, "--image-column", "photo"], "`image_column` must be one of"),
    "evaluate, class": ([*EVALUATE, "--labels", "Bagg"], "Did you mean 'Bag'?"),
    "evaluate, argument": ([*EVALUATE, "--call", "hieght=3"], "`call` must name arguments of UCGMPipeline"),
    "evaluate, steps": ([*EVALUATE, "--steps", "0"], "`num_inference_steps` must be at least 1"),
    "evaluate, samples": ([*EVALUATE, "--num-samples", "0"], "`num_samples` must be at least 2"),
    "evaluate, statistics' file": ([*EVALUATE, "--save-reference", "plain/x.npz"], "`reference_file` must be a file"),
    "evaluate, statistics' ending": ([*EVALUATE, "--save-reference", "x.pkl"], "`reference_file` must end in .npz"),
    "evaluate, device": ([*EVALUATE, "--device", "cuda"], "`--device` must be of this machine"),
    "evaluate, word": ([*EVALUATE, "--device", "gpu"], "`--device` must be a device such as cpu or cuda"),
    "evaluate, float16": ([*EVALUATE, "--torch-dtype", "fp16"], "`--torch-dtype` must be fp32 or bf16 on a CPU"),
    "compare, output": ([*COMPARE, "--output", "plain"], "`output` must be a folder that can be written"),
    "compare, class": ([*COMPARE, "--labels", "Bagg"], "Did you mean 'Bag'?"),
    "compare, reference": (
        [*COMPARE, "--reference", "none.npz", "--features", FEATURES],
        "must be a file of statistics or images",
    ),
    "compare, width": ([*COMPARE, "--reference", "narrow.npz", "--features", FEATURES], "as `features` gives, got 3"),
    "tune, output": ([*TUNE, "--output", "/proc/x"], "`output` must be a folder that can be written"),
    "tune, class": ([*TUNE, "--labels", "Bagg"], "Did you mean 'Bag'?"),
    "tune, steps": ([*TUNE, "--steps", "0"], "`num_inference_steps` must be at least 1"),
    "sample, ending": ([*SAMPLE, "--output", "out.xyz"], "must be the name of an image"),
    "sample, output": ([*SAMPLE, "--output", "plain/x.png"], "must be a file that can be written"),
    "sample, scale": ([*SAMPLE, "--scale", "0"], "`--scale` must be at least 1"),
    "sample, trajectory": ([*SAMPLE, "--trajectory", "x.xyz"], "`--trajectory` must be the name of an image"),
    "sample, one file twice": ([*SAMPLE, "--trajectory", "./out.png"], "must be another file than `--output`"),
    "sample, strength alone": ([*SAMPLE, "--lora-scale", "2"], "`--lora-scale` must go with `--lora`, got 2.0"),
    "sample, strength": (
        [*SAMPLE, "--lora", "emoji-few-step", "--lora-scale", "nan"],
        "error: `--lora-scale` must be a finite number, got nan",
    ),
    "sample, steps": (
        [*SAMPLE, "--steps", "0"],
        "argument --steps: `num_inference_steps` must be at least 1, got 0",
    ),
    "sample, type of images": ([*SAMPLE, "--call", "output_type=latent"], "`output_type` must be left out of `call`"),
    "evaluate, noise": ([*EVALUATE, "--call", "latents=1"], "`latents` must be left out of `call`"),
    "evaluate, classes": ([*EVALUATE, "--call", "class_labels=[1]"], "`--labels`) name the classes"),
    "sample, class": ([*SAMPLE, "--labels", "Bagg"], "Did you mean 'Bag'?"),
    "sample, device": ([*SAMPLE, "--device", "cuda"], "`--device` must be of this machine"),
    "sample, float16": ([*SAMPLE, "--torch-dtype", "fp16"], "`--torch-dtype` must be fp32 or bf16 on a CPU"),
}


@pytest.mark.skipif(torch.accelerator.is_available(), reason="what a machine without an accelerator refuses")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_named_before_any_call_and_leaves_nothing(name, place, calls, capsys, monkeypatch):
    monkeypatch.setattr("diffusers_ucgm.training.requirements.get_available_trackers", lambda: ["tensorboard"])
    words, message = BAD[name]
    before = left_in(place)
    with contextlib.suppress(SystemExit):
        assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert calls == []
    assert left_in(place) == before


def test_a_folder_that_may_not_be_written_is_named(pipe, tmp_path, calls):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(OSError, match="`output` must be a folder that can be written"):
        evaluate_pipeline(pipe, "photos", tmp_path / "locked" / "x", features=FEATURES)
    assert calls == []


def test_users_of_the_library_have_the_checks_too(pipe, place, calls):
    before, items = left_in(place), [{"latents": torch.zeros(4, 8, 8), "class_labels": 3}] * 4
    for output in (place / "plain", "/proc/x"):
        with pytest.raises(OSError, match="`output` must be a folder that can be written"):
            evaluate_pipeline(pipe, place / "photos", output, features=FEATURES)
        with pytest.raises(OSError, match="`output` must be a folder that can be written"):
            compare_solvers(pipe, [0, 1], [0, 1], solvers={"own": pipe.scheduler}, calls=[2], output=output)
        with pytest.raises(OSError, match="`output` must be a folder that can be written"):
            tune_sampler(pipe, 2, output)
        with pytest.raises(OSError, match="`output_dir` must be a folder that can be written"):
            UCGMTrainer(UCGMTrainingConfig(str(output)), pipe.transformer, items)
    with pytest.raises(ValueError, match="`call` must name arguments of UCGMPipeline"):
        compare_solvers(pipe, [0, 1], [0, 1], solvers={"own": pipe.scheduler}, calls=[2], call={"hieght": 3})
    with pytest.raises(ValueError, match="as `features` gives, got 3"):
        evaluate_pipeline(pipe, place / "narrow.npz", place / "out", features=FEATURES)
    assert calls == []
    assert left_in(place) == before
