"""Kill a small evaluation again and again, and start it anew each time.

    python tests/image_metrics/killed_evaluation.py KILLS OUTPUT WORDS...

Everything is imported once; each attempt is a fork of this process that runs `ucgm evaluate` with the words, killed by
SIGKILL at a random moment after it has got further. Prints how many files of samples each attempt found.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from diffusers_ucgm import cli


def attempt(words):
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        os._exit(cli.main(words))
    return child


def main():
    kills, output = int(sys.argv[1]), Path(sys.argv[2])
    words = ["evaluate", "--output", str(output), *sys.argv[3:]]
    import diffusers_ucgm.solver_study.commands  # noqa: F401
    from diffusers_ucgm.image_metrics import samples

    generate = samples.generate

    def slow_generate(*args, **options):
        time.sleep(0.1)  # no attempt is to be done before it is killed
        return generate(*args, **options)

    samples.generate = slow_generate
    chance = random.Random(0)
    found = []
    for _ in range(kills):
        found.append(len(list(output.glob("samples/*.safetensors"))))
        child = attempt(words)
        while len(list(output.glob("samples/*.safetensors"))) == found[-1]:
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "the evaluation ended before it got further"
            time.sleep(0.001)
        time.sleep(chance.uniform(0.0, 0.12))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the evaluation ended before it was killed"
    _, status = os.waitpid(attempt(words), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
