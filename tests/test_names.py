"""Names of models, data and folders: what is local, what may be on the Hub, and what a typo is answered."""

import socket

import pytest

from diffusers_ucgm import UCGMScheduler, k_diffusion_sampler
from diffusers_ucgm.cli import main
from diffusers_ucgm.data.image_sources import check_image_source
from diffusers_ucgm.loading import load_scheduler
from diffusers_ucgm.names import BUNDLED, did_you_mean, local_or_hub, local_path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch, tmp_path):
    """Nothing may ask the Hub, not even for an address."""

    def asked(*arguments):
        raise AssertionError(f"asked the network: {arguments}")

    monkeypatch.setattr(socket, "getaddrinfo", asked)
    monkeypatch.setattr(socket.socket, "connect", asked)
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "runs/first", "fashion"):
        (tmp_path / name).mkdir(parents=True)


@pytest.mark.parametrize("given", ["tuned", "tuned/scheduler/scheduler_config.json"])
def test_the_folder_of_a_scheduler_is_named_where_results_or_its_file_are_given(given, tmp_path):
    UCGMScheduler().save_pretrained(tmp_path / "tuned" / "scheduler")
    for load in (load_scheduler, k_diffusion_sampler):
        with pytest.raises(ValueError, match="Did you mean '.*tuned/scheduler'"):
            load(str(tmp_path / given))


@pytest.mark.parametrize("name", ["owner/name", "stabilityai/stable-diffusion-3.5-medium", "fashion-mnist", "photos"])
def test_names_of_the_hub_bundled_names_and_paths_are_kept(name):
    assert local_or_hub("model", name, BUNDLED) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fashion-mnst", "Did you mean 'fashion-mnist'?"),
        ("Fashion-MNIST", "Did you mean 'fashion-mnist'?"),
        ("./phots", "Did you mean 'photos'?"),
        ("photoz", "Did you mean 'photos'?"),
        ("runs/frist", "Did you mean 'runs/first'?"),
        ("rnus/first", "Did you mean 'runs'?"),
        ("runs/other", "'runs', holds first|runs' holds first"),
        ("./nope", "holds fashion, photos, runs"),
        ("nope", "holds fashion, photos, runs"),
        ("~/nope/at/all", "The folder "),
        ("/nowhere/at-all", "The folder '/' holds "),
        ("a/b/c", "holds fashion, photos, runs"),
        ("../nope", "The folder "),
        ("", "holds fashion, photos, runs"),
        ("x" * 5000, "The folder "),
        ("a\0b", "The folder "),
    ],
)
def test_what_does_not_exist_is_answered_with_what_does(name, said):
    with pytest.raises(FileNotFoundError, match="`model` must be one of .* which does not exist") as raised:
        local_or_hub("model", name, BUNDLED)
    assert any(each in str(raised.value) for each in said.split("|"))


@pytest.mark.parametrize(
    "words",
    [
        ["export", "--output", "new", "--standalone", "--model"],
        ["sample", "--model"],
        ["train", "--data", "photos", "--output-dir", "run", "--pipeline"],
    ],
    ids=lambda words: words[0],
)
def test_a_bundled_lora_in_the_place_of_a_pipeline_is_answered_with_the_command_that_takes_both(words, capsys):
    assert main([*words, "emoji-few-step"]) == 2
    said = capsys.readouterr().err
    assert f"`{words[-1]}` must not be a LoRA, got 'emoji-few-step', one for the pipeline 'emoji'" in said
    assert "`ucgm sample --model emoji --lora emoji-few-step`" in said


def test_data_sets_that_the_hub_finds_without_an_owner_are_no_typos():
    for name in ("mnist", "cifar10", "imagenet-1k"):
        check_image_source("--source", name)
    with pytest.raises(FileNotFoundError, match=r"got 'mnst', which does not exist. Did you mean 'mnist'\?"):
        check_image_source("--source", "mnst")


def test_the_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_or_hub("model", "~/photos") == str(tmp_path / "photos")
    assert local_path("data", "~/photos", "a folder") == tmp_path / "photos"
    with pytest.raises(FileNotFoundError, match=r"`data` must be a folder, got '~/phots'.*photos'\?"):
        local_path("data", "~/phots", "a folder")


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "--model", "fashion-mnst"],
        ["sample", "--model", "./nope"],
        ["sample", "--model", "fashion-mnist", "--scheduler", "./nope"],
        ["sample", "--model", "fashion-mnist", "--lora", "./nope"],
        ["train", "--pipeline", "fashion-mnst", "--data", "photos", "--output-dir", "run"],
        ["train", "--model", "./nope", "--data", "photos", "--output-dir", "run"],
        ["train", "--pipeline", "fashion-mnist", "--data", "./nope", "--output-dir", "run"],
        ["train", "--pipeline", "fashion-mnist", "--data", "photos", "--output-dir", "run", "--config", "./nope.yml"],
        ["doctor", "--pipeline", "fashion-mnist", "--data", "nope"],
        ["cache", "--pipeline", "fashion-mnist", "--source", "photoz", "--size", "32", "--output", "cache"],
        ["cache", "--pipeline", "fashion-mnst", "--source", "photos", "--size", "32", "--output", "cache"],
        ["evaluate", "--model", "fashion-mnst", "--reference", "photos"],
        ["evaluate", "--model", "fashion-mnist", "--reference", "photoz"],
        ["evaluate", "--model", "fashion-mnist", "--reference", "nope.npz"],
        ["compare", "--model", "fashion-mnst"],
        ["compare", "--model", "fashion-mnist", "--reference", "~/nope"],
        ["tune-sampler", "--model", "~/nope", "--steps", "4"],
        ["info", "fashion-mnst"],
        ["info", "./nope"],
        # Of a user that this machine does not know.
        *(
            ["info", "~nope"],
            ["sample", "--model", "~nope/x"],
            ["sample", "--model", "fashion-mnist", "--lora", "~nope"],
        ),
        ["evaluate", "--model", "fashion-mnist", "--reference", "~nope"],
        ["cache", "--pipeline", "fashion-mnist", "--source", "~nope", "--size", "32", "--output", "cache"],
        ["convert", "--checkpoint", "~nope", "--output", "out", "--preset", "repa-e-256"],
        ["convert", "--checkpoint", "./nope.pt", "--output", "out", "--preset", "repa-e-256"],
    ],
    ids=" ".join,
)
def test_commands_name_what_does_not_exist_without_the_hub(words, tmp_path, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "ucgm: error: " in error
    assert "unexpected" not in error
    assert any(word.split("/")[-1] in error for word in words if "nope" in word or "mnst" in word or "photoz" in word)
    assert "does not exist" in error
    assert sorted(each.name for each in tmp_path.iterdir()) == ["fashion", "photos", "runs"]


def test_names_that_begin_alike_come_first():
    assert did_you_mean("adam", ["radam", "adamw_8bit", "adamw"]) == " Did you mean 'adamw'?"
    assert did_you_mean("x", ["adamw"]) == ""


@pytest.mark.parametrize(
    ("name", "known"), [("--device", ["--recipe", "--help"]), ("--size", ["--seed"]), (".bmp", [".webp", ".png"])]
)
def test_what_all_names_begin_with_makes_none_of_them_near(name, known):
    assert did_you_mean(name, known) == ""


def test_names_are_suggested_with_what_they_begin_with():
    assert did_you_mean("--devise", ["--recipe", "--device"]) == " Did you mean '--device'?"
    assert did_you_mean("modle", ["--model"]) == " Did you mean '--model'?"
    assert did_you_mean(".jpeg", [".jpg", ".png"]) == " Did you mean '.jpg'?"
