"""Seconds until `ucgm COMMAND --help` is printed, for every command.

    python benchmarks/help_time.py [--repeats 5]

Each is a process of its own, as in a shell; the fastest of the repeats counts. Exits with 1 if one takes 0.5 s.
"""

import argparse
import subprocess
import sys
import time

from results_file import PrintedTable, add_results_option, keep

from diffusers_ucgm.cli import COMMANDS


LIMIT = 0.5


def seconds_of(words: list[str]) -> float:
    """How long a process takes to print the help of a command."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "diffusers_ucgm.cli", *words, "--help"], capture_output=True, check=True)
    return time.perf_counter() - started


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    add_results_option(parser)
    args = parser.parse_args()
    table = PrintedTable("command", "seconds")
    slow = 0
    for words in [[], *([name] for name in COMMANDS)]:
        fastest = min(seconds_of(words) for _ in range(args.repeats))
        slow += fastest >= LIMIT
        table.add(f"ucgm {' '.join([*words, '--help'])}", f"{fastest:.2f}")
    keep(args.results, "Time of the commands' help", {"table": table.markdown()})
    return int(slow > 0)


if __name__ == "__main__":
    sys.exit(main())
