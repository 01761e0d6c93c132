"""Several processes: the same weights as one, and checkpoints that any number of processes goes on from."""

import pytest
import torch
from diffusers.utils.import_utils import compare_versions
from launched_runs import assert_close, log, run


# FSDP2 takes processors for devices with streams, which they are not in torch 2.6; in 2.7 and 2.8 the weights differ.
cannot_shard = pytest.mark.skipif(
    compare_versions("torch", "<", "2.9.0"), reason="this torch shards on accelerators only"
)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return *run(folder, 1), folder


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "DistributedType.MULTI_CPU"),
        ({"train_batch_size": 2, "gradient_accumulation_steps": 2}, "DistributedType.MULTI_CPU"),
        pytest.param({"shard": True}, "DistributedType.FSDP", marks=cannot_shard),
    ],
    ids=["ddp", "ddp with accumulation", "fsdp2"],
)
def test_two_processes_give_the_weights_of_one(tmp_path, single, settings, kind):
    last, saved, found = run(tmp_path, 2, **settings)
    assert found == kind
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(saved, single[1], rtol=0, atol=1e-5)
    assert_close(log(tmp_path), log(single[3]))


def test_a_full_disk_costs_all_processes_the_checkpoint_and_none_the_run(tmp_path, single):
    last, _, _ = run(tmp_path, 2, full_disk=True)
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
    assert not list(tmp_path.glob("*checkpoint*"))


@cannot_shard
def test_a_sharded_run_resumes_from_its_checkpoint_and_from_that_of_one_process(tmp_path, single):
    run(tmp_path, 2, shard=True)
    sharded = tmp_path / "checkpoint-3"
    for i, source in enumerate((sharded, single[3] / "checkpoint-3")):
        last, saved, _ = run(tmp_path / str(i), 2, shard=True, resume_from_checkpoint=str(source))
        torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(saved, single[1], rtol=0, atol=1e-5)
        # The checkpoint lies between two lines: what it has of the second is of all processes, and counts once.
        assert_close(log(tmp_path / str(i)), log(single[3])[1:])
    # And one process goes on from what two have written.
    last, _, _ = run(tmp_path / "one", 1, resume_from_checkpoint=str(sharded))
    torch.testing.assert_close(last, single[0], rtol=0, atol=1e-5)
