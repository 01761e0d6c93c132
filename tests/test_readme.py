"""The `README.md` of a saved folder."""

from diffusers_ucgm.readme import (
    OF_THE_SOURCE,
    OWN_EXAMPLE,
    STANDALONE_EXAMPLE,
    STOCK_EXAMPLE,
    head_readme,
    save_readme,
)


def test_the_folder_says_how_it_is_loaded(tmp_path):
    for example in (OWN_EXAMPLE, STOCK_EXAMPLE):
        folder = tmp_path / str(len(example)) / "new"
        save_readme(folder, "UCGMPipeline", example)
        text = (folder / "README.md").read_text()
        assert text.startswith("# UCGMPipeline\n")
        assert f"```python\n{example}```\n" in text
        compile(example, "README.md", "exec")


def test_a_readme_that_is_there_stays(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    save_readme(tmp_path, "UCGMPipeline", OWN_EXAMPLE)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_copy_with_code_says_first_how_it_is_loaded(tmp_path):
    file = tmp_path / "README.md"
    example = f"```python\n{STANDALONE_EXAMPLE}```\n"
    head_readme(tmp_path, "UCGMPipeline")
    assert example in (alone := file.read_text())
    file.unlink()
    save_readme(tmp_path, "UCGMPipeline", OWN_EXAMPLE)
    head_readme(tmp_path, "UCGMPipeline")
    assert file.read_text() == alone
    metadata, card = "---\nlicense: mit\n---\n", "# Mine\n\n---\n\nSome words.\n"
    file.write_text(metadata + "\n" + card)
    for _ in range(2):
        head_readme(tmp_path, "UCGMPipeline")
        assert file.read_text() == f"{metadata}\n{alone}\n{OF_THE_SOURCE}\n\n{card}"
