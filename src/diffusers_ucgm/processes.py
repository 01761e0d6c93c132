"""The processes of a launch."""

import os


__all__ = ["check_launch", "is_first_process"]


def is_first_process() -> bool:
    """Whether this process is the one of its launch that prints."""
    return os.environ.get("RANK", "0") == "0"


def check_launch(num_processes: int) -> None:
    """Check that processes that were started together know of each other.

    Args:
        num_processes: The number of processes in accelerate's group.

    Raises:
        RuntimeError: If a launcher started another number: each would do all of the work, and write the same files.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if "LOCAL_RANK" in os.environ and started != num_processes:
        raise RuntimeError(
            f"The {started} processes of this launch must form one group, got {num_processes} in accelerate's. "
            "Without an accelerator set ACCELERATE_USE_CPU=1."
        )
