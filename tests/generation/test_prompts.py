"""Prompts with kinds and real images, from files of JSON lines."""

import json

import pytest

from diffusers_ucgm.generation.prompts import Prompt, prompt_texts, read_prompts


def write(folder, *lines):
    file = folder / "prompts.jsonl"
    file.write_text("".join(f"{each if isinstance(each, str) else json.dumps(each)}\n" for each in lines))
    return file


def test_a_line_has_a_text_and_perhaps_a_kind_and_an_image(tmp_path):
    file = write(
        tmp_path,
        {"text": " a cat "},
        "",
        {"text": ["a dog", " dog, drawn"], "kind": "animals", "file_name": "real/dog.png", "style": 3},
        {"text": "a sea", "kind": None, "file_name": None},
    )
    dog = tmp_path / "real" / "dog.png"
    assert read_prompts(file) == [Prompt("a cat"), Prompt("a dog", "animals", dog, ("dog, drawn",)), Prompt("a sea")]


def test_lines_end_as_json_lines_end(tmp_path):
    file = tmp_path / "prompts.jsonl"
    # A text may hold the sign that ends a line for Python; Windows ends lines otherwise, and marks the start.
    file.write_bytes("\ufeff".encode() + '{"text": "a\u2028b"}\r\n{"text": "c"}'.encode())
    assert [each.text for each in read_prompts(file)] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat", "Expecting value"),
        ('"a cat"', "it must be an object, got 'a cat'"),
        ("[" * 100_000, "recursion"),
        ({"caption": "a cat"}, r"it must have `text`, got \['caption'\]"),
        ({"text": []}, r"`text` must be a text or a list of texts, got \[\]"),
        ({"text": None}, "`text` must be a text that is not empty, got None"),
        ({"text": " "}, "`text` must be a text that is not empty, got ' '"),
        ({"text": ["a", 5]}, "`text` must be a text that is not empty, got 5"),
        ({"text": "\ud800"}, "`text` must be a text that UTF-8 can hold"),
        ({"text": "a", "kind": 3}, "`kind` must be a text that is not empty, got 3"),
        ({"text": "a", "kind": ""}, "`kind` must be a text that is not empty, got ''"),
        ({"text": "a", "file_name": 3}, "`file_name` must be a text that is not empty, got 3"),
        ({"text": "a", "file_name": "../a.png"}, "`file_name` must be a file inside '.*', got '../a.png'"),
        ({"text": "a", "file_name": "/etc/hostname"}, "`file_name` must be a file inside"),
        ({"text": "a", "file_name": "a\0.png"}, "`file_name` must be a file inside"),
    ],
)
def test_a_malformed_line_is_named_with_its_file_and_number(tmp_path, line, message):
    file = write(tmp_path, {"text": "a cat"}, line)
    with pytest.raises(
        ValueError, match=rf"`--prompts` must name a file with an object .*got line 2 of .*: .*{message}"
    ):
        read_prompts(file)


def test_a_file_without_prompts_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got '.*prompts\.jsonl' without any line"):
        read_prompts(write(tmp_path, "", " "))
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ValueError, match="`--prompts` must name a text file in UTF-8"):
        read_prompts(tmp_path / "prompts.jsonl")


def test_texts_are_what_a_pipeline_takes():
    assert prompt_texts([Prompt("a cat", "animals"), "a dog", 3]) == ["a cat", "a dog", 3]
