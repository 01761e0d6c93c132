"""The inputs of commands that sample."""

from argparse import Namespace

import pytest

from diffusers_ucgm.generation.inputs import (
    call_argument,
    call_arguments,
    described_conditions,
    further_arguments,
    given_conditions,
    load_model,
)
from diffusers_ucgm.generation.prompts import Prompt


def options(**changes):
    settings = {
        "model": "fashion-mnist-2-step",
        "device": "cpu",
        "torch_dtype": "fp32",
        "lora": None,
        "lora_scale": None,
    }
    return Namespace(**{**settings, **changes})


def test_conditions_are_labels_prompts_or_a_file_of_prompts(tmp_path):
    assert given_conditions(Namespace(labels=None, prompts=None)) is None
    assert given_conditions(Namespace(labels=["3", "Bag"], prompts=None)) == [3, "Bag"]
    assert given_conditions(Namespace(labels=None, prompts=["a cat", "a dog"])) == ["a cat", "a dog"]
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n  a dog \n", encoding="utf-8")
    assert given_conditions(Namespace(labels=None, prompts=[str(file)])) == ["a cat", "a dog"]
    # As Windows' editors write it.
    file.write_bytes(b"\xef\xbb\xbfa cat\r\na dog\r\n")
    assert given_conditions(Namespace(labels=None, prompts=[str(file)])) == ["a cat", "a dog"]
    file.write_text("\n \n")
    with pytest.raises(
        ValueError, match="`--prompts` must name a file with a prompt on each line, got .* without any"
    ):
        given_conditions(Namespace(labels=None, prompts=[str(file)]))
    file.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="`--prompts` must name a text file in UTF-8"):
        given_conditions(Namespace(labels=None, prompts=[str(file)]))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("height=64", ("height", 64)),
        ("guidance_interval=[0.1, 0.9]", ("guidance_interval", [0.1, 0.9])),
        ("prompt_2=a cat", ("prompt_2", "a cat")),
        ("text==", ("text", "=")),
    ],
)
def test_arguments_of_the_call_are_json_where_they_are_json(word, expected):
    assert call_argument(word) == expected


@pytest.mark.parametrize("word", ["height", "=3", "a b=1", "2=3"])
def test_other_words_are_refused(word):
    with pytest.raises(ValueError, match="`--call` must be words of the form NAME=VALUE, got"):
        call_argument(word)


def test_guidance_is_given_only_where_the_option_is():
    assert call_arguments(Namespace(guidance_scale=None, call=[])) == {}
    assert call_arguments(Namespace(guidance_scale=2.0, call=["height=8"])) == {"guidance_scale": 2.0, "height": 8}
    steps = ["num_inference_steps=3"]
    assert call_arguments(Namespace(guidance_scale=None, call=steps, steps=None)) == {"num_inference_steps": 3}
    for options in ({}, {"steps": 5}, {"steps": [5, 8]}):
        with pytest.raises(ValueError, match="`--call` must give each argument once, got num_inference_steps=3"):
            call_arguments(Namespace(guidance_scale=None, call=steps, **options))


def test_the_model_is_loaded_on_its_device():
    pipe = load_model(options())
    assert type(pipe).__name__ == "UCGMPipeline"
    assert pipe.device.type == "cpu"
    with pytest.raises(ValueError, match="`--device` must be a device of torch, such as 'cpu' or 'cuda', got ''"):
        load_model(options(device=" "))


@pytest.mark.parametrize("prompt", ["a cat " * 1000, "a/" * 3000, "~nobody-of-this-name", "a\0b", ""])
def test_a_prompt_that_can_be_no_file_is_a_prompt(prompt):
    assert given_conditions(Namespace(labels=None, prompts=[prompt])) == [prompt]


def test_an_argument_of_the_call_is_given_once():
    assert further_arguments(Namespace(call=["height=3", "eta=0.5"]), ["width"]) == {"height": 3, "eta": 0.5}
    for words, options in ((["height=3"], ["height"]), (["height=3", "height=4"], [])):
        with pytest.raises(ValueError, match=r"`--call` must give each argument once, got height=\d besides"):
            further_arguments(Namespace(call=words), options)


def test_the_name_of_a_text_file_is_no_prompt(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n")
    with pytest.raises(
        FileNotFoundError, match=r"must be a text file, got '.*promts\.txt', .* Did you mean '.*prompts\.txt'"
    ):
        given_conditions(Namespace(labels=None, prompts=[str(tmp_path / "promts.txt")]))
    with pytest.raises(ValueError, match="`--prompts` must be prompts, or one text file, got"):
        given_conditions(Namespace(labels=None, prompts=["a cat", str(file)]))
    words = ["a note that says todo.txt"]
    assert given_conditions(Namespace(labels=None, prompts=words)) == words


@pytest.mark.parametrize(
    ("name", "content"), [("metadata.csv", "file_name,text\na.png,a cat\n"), ("PROMPTS.JSON", '["a cat", "a dog"]')]
)
def test_the_lines_of_a_table_are_no_prompts(tmp_path, name, content):
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"a prompt on each line, or a file of JSON lines \(\.jsonl\).*{name}"):
        given_conditions(Namespace(labels=None, prompts=[str(file)]))


def test_a_file_of_json_lines_says_more_than_its_texts(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "a cat", "kind": "animals"}\n{"text": ["a sea", "the sea"]}\n')
    given = Namespace(labels=None, prompts=[str(file)])
    assert given_conditions(given) == ["a cat", "a sea"]
    assert described_conditions(given) == [Prompt("a cat", "animals"), Prompt("a sea", captions=("the sea",))]
    assert described_conditions(Namespace(labels=None, prompts=["a cat"])) == ["a cat"]
    with pytest.raises(ValueError, match="`--prompts` must be prompts, or one file of JSON lines"):
        given_conditions(Namespace(labels=None, prompts=["a cat", str(file)]))
    with pytest.raises(FileNotFoundError, match=r"`--prompts` must be a file of JSON lines, got 'nope\.jsonl'"):
        given_conditions(Namespace(labels=None, prompts=["nope.jsonl"]))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ValueError, match="which is no file"):
        given_conditions(Namespace(labels=None, prompts=[str(tmp_path / "folder.jsonl")]))
