"""Sources of images: splits, captions, IDX folders, hostile rows and torn files."""

import gzip
import io
import json
import os
import tarfile

import datasets
import pytest
import torch
from image_source_files import TEXT, all_items, captions_of, encoded, save, saved, shard
from PIL import Image

from diffusers_ucgm.data.images import ImageItems, load_image_dataset


pytestmark = pytest.mark.usefixtures("own_datasets_cache")


def test_images_of_other_splits_are_not_left_out(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "0.png")
    source = load_image_dataset(tmp_path, "test")
    assert len(source.dataset) == 2
    assert source.left_out == ()
    with pytest.raises(ValueError, match=r"`split` must be one of \['test', 'train'\], got 'validation'"):
        load_image_dataset(tmp_path, "validation")


# --- captions --------------------------------------------------------------------------------------------------------


def test_caption_files_are_read_inside_the_folder_only(tmp_path):
    folder = tmp_path / "photos"
    for i in range(3):
        save(folder / f"{i}.png")
    (tmp_path / "secret").write_text("secret")
    (folder / "0.txt").symlink_to(tmp_path / "secret")
    (folder / "1.txt").write_text("words")
    os.mkfifo(folder / "2.txt")
    assert captions_of(load_image_dataset(folder))[0] == [None, "words", None]
    assert captions_of(load_image_dataset(folder, allow_remote_files=True))[0] == ["secret", "words", None]


def test_one_of_several_captions_is_chosen_by_the_row(tmp_path):
    captions = [["one", "two", "three"]] * 24
    source = load_image_dataset(saved(tmp_path / "saved", captions, datasets.Sequence(TEXT)))

    def chosen(seed):
        return [item["caption"] for item in all_items(ImageItems(source, 8, seed=seed))]

    assert chosen(0) == chosen(0)
    assert chosen(0) != chosen(1)
    assert set(chosen(0)) == {"one", "two", "three"}


def test_the_chosen_caption_does_not_follow_the_crop(tmp_path):
    path = saved(tmp_path / "saved", [["one", "two"]] * 64, datasets.Sequence(TEXT))
    wide = Image.radial_gradient("L").resize((64, 16))
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    source = load_image_dataset(path)
    sides = {"one": [], "two": []}
    for row in range(64):
        sample = {"image": {"bytes": buffer.getvalue()}, "text": ["one", "two"]}
        item = ImageItems(source, 16, crop="random").prepare(row, sample)
        sides[item["caption"]].append(item["pixels"].mean(dim=(0, 1)).argmax().item() > 7)
    assert all(0.15 < sum(each) / len(each) < 0.85 for each in sides.values())


def test_lists_without_a_caption_are_left_out(tmp_path):
    captions = [[], [None], ["words", None], None]
    source = load_image_dataset(saved(tmp_path / "saved", captions, datasets.Sequence(TEXT)))
    assert captions_of(source) == (
        [None, None, "words", None],
        [f"row {i}: no caption" for i in (0, 1, 3)],
    )


@pytest.mark.parametrize(
    ("captions", "feature"),
    [
        ([{"en": "words"}], {"en": TEXT}),
        ([[{"en": "words"}]], [{"en": TEXT}]),
        ([[["words"]]], datasets.Sequence(datasets.Sequence(TEXT))),
        ([7], datasets.Value("int64")),
        ([0.5], datasets.Value("float64")),
        ([True], datasets.Value("bool")),
    ],
)
def test_captions_that_are_no_texts_are_refused(tmp_path, captions, feature):
    path = saved(tmp_path / "saved", captions, feature)
    with pytest.raises(ValueError, match=r"`caption_column` must hold texts or lists of texts, got .* in .*'text'"):
        all_items(ImageItems(load_image_dataset(path), 8))


def test_captions_as_bytes_are_texts(tmp_path):
    path = saved(tmp_path / "saved", ["Käse".encode(), b"\xff"], datasets.Value("binary"))
    captions, skipped = captions_of(load_image_dataset(path))
    assert captions == ["Käse", None]
    assert "row 1: 'utf-8' codec" in skipped[0]


# --- IDX folders -----------------------------------------------------------------------------------------------------


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.numpy().tobytes()


def idx_folder(path, number=5, separator="-", compressed=True):
    path.mkdir()
    images = torch.randint(256, (number, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    labels = torch.arange(number, dtype=torch.uint8) % 3
    for kind, array in ((f"images{separator}idx3", images), (f"labels{separator}idx1", labels)):
        data = idx(array)
        name = f"train-{kind}-ubyte" + (".gz" if compressed else "")
        (path / name).write_bytes(gzip.compress(data) if compressed else data)
    return images, labels


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("separator", ["-", "."])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_folders_are_sources(tmp_path, separator, compressed, streaming):
    images, labels = idx_folder(tmp_path / "digits", separator=separator, compressed=compressed)
    source = load_image_dataset(tmp_path / "digits", streaming=streaming)
    assert (source.channels, source.label_column, source.caption_column) == (1, "label", None)
    found = all_items(ImageItems(source, None, channels=1))
    assert [item["class_labels"] for item in found] == labels.tolist()
    pixels = torch.stack([item["pixels"] for item in found])
    torch.testing.assert_close(pixels[:, 0], images / 127.5 - 1.0)
    assert all_items(ImageItems(source, 8))[0]["pixels"].shape == (3, 8, 8)


@pytest.mark.parametrize("kind", ["torn gzip", "torn array", "other rank", "empty", "no gzip"])
def test_torn_idx_files_are_named(tmp_path, kind):
    idx_folder(tmp_path / "digits")
    file = tmp_path / "digits" / "train-images-idx3-ubyte.gz"
    whole = file.read_bytes()
    match kind:
        case "torn gzip":
            file.write_bytes(whole[:-20])
        case "torn array":
            file.write_bytes(gzip.compress(gzip.decompress(whole)[:-1]))
        case "other rank":
            file.write_bytes(gzip.compress(idx(torch.zeros(5, 3, dtype=torch.uint8))))
        case "empty":
            file.write_bytes(b"")
        case "no gzip":
            file.write_bytes(b"no gzip")
    with pytest.raises((ValueError, FileNotFoundError), match=r"`(path|source)` must .*digits"):
        load_image_dataset(tmp_path / "digits")


def test_an_idx_file_is_read_no_further_than_its_header_says(tmp_path):
    idx_folder(tmp_path / "digits")
    file = tmp_path / "digits" / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(gzip.decompress(file.read_bytes()) + bytes(10**7)))
    with pytest.raises(ValueError, match="must hold 120 bytes after its header, got at least 121"):
        load_image_dataset(tmp_path / "digits")


# --- hostile and torn sources ----------------------------------------------------------------------------------------


def saved_paths(folder, *paths, feature):
    """A saved data set whose rows name files, as `save_to_disk` would not write it: it takes their bytes."""
    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": TEXT}})
    rows = {"image": [{"bytes": None, "path": str(path)} for path in paths]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    if feature == "Image":
        information = json.loads((folder / "dataset_info.json").read_text())
        information["features"]["image"] = {"_type": "Image"}
        (folder / "dataset_info.json").write_text(json.dumps(information))
    return folder


@pytest.mark.parametrize("feature", ["Image", "struct"])
def test_rows_of_a_saved_data_set_name_files_inside_it_only(tmp_path, feature):
    outside = save(tmp_path / "outside.png")
    folder = tmp_path / "saved"
    paths = (folder / "a.png", "a.png", outside, f"file://{outside}", "/dev/zero", "../outside.png")
    saved_paths(folder, *paths, feature=feature)
    save(folder / "a.png")
    items = ImageItems(load_image_dataset(folder), 8)
    assert [item is not None for item in all_items(items)] == [True, True, False, False, False, False]
    assert all("`--allow-remote-files`" in each for each in items.skipped)
    items = ImageItems(load_image_dataset(folder, allow_remote_files=True), 8)
    assert [item is not None for item in all_items(items)] == [True, True, True, True, False, True]


@pytest.mark.parametrize("name", ["../other.arrow", "/dev/zero", None, 3])
def test_a_saved_data_set_lists_files_inside_it_only(tmp_path, name):
    folder = saved(tmp_path / "saved", ["words"], TEXT)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"] = [{"filename": name}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"`source` must name files inside its folder, got .* in '.*state\.json'"):
        load_image_dataset(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"_data_files": 3}'])
def test_a_torn_saved_data_set_is_named(tmp_path, content):
    folder = saved(tmp_path / "saved", ["words"], TEXT)
    (folder / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json"):
        load_image_dataset(folder)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_without_images_is_refused(tmp_path, streaming):
    (tmp_path / "notes.md").write_text("no image")
    with pytest.raises((ValueError, FileNotFoundError), match="`source` must "):
        load_image_dataset(tmp_path, streaming=streaming)


def test_a_listed_image_that_is_missing_is_left_out(tmp_path):
    save(tmp_path / "0.png")
    lines = [json.dumps({"file_name": name, "text": "words"}) for name in ("0.png", "1.png")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    captions, skipped = captions_of(load_image_dataset(tmp_path))
    assert captions == ["words", None]
    assert "1.png: [Errno 2] No such file" in skipped[0]


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/hostname", "file:///etc/hostname"])
def test_metadata_names_files_inside_the_folder_only(tmp_path, name):
    folder = tmp_path / "photos"
    save(tmp_path / "secret.png")
    save(folder / "0.png")
    lines = [json.dumps({"file_name": each, "text": "words"}) for each in ("0.png", name)]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    if int(datasets.__version__.partition(".")[0]) < 5:
        # datasets takes the row, and the reader of files leaves it out.
        items = ImageItems(load_image_dataset(folder), 8)
        assert [item is not None for item in all_items(items)] == [True, False]
        return
    with pytest.raises(ValueError, match="`source` must be a data set that can be read, got .*photos"):
        load_image_dataset(folder)


def test_links_out_of_an_image_folder_are_left_out(tmp_path):
    folder = tmp_path / "photos"
    save(folder / "0.png")
    (folder / "1.png").symlink_to(save(tmp_path / "outside.png"))
    (folder / "2.png").symlink_to(folder / "0.png")
    items = ImageItems(load_image_dataset(folder), 8)
    assert [item is not None for item in all_items(items)] == [True, False, True]
    assert "`--allow-remote-files` reads it" in items.skipped[0]
    items = ImageItems(load_image_dataset(folder, allow_remote_files=True), 8)
    assert all(item is not None for item in all_items(items))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_shard_that_was_cut_between_two_members_is_named(tmp_path, streaming):
    with tarfile.open(shard(tmp_path / "a.tar")) as archive:
        third = archive.getmembers()[4].offset
    whole = (tmp_path / "a.tar").read_bytes()
    for length in (third, third + 100):
        (tmp_path / "a.tar").write_bytes(whole[:length])
        with pytest.raises(
            ValueError, match=r"got \['.*a\.tar'\]: the two empty blocks that end an archive are missing"
        ):
            load_image_dataset(tmp_path, streaming=streaming)
    (tmp_path / "a.tar").write_bytes(whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 3 * 512])
    assert sum(1 for _ in all_items(ImageItems(load_image_dataset(tmp_path, streaming=streaming), 8))) == 4


def test_archives_in_image_folders_are_read(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("0.png", "1.png"):
            archive.writestr(name, encoded())
    items = ImageItems(load_image_dataset(tmp_path), 8)
    assert [item is not None for item in all_items(items)] == [True, True]
