"""The `README.md` of a saved folder."""

from diffusers_ucgm.readme import OWN_EXAMPLE, STOCK_EXAMPLE, save_readme


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
