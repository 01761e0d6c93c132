"""The documentation as a site: its navigation, its reference and its page of errors, without building it."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

import diffusers_ucgm


ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGE = ROOT / "src" / "diffusers_ucgm"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").rglob("*.py"))


class SiteLoader(yaml.SafeLoader):
    """Reads `mkdocs.yml`."""


def pages_in(entry):
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [page for value in values for page in pages_in(value)]


def site():
    return yaml.load((ROOT / "mkdocs.yml").read_text(), SiteLoader)


def test_every_page_is_in_the_navigation_once():
    in_navigation = sorted(pages_in(site()["nav"]))
    assert in_navigation == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_the_list_of_integrations_names_tests_that_exist():
    text = (DOCS / "integrations" / "index.md").read_text()
    commands = re.findall(r"`pytest ([^`]+)`", text)
    assert len(commands) == text.count("\n| ") - 2
    assert [path for command in commands for path in command.split() if not (ROOT / path).exists()] == []


# What GitHub shows and the site does not -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hooks():
    """`tools/site_hooks.py`, where mkdocs is installed: `make check` does that, `make test` does not."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "tools" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_link_out_of_docs_leads_to_a_copy_in_the_site(hooks):
    page = DOCS / "concepts.md"
    text = "[a](../CONTRIBUTING.md#tests) [b](glossary.md) [c](https://d.e) [f](#g)\n```\n[h](../README.md)\n```\n"
    shown = hooks.with_site_links(text, page)
    assert shown == text.replace("../CONTRIBUTING.md#tests", "repository/CONTRIBUTING.md#tests")
    assert hooks.files_linked(text, page) == {ROOT / "CONTRIBUTING.md", DOCS / "glossary.md"}
    copy = hooks.file_of("repository/CONTRIBUTING.md")
    assert copy == ROOT / "CONTRIBUTING.md"
    assert hooks.with_site_links("[a](docs/architecture.md#b)", copy) == "[a](../architecture.md#b)"


def test_every_diagram_has_its_picture_and_a_changed_one_has_none(hooks):
    diagrams = [found[1] for page in PAGES for found in hooks.DIAGRAM.finditer(page.read_text())]
    assert [hooks.picture_of(each) for each in diagrams] == [DOCS / "images" / "architecture.svg"]
    assert hooks.picture_of(f"{diagrams[0]} a --> b") is None
    shown = hooks.with_pictures(f"```mermaid\n{diagrams[0]}```\n", DOCS / "reference" / "index.md")
    assert shown == "![Diagram](../images/architecture.svg)\n"


@pytest.mark.parametrize(
    ("html", "is_loaded"),
    [
        ('<script src="https://a.b/c.js">', True),
        ("<link rel=stylesheet href=//fonts.a.b>", True),
        ('<img alt="x" src="http://a.b/c.png">', True),
        ('<a href="https://a.b">', False),
        ('<script src="assets/c.js">', False),
    ],
)
def test_what_a_page_loads_from_elsewhere_is_found(hooks, html, is_loaded):
    assert bool(hooks.LOADED.search(html)) is is_loaded


# The reference ---------------------------------------------------------------------------------------------------


def names_in_reference():
    text = "\n".join(page.read_text() for page in sorted((DOCS / "reference").glob("*.md")))
    return re.findall(r"^::: diffusers_ucgm\.(\S+)$", text, re.MULTILINE)


def public_names(tree):
    """The names that a module lists as public, or defines at its top without an underscore."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return ast.literal_eval(node.value)
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in tree.body if isinstance(node, ast.AnnAssign)]
    return defined + [target.id for target in targets if isinstance(target, ast.Name)]


def module_file(dotted):
    path = PACKAGE.joinpath(*dotted.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of_ours(source):
    """Each `module.name` that a source imports from a module of the package, without the package's own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("diffusers_ucgm."):
            yield from (f"{node.module.removeprefix('diffusers_ucgm.')}.{alias.name}" for alias in node.names)


def python_blocks(page):
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def names_shown():
    """What the pages and the examples import from modules of the package."""
    sources = [block for page in PAGES for block in python_blocks(page)] + [file.read_text() for file in EXAMPLES]
    return sorted({name for source in sources for name in imports_of_ours(source)})


def test_the_reference_has_every_public_name():
    assert sorted(set(diffusers_ucgm.__all__) - set(names_in_reference())) == []
    assert set(diffusers_ucgm._MODULES) == set(diffusers_ucgm.__all__)


def test_the_reference_has_what_pages_and_examples_import():
    known = set(names_in_reference())
    missing = [name for name in names_shown() if name not in known and name.rpartition(".")[0] not in known]
    assert missing == []


def test_the_reference_names_what_exists_once():
    names = names_in_reference()
    assert sorted(names) == sorted(set(names))
    for name in names:
        module, _, last = name.rpartition(".")
        if module:
            exists = module_file(name).exists() or last in public_names(ast.parse(module_file(module).read_text()))
            assert exists, name
        else:
            assert name in diffusers_ucgm.__all__ or module_file(name).exists()


def test_the_list_of_the_reference_names_them_all():
    text = (DOCS / "reference" / "index.md").read_text()
    anchors = re.findall(r"\]\((\S+\.md)#diffusers_ucgm\.(\S+?)\)", text)
    pages = {name: page.name for page in (DOCS / "reference").glob("*.md") for name in _names_of(page)}
    assert dict((name, page) for page, name in anchors) == pages


def _names_of(page):
    return re.findall(r"^::: diffusers_ucgm\.(\S+)$", page.read_text(), re.MULTILINE)


# The page of errors ----------------------------------------------------------------------------------------------


def template_of(node):
    """A text of the sources as a pattern in which the parts that vary match anything; None if it is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template_of(part) if isinstance(part, ast.Constant) else ".+" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [template_of(node.left), template_of(node.right)]
        return "".join(part or ".*" for part in parts)
    return None


def templates():
    """The texts of the package that are long enough to be a sentence."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            pattern = template_of(node)
            if pattern and len(re.sub(r"\.\+|\\", "", pattern)) >= 24:
                yield pattern


def errors_quoted():
    """The texts of this package that the page quotes: all below the errors of diffusers."""
    text = (DOCS / "errors.md").read_text().partition("\n## Few-step models and LoRAs\n")[2]
    quoted = re.findall(r"^```text\n(.*?)\n```", text, re.DOTALL | re.MULTILINE)
    return [*quoted, "`mu` must be given under `use_dynamic_shifting`, got None."]


@pytest.fixture(scope="module")
def patterns():
    return [re.compile(pattern, re.DOTALL) for pattern in templates()]


def test_a_quoted_error_is_found_only_by_its_words(patterns):
    assert any(each.fullmatch("`step` was called before `set_timesteps`.") for each in patterns)
    assert not any(each.fullmatch("`step` was called ahead of `set_timesteps`.") for each in patterns)


@pytest.mark.parametrize("quoted", errors_quoted())
def test_the_quoted_errors_are_those_of_the_sources(quoted, patterns):
    assert any(each.fullmatch(quoted) for each in patterns)
