"""The index of a cache: what shards hold together, and what a file must say."""

import json

import pytest
import torch
from safetensors.torch import save_file

from diffusers_ucgm.data.cache_index import CacheContents, read_index


def shard(path, latents, rows, *, skipped=(), labels=None, classes=None):
    block = {"rows": rows, "skipped": list(skipped), "labels": labels or {}}
    tensors = {} if latents is None else {"latents": latents}
    if classes is not None:
        tensors["class_labels"] = torch.tensor(classes)
    save_file(tensors, path, {"block": json.dumps(block)})
    return path


def contents(*files):
    found = CacheContents({"classes": {}, "names": {"0": "cat", "1": "dog"}})
    for file in files:
        found.add(file)
    return found


@pytest.fixture
def files(tmp_path):
    generator = torch.Generator().manual_seed(0)
    # Channels with a mean and a deviation of their own, in shards of unequal length, and a shard without a sample.
    latents = torch.randn(7, 3, 4, 2, generator=generator) * torch.tensor([0.1, 1.0, 5.0])[:, None, None] + 2.0
    files = [
        shard(
            tmp_path / "a", latents[:4], 5, skipped=["3.png: torn"], labels={"classes": {"dog": 1}}, classes=[1] * 4
        ),
        shard(tmp_path / "b", None, 2, skipped=["6.png: torn", "7.png: torn"]),
        shard(tmp_path / "c", latents[4:], 3, labels={"classes": {"cat": 0}}, classes=[0, 1, 0]),
    ]
    return files, latents


def test_counts_and_names_are_those_of_all_shards(files):
    found = contents(*files[0])
    assert found.rows == 10
    entries = found.entries(["link/1.png: not read"])
    assert (entries["num_samples"], entries["counts"]) == (7, [4, 0, 3])
    assert entries["skipped"] == ["link/1.png: not read", "3.png: torn", "6.png: torn", "7.png: torn"]
    assert entries["columns"] == {"latents": ["float32", 3, 4, 2], "class_labels": ["int64"]}
    assert entries["class_counts"] == {"0": 2, "1": 5}
    assert entries["labels"] == {"classes": {"dog": 1, "cat": 0}, "names": {"0": "cat", "1": "dog"}}


def test_statistics_are_those_of_all_values_of_a_channel(files):
    entries = contents(*files[0]).entries([])
    channels = files[1].double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(entries["latents_mean"], dtype=torch.float64), channels.mean(1))
    torch.testing.assert_close(
        torch.tensor(entries["latents_std"], dtype=torch.float64), channels.std(1, correction=0)
    )


def test_latents_of_one_value_have_no_deviation(tmp_path):
    # Here rounding makes the difference of the mean squares negative.
    entries = contents(shard(tmp_path / "a", torch.full((5, 2, 3, 3), 0.029999999329447746), 5)).entries([])
    assert entries["latents_std"] == [0.0, 0.0]
    assert not {"class_counts", "labels"} & set(entries)


def test_what_shards_hold_is_read_again(files, tmp_path):
    entries = contents(*files[0]).entries([])
    (tmp_path / "cache.json").write_text(json.dumps(entries))
    assert read_index(tmp_path / "cache.json") == entries


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": [4, -1, 4]}, "must have 'counts' and 'columns' of a cache"),
        ({"counts": 7}, "must have 'counts' and 'columns' of a cache"),
        ({"columns": {"class_labels": ["int64"]}}, "must have 'counts' and 'columns' of a cache"),
        ({"num_samples": 8}, "must have the sum of its counts, 7, as 'num_samples', got 8"),
        ({"latents_mean": None}, "must have a list of numbers as 'latents_mean', got None"),
        ({"latents_std": [1.0, "1", 1.0]}, "must have a list of numbers as 'latents_std'"),
        (
            {"latents_std": [1.0, float("nan"), 1.0]},
            r"`latents_std` must be finite, .*cache\.json\. Run `ucgm cache` anew",
        ),
        ({"labels": {"classes": {"dog": "1"}, "names": {}}}, "must have the 'classes' and 'names' of its labels"),
        ({"labels": {"classes": {}}}, "must have the 'classes' and 'names' of its labels"),
    ],
)
def test_an_index_of_another_form_is_named_with_the_way_out(files, tmp_path, changes, message):
    file = tmp_path / "cache.json"
    file.write_text(json.dumps({**contents(*files[0]).entries([]), **changes}))
    with pytest.raises(ValueError, match=message) as found:
        read_index(file)
    assert "cache.json" in str(found.value)
    assert "Run `ucgm cache` a" in str(found.value)
