"""Latents encoded once: shards that do not depend on interruptions or processes."""

import hashlib
import io
import json

import datasets
import pytest
import torch
from full_disk import assert_named_and_gone
from PIL import Image
from safetensors.torch import load_file

from diffusers_ucgm.data.images import ImageItems, load_image_dataset
from diffusers_ucgm.data.latent_cache import CachedLatents, cache_latents, finish_cache
from diffusers_ucgm.labels import LabelMapping, ModelClasses


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    lines = []
    for i in range(23):
        Image.effect_noise((20, 24), 10 + 3 * i).convert("RGB").save(root / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": f"picture {i}"}))
    (root / "07.png").write_text("no picture")
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return root


def encode_images(pixels, generator):
    """An encoder with noise, as an autoencoder's posterior has."""
    latents = pixels[:, :, ::8, ::8]
    return latents + 0.1 * torch.randn(latents.shape, generator=generator)


def encode_captions(texts):
    return {"encoder_hidden_states": torch.tensor([[float(len(text)), float(text[-1])] for text in texts])}


def build(folder, output, *, encode=encode_images, streaming=False, finish=True, **options):
    items = ImageItems(load_image_dataset(folder, streaming=streaming), 16, flip=True, crop="random")
    options = {"batch_size": 3, "shard_size": 5, "fingerprint": {"size": 16}, "progress": False, **options}
    cache_latents(items, encode, output, encode_captions=encode_captions, **options)
    return finish_cache(output) if finish else None


def digests(output):
    files = [file for file in sorted(output.iterdir()) if file.name != "run.json"]  # whose id is random
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole")
    return build(folder, output), output


def test_every_readable_image_is_there_once_with_its_caption(whole):
    index, output = whole
    data = CachedLatents(output)
    assert len(data) == index["num_samples"] == 22
    assert index["counts"] == [5, 4, 5, 5, 3]
    assert [len(each.split(": ")) for each in index["skipped"]] == [2]
    assert "07.png: not an image" in index["skipped"][0]
    rows = torch.cat([load_file(file)["rows"] for file in sorted(output.glob("*.safetensors"))])
    assert rows.tolist() == [*range(7), *range(8, 23)]
    for i, row in enumerate(rows.tolist()):
        item = data[i]
        assert set(item) == {"latents", "encoder_hidden_states"}
        assert item["latents"].shape == (3, 2, 2)
        assert item["encoder_hidden_states"].tolist() == [float(len(f"picture {row}")), float(row % 10)]


def test_statistics_are_those_of_all_latents(whole):
    index, output = whole
    latents = torch.stack([CachedLatents(output)[i]["latents"] for i in range(22)]).double()
    torch.testing.assert_close(torch.tensor(index["latents_mean"]).double(), latents.mean((0, 2, 3)))
    channels = latents.transpose(0, 1).flatten(1)
    torch.testing.assert_close(torch.tensor(index["latents_std"]).double(), channels.std(1, correction=0))


@pytest.mark.parametrize("calls", [1, 4, 6])
def test_a_stopped_run_goes_on_to_the_same_files(folder, whole, tmp_path, calls):
    left = [calls]

    def failing(pixels, generator):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return encode_images(pixels, generator)

    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path, encode=failing)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.glob("shard-*")}
    assert len(before) == calls // 2
    build(folder, tmp_path)
    assert digests(tmp_path) == digests(whole[1])
    assert all((tmp_path / name).stat().st_mtime_ns == when for name, when in before.items())


@pytest.mark.parametrize("name", [r"shard-00003\.safetensors", r"cache\.json", r"run\.json"])
def test_a_full_disk_is_named_and_the_cache_goes_on(folder, whole, tmp_path, name):
    assert_named_and_gone(tmp_path, name, lambda: build(folder, tmp_path))
    assert digests(tmp_path) == digests(whole[1])


def test_a_torn_shard_is_made_again(folder, whole, tmp_path):
    build(folder, tmp_path)
    file = tmp_path / "shard-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"got \[2\] truncated or missing\. Run `ucgm cache` again"):
        CachedLatents(tmp_path)
    build(folder, tmp_path)
    assert digests(tmp_path) == digests(whole[1])


@pytest.mark.parametrize("streaming", [False, True])
def test_two_processes_write_the_files_of_one(folder, whole, tmp_path, streaming):
    for index in (1, 0):
        build(folder, tmp_path, streaming=streaming, process_index=index, num_processes=2, finish=False)
    finish_cache(tmp_path)
    mine, theirs = digests(tmp_path), digests(whole[1])
    for name in theirs:
        # A streamed source knows its length at its end only, and the plan does not.
        if name.startswith("shard") or not streaming:
            assert mine[name] == theirs[name], name


def test_an_unfinished_cache_is_refused(folder, tmp_path):
    build(folder, tmp_path, process_index=0, num_processes=3, finish=False)
    with pytest.raises(FileNotFoundError, match=r"must be a finished cache with cache\.json"):
        CachedLatents(tmp_path)
    with pytest.raises(ValueError, match=r"must hold shards without a gap, got \['shard-00000.safetensors', "):
        finish_cache(tmp_path)
    build(folder, tmp_path, process_index=1, num_processes=3, finish=False)
    (tmp_path / "shard-00004.safetensors").unlink()
    build(folder, tmp_path, process_index=2, num_processes=3, finish=False)
    with pytest.raises(ValueError, match=r"must hold all 23 rows, got 20"):
        finish_cache(tmp_path)


def test_a_stream_that_was_not_read_to_its_end_is_no_cache(folder, tmp_path):
    calls = iter(range(6))

    def failing(pixels, generator):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return encode_images(pixels, generator)

    with pytest.raises(KeyboardInterrupt):
        build(folder, tmp_path, encode=failing, streaming=True)
    with pytest.raises(ValueError, match=r"must hold all rows of the stream, got 15\. Run `ucgm cache` to its end"):
        finish_cache(tmp_path)
    assert build(folder, tmp_path, streaming=True)["num_samples"] == 22


def test_classes_are_kept_where_nobody_encodes_captions(tmp_path):
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 40).save(buffer, "PNG")
    rows = {"image": [buffer.getvalue()], "label": [4], "text": ["a cat"]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "text": datasets.Value("string")}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"))
    items = ImageItems(load_image_dataset(tmp_path / "saved"), 16)
    cache_latents(items, encode_images, tmp_path / "cache", fingerprint={}, progress=False)
    finish_cache(tmp_path / "cache")
    assert CachedLatents(tmp_path / "cache")[0]["class_labels"].item() == 4


def test_latents_without_a_value_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match=r"must give finite latents, got NaN or infinity in rows 0 to 2\."):
        build(folder, tmp_path, encode=lambda pixels, generator: pixels / 0.0)


def test_another_cache_in_the_same_folder_is_refused(folder, tmp_path):
    build(folder, tmp_path)
    message = r"`folder` must be .* of the same run, .*\['fingerprint'\] differ .*size: 16 is now 32"
    with pytest.raises(ValueError, match=message):
        build(folder, tmp_path, fingerprint={"size": 32})


def test_a_cache_without_any_image_is_refused(tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(3):
        (tmp_path / "images" / f"{i}.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"must hold latents, got none in 1 shards\. Every image was left out"):
        build(tmp_path / "images", tmp_path / "cache")


def test_indices_outside_are_refused_and_workers_get_their_own_files(whole):
    data = CachedLatents(whole[1])
    first = data[0]["latents"]
    with pytest.raises(IndexError, match=r"`index` must be in \[0, 22\), got 22"):
        data[22]
    assert not data.__getstate__()["_opened"]
    loader = torch.utils.data.DataLoader(data, batch_size=22, num_workers=1)
    assert torch.equal(next(iter(loader))["latents"][0], first)


# --- labels ----------------------------------------------------------------------------------------------------------

MODEL = ModelClasses({0: "zebra", 1: "ant", 2: "Great Dane"}, 3)


def labelled(folder, labels, feature):
    """A saved data set of images with these labels."""
    buffer = io.BytesIO()
    Image.effect_noise((16, 16), 40).save(buffer, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": feature})
    rows = {"image": [buffer.getvalue()] * len(labels), "label": labels}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    return folder


def cached_classes(source, output, mapping, **options):
    items = ImageItems(source, 16, labels=mapping)
    options = {"fingerprint": {}, "progress": False, "shard_size": 2, **options}
    cache_latents(items, encode_images, output, **options)
    index = finish_cache(output)
    return index, [each["class_labels"].item() for each in CachedLatents(output)]


def test_names_of_a_source_are_cached_as_the_models_classes(tmp_path):
    names = ["ant", "great_dane", "zebra"]
    source = load_image_dataset(labelled(tmp_path / "saved", [0, 1, 2, 1], datasets.ClassLabel(names=names)))
    index, classes = cached_classes(source, tmp_path / "cache", LabelMapping(MODEL, names))
    assert classes == [1, 2, 0, 2]
    assert index["labels"] == {
        "classes": {"ant": 1, "great_dane": 2, "zebra": 0},
        "names": {"0": "zebra", "1": "ant", "2": "Great Dane"},
    }
    assert index["class_counts"] == {"0": 1, "1": 1, "2": 2}
    with pytest.raises(ValueError, match=r"of the same run, .*\['labels'\] differ"):
        cached_classes(source, tmp_path / "cache", LabelMapping(MODEL, names, {"zebra": 1, "ant": 0}))


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_are_matched_too_even_where_they_come_late(tmp_path, streaming):
    labels = ["zebra", "ANT", "zebra", "Great-Dane", None]
    folder = labelled(tmp_path / "saved", labels, datasets.Value("string"))
    source = load_image_dataset(folder, streaming=streaming)
    index, classes = cached_classes(source, tmp_path / "cache", LabelMapping(MODEL))
    assert classes == [0, 1, 0, 2]
    assert [each.split(": ")[1] for each in index["skipped"]] == ["no class"]
    assert index["labels"]["classes"] == {"ANT": 1, "Great-Dane": 2, "zebra": 0}
    # A shard's bytes follow from its own rows, whatever was met before.
    cached_classes(source, tmp_path / "other", LabelMapping(MODEL, ["Great-Dane", "ANT"]))
    names = [f"shard-0000{i}.safetensors" for i in range(3)]
    assert [digests(tmp_path / "cache")[name] for name in names] == [
        digests(tmp_path / "other")[name] for name in names
    ]


def test_a_label_that_is_no_class_ends_the_run_and_is_no_corrupt_image(tmp_path):
    folder = labelled(tmp_path / "saved", ["zebra", "horse"], datasets.Value("string"))
    with pytest.raises(ValueError, match="'horse' is no class"):
        cached_classes(load_image_dataset(folder), tmp_path / "cache", LabelMapping(MODEL))
    folder = labelled(tmp_path / "numbers", [0, 3], datasets.Value("int64"))
    with pytest.raises(ValueError, match="must be ids from 0 to 2, the classes of the model, got 3"):
        cached_classes(load_image_dataset(folder), tmp_path / "cache", LabelMapping(MODEL))
    with pytest.raises(ValueError, match="`labels` must map the source's texts to classes, got none for 'zebra'"):
        cached_classes(load_image_dataset(tmp_path / "saved"), tmp_path / "cache", None)


def test_conditions_without_a_value_are_refused(folder, tmp_path):
    items = ImageItems(load_image_dataset(folder), 16)
    with pytest.raises(ValueError, match="`encoder_hidden_states` must be finite, .* in rows 0 to 2"):
        cache_latents(
            items,
            encode_images,
            tmp_path,
            encode_captions=lambda texts: {"encoder_hidden_states": torch.full((len(texts), 2), torch.nan)},
            batch_size=3,
            fingerprint={},
            progress=False,
        )
