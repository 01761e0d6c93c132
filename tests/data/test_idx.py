"""Arrays in the IDX format are read whole or refused."""

import gzip

import pytest
import torch
from idx_files import idx_bytes, write_folder

from diffusers_ucgm.data.idx import load_idx_images, read_idx
from diffusers_ucgm.data.images import load_image_dataset


# --- IDX files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shape", [(7,), (2, 3), (300, 2, 5)])
def test_arrays_of_any_rank_are_read(tmp_path, shape, suffix):
    array = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    path = tmp_path / f"array-ubyte{suffix}"
    path.write_bytes(gzip.compress(idx_bytes(array)) if suffix else idx_bytes(array))
    read = read_idx(str(path))
    assert read.dtype == torch.uint8
    assert torch.equal(read, array)


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00\x00", b"\x00\x00\x0d\x01\x00\x00\x00\x00", b"\x89PNG\r\n\x1a\n"],
    ids=["empty", "short", "floats", "png"],
)
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` must be an IDX file of unsigned bytes, got '.*file' with start b"):
        read_idx(path)


@pytest.mark.parametrize("missing", [1, 10])
def test_a_truncated_array_is_refused(tmp_path, missing):
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(torch.zeros(2, 3, 4))[:-missing])
    message = rf"`path` must hold 24 bytes after its header, got {24 - missing} in '.*file'\. The file is truncated"
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_a_file_that_ends_in_its_header_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(torch.zeros(2, 3, 4))[:7])
    with pytest.raises(ValueError, match=r"`path` must .* in '.*file'\. The file is truncated"):
        read_idx(path)


@pytest.mark.parametrize(
    "content",
    [
        gzip.compress(idx_bytes(torch.zeros(50, 3, 4)))[:-9],
        gzip.compress(idx_bytes(torch.zeros(50, 3, 4)))[:14] + b"\xff" * 30,
        b"not compressed at all",
    ],
    ids=["truncated", "damaged", "plain"],
)
def test_a_broken_gzip_file_is_refused(tmp_path, content):
    path = tmp_path / "file.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"`path` must be a whole gzip file, got '.*file\.gz'"):
        read_idx(path)


def test_images_without_labels_are_images(tmp_path):
    images = torch.arange(32).reshape(2, 4, 4)
    write_folder(tmp_path, images, torch.tensor([1, 0]))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    source = load_image_dataset(tmp_path)
    assert (source.label_column, len(source.dataset)) == (None, 2)
    with pytest.raises(
        FileNotFoundError, match=r"must hold 'train-labels-idx1-ubyte' or 'train-labels-idx1-ubyte.gz'"
    ):
        load_idx_images(tmp_path)


def test_a_missing_split_names_the_one_that_is_there(tmp_path):
    write_folder(tmp_path, torch.zeros(2, 4, 4), torch.tensor([1, 0]), prefix="t10k")
    assert len(load_image_dataset(tmp_path, "test").dataset) == 2
    with pytest.raises(FileNotFoundError, match=r"'train-images-idx3-ubyte' .* It has those of the split 'test'\."):
        load_image_dataset(tmp_path)
