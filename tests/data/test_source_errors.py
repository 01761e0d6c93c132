"""Sources that `datasets` cannot read: the error names the source, or the damaged shards, and the first reason."""

import pytest
from image_source_files import TEXT, all_items, save, saved, shard

from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.data.source_errors import load_or_explain, unreadable_source


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def test_a_torn_table_is_named(tmp_path):
    folder = saved(tmp_path / "saved", ["words"], TEXT)
    file = next(folder.glob("*.arrow"))
    whole = file.read_bytes()
    for number in range(0, len(whole) - 8, 97):
        file.write_bytes(whole[:number])
        with pytest.raises(ValueError, match=r"`source` must be a data set that can be read, got '.*saved': "):
            all_items(ImageItems(load_image_dataset(folder), 8))


@pytest.mark.parametrize("content", ["", "{", '{"text": "words"}', "[]", '"0.png"'])
def test_broken_metadata_is_named(tmp_path, content):
    save(tmp_path / "photos" / "0.png")
    (tmp_path / "photos" / "metadata.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"`source` must be a data set that can be read, got '.*photos': ."):
        load_image_dataset(tmp_path / "photos")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_torn_shard_is_named(tmp_path, streaming):
    for name in ("a", "b", "c"):
        shard(tmp_path / f"{name}.tar")
    whole = (tmp_path / "b.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[:1600])
    with pytest.raises(ValueError, match=r"`source` must be a data set that can be read, got \['.*b\.tar'\]"):
        all_items(ImageItems(load_image_dataset(tmp_path, streaming=streaming), 8))


@pytest.mark.parametrize("error", [FileNotFoundError, PermissionError, ConnectionError, ImportError])
def test_what_is_missing_is_said_in_its_own_words(error):
    def load():
        raise error("own words")

    with pytest.raises(error, match="^own words$"):
        load_or_explain(load, "photos")
    assert load_or_explain(lambda: 3, "photos") == 3


def test_the_first_cause_is_the_reason():
    def load():
        try:
            raise ValueError("the file ends in the middle")
        except ValueError as error:
            raise RuntimeError("generating the data set failed") from error

    with pytest.raises(
        ValueError, match=r"^`source` must be a data set that can be read, got 'photos': the file ends"
    ):
        load_or_explain(load, "photos")


@pytest.mark.parametrize(
    ("error", "reason"),
    [(IndexError("0"), "IndexError, 0."), (KeyError("0"), "KeyError, '0'."), (OSError("0"), "0.")],
    ids=["index", "key", "system"],
)
def test_bare_errors_are_told_with_their_type(error, reason):
    assert str(unreadable_source("photos", (), error)).endswith(f", got 'photos': {reason}")


def test_only_the_damaged_shards_are_named(tmp_path):
    shards = [str(shard(tmp_path / f"{name}.tar")) for name in "abc"]
    (tmp_path / "b.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:1600])
    message = str(unreadable_source("photos", shards, OSError("torn")))
    assert message == f"`source` must be a data set that can be read, got {[shards[1]]}: torn."
