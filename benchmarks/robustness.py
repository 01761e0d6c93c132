"""Attack the package with malformed settings and hostile files, made anew from a seed, and count what it says.

    python benchmarks/robustness.py [--seed 0] [--settings 1000] [--files 1000] [--list]

Every attempt is judged: an error that names the setting or the file ("named"), another one ("bare"), a malformed
value that was accepted, or a result with NaN or infinity ("silent"), a command that would have ended in a traceback,
and a path that was opened outside of the folders that it was given. The last four must be 0, or the exit code is 1.
"legal" are damaged files and unusual values that may be accepted, and were, with a finite result.

Before that come controls: deliberate faults that the judge has to find, so that a 0 means something.
"""

import argparse
import importlib
import json
import os
import pkgutil
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path


# Before torch and the libraries of Hugging Face read them.
ROOT = Path(tempfile.mkdtemp(prefix="robustness-"))
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(ROOT / "hf"), "OMP_NUM_THREADS": "1", "TMPDIR": str(ROOT / "tmp")}
os.environ |= {"MPLCONFIGDIR": str(ROOT / "mpl"), "TQDM_DISABLE": "1", "XDG_CACHE_HOME": str(ROOT / "xdg")}
os.environ |= {"HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "MPLBACKEND": "agg"}
tempfile.tempdir = str(ROOT / "tmp")
(ROOT / "tmp").mkdir()

from attacks.artefacts import build_artefacts  # noqa: E402
from attacks.attempts import (  # noqa: E402
    BARE,
    FAULTS,
    HARMLESS,
    NAMED,
    OUTSIDE,
    SILENT,
    TRACEBACK,
    Attempt,
    Outcome,
    Unhandled,
    outcomes_of,
    run_attempt,
)
from attacks.files import file_attempts  # noqa: E402
from attacks.settings import setting_attempts  # noqa: E402
from attacks.tables import UNKNOWN  # noqa: E402
from attacks.tools import Tools  # noqa: E402
from results_file import add_results_option, keep  # noqa: E402

import diffusers_ucgm  # noqa: E402


PACKAGES = ("datasets", "peft", "transformers", "scipy.stats", "scipy.linalg", "matplotlib.pyplot", "optuna")
COLUMNS = {
    NAMED: "named",
    BARE: "bare",
    SILENT: "silent",
    TRACEBACK: "traceback",
    OUTSIDE: "outside",
    HARMLESS: "legal",
}


def _accept(folder: Path) -> None:
    """A setting that is taken without a word."""


def _give_nan(folder: Path) -> float:
    return float("nan")


def _fail_bare(folder: Path) -> None:
    raise KeyError("sigma")


def _fail_elsewhere(folder: Path) -> None:
    raise ValueError("not enough values to unpack (expected 2, got 1)")


def _fail_named(folder: Path) -> None:
    raise ValueError("`shift` must be positive, got -1.")


def _leave_a_traceback(folder: Path) -> None:
    raise Unhandled("KeyError: 'x'")


def _read_outside(folder: Path) -> None:
    Path("/etc/hostname").read_bytes()


def _crash(folder: Path) -> None:
    os.abort()


# Deliberate faults, and what the judge must find in them.
CONTROLS = (
    (_accept, True, SILENT),
    (_accept, False, HARMLESS),
    (_give_nan, False, SILENT),
    (_fail_bare, True, BARE),
    (_fail_elsewhere, True, BARE),
    (_fail_named, True, NAMED),
    (_leave_a_traceback, True, TRACEBACK),
    (_read_outside, False, OUTSIDE),
    (_crash, False, BARE),
)


def failed_controls(root: Path) -> list[str]:
    """The deliberate faults that the judge did not find."""
    failed = []
    for i, (run, is_malformed, expected) in enumerate(CONTROLS):
        folder = root / f"control-{i}"
        folder.mkdir(parents=True)
        attempt = Attempt("controls", run.__name__, ("shift",), run, is_malformed)
        found = run_attempt(attempt, folder, []).verdict
        if found != expected:
            failed.append(f"{run.__name__} must be judged {expected}, got {found}")
    return failed


def table(outcomes: list[Outcome]) -> str:
    """Counts by group."""
    rows = [("", "attempts", *COLUMNS.values())]
    groups = list(dict.fromkeys(each.attempt.group for each in outcomes))
    for group in [*sorted(groups), "all"]:
        counts = Counter(each.verdict for each in outcomes if group in ("all", each.attempt.group))
        rows.append((group, str(sum(counts.values())), *(str(counts[verdict]) for verdict in COLUMNS)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def load_packages() -> None:
    """Import what the attempts need, once for all processes to come."""
    for name in PACKAGES:
        importlib.import_module(name)
    for each in pkgutil.walk_packages(diffusers_ucgm.__path__, "diffusers_ucgm."):
        if "bundled" not in each.name and not each.name.endswith("__main__"):
            importlib.import_module(each.name)


def build(root: Path, seed: int) -> None:
    """Make the artefacts in a process of their own: threads that training starts do not survive a fork."""
    child = os.fork()
    if not child:
        code = 1
        try:
            build_artefacts(root, seed)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError(f"The artefacts in {str(root)!r} could not be made.")


def report(outcomes: list[Outcome], is_full: bool) -> None:
    """Print every fault, or every outcome."""
    for each in outcomes:
        if is_full or each.verdict in FAULTS:
            where = f" [{', '.join(each.outside)}]" if each.outside else ""
            text = " ".join(each.text.split())
            what = f"{each.attempt.group}: {each.attempt.what}"
            print(f"{each.verdict}: {what}: {text[:300]}{where} ({each.seconds:.1f} s)")


def main() -> int:
    """Attack, print faults and table; 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", type=int, default=10_000, help="the most attempts on settings")
    parser.add_argument("--files", type=int, default=10_000, help="the most attempts on files")
    parser.add_argument("--only", help="groups whose name contains this")
    parser.add_argument(
        "--list", action="store_true", help="print every attempt with its outcome, not the faults alone"
    )
    parser.add_argument("--controls", action="store_true", help="only show that the judge finds deliberate faults")
    parser.add_argument("--output", type=Path, help="JSON file for all outcomes")
    add_results_option(parser)
    args = parser.parse_args()
    if failed := failed_controls(ROOT / "controls"):
        print("\n".join(failed))
        return 1
    print(f"{len(CONTROLS)} controls: all judged rightly.", flush=True)
    if args.controls:
        return 0
    started = time.perf_counter()
    load_packages()
    artefacts = ROOT / "artefacts"
    build(artefacts, args.seed)
    rng = random.Random(args.seed)
    settings = setting_attempts(rng, Tools(artefacts))
    files = file_attempts(rng, artefacts)
    attempts = [
        each
        for part, number in ((settings, args.settings), (files, args.files))
        for each in [one for one in part if not args.only or args.only in one.group][:number]
    ]
    if UNKNOWN:
        print(f"Without a kind, and not attacked: {sorted(UNKNOWN)}")
    print(f"{len(settings)} settings and {len(files)} files, {len(attempts)} attempts, seed {args.seed}", flush=True)
    readable = [ROOT / each for each in ("artefacts", "hf", "tmp", "mpl", "xdg")]
    outcomes = []
    for each in outcomes_of(attempts, ROOT / "attempts", readable):
        outcomes.append(each)
        report([each], args.list)
        sys.stdout.flush()
    print(f"\n{table(outcomes)}\n\n{time.perf_counter() - started:.0f} s")
    keep(args.results, "Robustness", {"table": table(outcomes)})
    if args.output:
        rows = [
            {"group": o.attempt.group, "what": o.attempt.what, "verdict": o.verdict, "text": o.text} for o in outcomes
        ]
        args.output.write_text(json.dumps(rows, indent=1))
    faults = sum(each.verdict in FAULTS for each in outcomes)
    print(f"{faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    import shutil

    try:
        code = main()
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)
    sys.exit(code)
