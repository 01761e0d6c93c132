"""Kill a small run of the trainer again and again, and let it resume each time.

    python tests/training/killed_run.py OUTPUT KILLS SEED

Everything is imported once; each attempt is a fork of this process, killed by SIGKILL at a random moment of its work.
Prints the step of the checkpoint that every attempt started from.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import distributed_run

from diffusers_ucgm.training.checkpoints import latest_checkpoint


SETTINGS = [
    # A fast machine takes a dozen steps before a kill, and ten kills must find work.
    "max_train_steps=150",
    "checkpointing_steps=2",
    "train_batch_size=4",
    "teacher_decay=0.99",
    "consistency_ratio=0.0",
    "consistency_schedule=[[0, 0.2], [40, 1.0]]",
    'resume_from_checkpoint="latest"',
]


def attempt(output):
    """A process that trains in this folder, and what it ends with if nobody stops it."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        sys.argv = ["distributed_run.py", str(output), *SETTINGS]
        distributed_run.main()
        os._exit(0)
    return child


def main():
    output, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    chance = random.Random(seed)
    starts = []
    for _ in range(kills):
        before = latest_checkpoint(output)
        starts.append(0 if before is None else int(before.name.split("-")[1]))
        child = attempt(output)
        # Not before the attempt has got further, so that ten kills are spread over the run.
        while latest_checkpoint(output) == before:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the run ended before it got further"
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the run ended before it was killed"
    _, status = os.waitpid(attempt(output), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    print(json.dumps(starts))  # noqa: T201


if __name__ == "__main__":
    main()
