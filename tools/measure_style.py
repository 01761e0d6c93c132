"""Measure the style of a source tree: sizes, parameters, complexity, `Any`, names and repeated lines.

    python tools/measure_style.py                  # src/diffusers_ucgm
    python tools/measure_style.py PATH [PATH ...]  # other packages, one column each

Code lines are lines with a token of code: neither blank, nor comment, nor docstring. A function's lines include those
of the functions inside it. Cyclomatic complexity is 1 plus the branches (`if`, `for`, `while`, `except`, `case`,
conditional expressions, comprehensions with their conditions, and each further operand of `and` and `or`).
"""

import argparse
import ast
import io
import statistics
import tokenize
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path


PACKAGE = Path(__file__).resolve().parents[1] / "src" / "diffusers_ucgm"
Function = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (ast.If, ast.For, ast.While, ast.ExceptHandler, ast.IfExp, ast.match_case, ast.comprehension)
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
IRREGULAR_PARTICIPLES = {
    "begun", "bound", "built", "cut", "done", "drawn", "fed", "found", "given", "gone", "held", "kept", "known", "led",
    "left", "lost", "made", "met", "put", "read", "run", "said", "seen", "sent", "shown", "split", "spread", "struck",
    "taken", "told", "torn", "written",
}  # fmt: skip
# Verbs and nouns that have the form of a participle, and the word in the names of diffusers' own methods.
NO_PARTICIPLES = {
    "pretrained",
    "cut",
    "embed",
    "feed",
    "found",
    "led",
    "need",
    "put",
    "read",
    "run",
    "seed",
    "speed",
    "split",
}
SHARED_LINES = 6


@dataclass
class Measures:
    """What was counted in a package.

    Attributes:
        code_lines: Lines of code in all files.
        functions: Code lines of each function, by its place.
        classes: Lines of each class from its first to its last, by its place.
        parameters: Parameters of each function, by its place.
        complexities: Cyclomatic complexity of each function, by its place.
        any_uses: How often `Any` stands in annotations and aliases.
        participles: Functions that are named by a participle.
        repeated: Places of each run of code lines that stands more than once.
    """

    code_lines: int = 0
    functions: dict[str, int] = field(default_factory=dict)
    classes: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    complexities: dict[str, int] = field(default_factory=dict)
    any_uses: int = 0
    participles: list[str] = field(default_factory=list)
    repeated: dict[tuple[str, ...], list[tuple[str, int]]] = field(default_factory=lambda: defaultdict(list))


def code_line_numbers(text: str, tree: ast.Module) -> set[int]:
    """The numbers of the lines that hold code."""
    numbers: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            numbers.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, Function | ast.ClassDef | ast.Module) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            numbers.difference_update(range(docstring.lineno, (docstring.end_lineno or docstring.lineno) + 1))
    return numbers


def complexity(function: Function) -> int:
    """The cyclomatic complexity of a function, those inside it included."""
    branches = 0
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            branches += 1 + (len(node.ifs) if isinstance(node, ast.comprehension) else 0)
        elif isinstance(node, ast.BoolOp):
            branches += len(node.values) - 1
    return 1 + branches


def is_participle(name: str) -> bool:
    """Whether the last word of a function's name is a participle."""
    word = name.strip("_").split("_")[-1]
    return word not in NO_PARTICIPLES and (word in IRREGULAR_PARTICIPLES or (word.endswith("ed") and len(word) > 3))


def add_file(found: Measures, path: Path, root: Path) -> None:
    """Count a file's lines, functions and classes."""
    text = path.read_text()
    tree = ast.parse(text)
    numbers = code_line_numbers(text, tree)
    found.code_lines += len(numbers)
    for node in ast.walk(tree):
        place = f"{path.relative_to(root)}:{getattr(node, 'lineno', 0)} {getattr(node, 'name', '')}"
        if isinstance(node, Function):
            first = node.lineno
            found.functions[place] = len([n for n in numbers if first <= n <= (node.end_lineno or first)])
            arguments = node.args
            names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            found.parameters[place] = len([name for name in names if name not in ("self", "cls")])
            found.complexities[place] = complexity(node)
            if is_participle(node.name):
                found.participles.append(place)
        elif isinstance(node, ast.ClassDef):
            found.classes[place] = (node.end_lineno or node.lineno) - node.lineno + 1
        elif isinstance(node, ast.Name) and node.id == "Any":
            found.any_uses += 1
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if number in numbers]
    # As in the review: imports and lone punctuation repeat by nature.
    kept = [(n, line) for n, line in lines if len(line) > 2 and not line.startswith(("import ", "from "))]
    for i in range(len(kept) - SHARED_LINES + 1):
        run = tuple(line for _, line in kept[i : i + SHARED_LINES])
        found.repeated[run].append((str(path.relative_to(root)), kept[i][0]))


def measured(root: Path) -> Measures:
    """The measures of all Python files below a folder."""
    found = Measures()
    for path in sorted(root.rglob("*.py")):
        add_file(found, path, root)
    return found


def duplicate_pairs(found: Measures) -> list[str]:
    """Pairs of places that share runs of code lines, each pair of files with its first run."""
    pairs: dict[tuple[str, str], str] = {}
    for places in found.repeated.values():
        for i, (file, line) in enumerate(places):
            for other, other_line in places[i + 1 :]:
                pairs.setdefault((file, other), f"{file}:{line} ~ {other}:{other_line}")
    return sorted(pairs.values())


def largest(values: dict[str, int], number: int) -> str:
    """The largest values with their places."""
    top = sorted(values.items(), key=lambda item: -item[1])[:number]
    return ", ".join(f"{value} ({place})" for place, value in top)


def report(root: Path, number: int) -> None:
    """Print the measures of a package."""
    found = measured(root)
    sizes = sorted(found.functions.values())
    complexities = sorted(found.complexities.values())
    tenth = lambda values: values[int(0.9 * (len(values) - 1))]
    pairs = duplicate_pairs(found)
    print(f"# {root}")
    print(f"code lines: {found.code_lines}; functions: {len(sizes)}; classes: {len(found.classes)}")
    print(f"function median / p90 / longest: {statistics.median(sizes):.0f} / {tenth(sizes)} / {sizes[-1]}")
    print(f"  longest: {largest(found.functions, number)}")
    print(f"largest classes: {largest(found.classes, number)}")
    print(f"most parameters: {largest(found.parameters, number)}")
    print(f"complexity p90: {tenth(complexities)}; largest: {largest(found.complexities, number)}")
    print(f"Any per 1000 code lines: {1000 * found.any_uses / found.code_lines:.1f}")
    share = 100 * len(found.participles) / len(sizes)
    print(f"functions named by a participle: {share:.1f} %: {', '.join(found.participles[: 4 * number])}")
    print(f"pairs of files that share {SHARED_LINES} code lines: {len(pairs)}")
    for pair in pairs[: 4 * number]:
        print(f"  {pair}")


def main() -> None:
    """Measure the folders of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[PACKAGE])
    parser.add_argument("--number", type=int, default=5, help="places that are listed of each kind (%(default)s)")
    args = parser.parse_args()
    for path in args.paths:
        report(path, args.number)


if __name__ == "__main__":
    main()
