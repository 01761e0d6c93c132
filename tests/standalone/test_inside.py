"""What a file of code does in the place of the package: it copies itself."""

import sys

from diffusers_ucgm.standalone import inside
from diffusers_ucgm.standalone.inside import IS_STANDALONE, Code, code_of, installed_index


def test_a_component_is_copied_from_the_file_it_was_loaded_from(tmp_path, monkeypatch):
    (tmp_path / "ucgm_scheduler.py").write_text("value = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ucgm_scheduler", raising=False)
    assert code_of("ucgm_scheduler") is None
    import ucgm_scheduler  # noqa: F401

    assert code_of("ucgm_scheduler") == Code("ucgm_scheduler", "value = 1\n")
    monkeypatch.delitem(sys.modules, "ucgm_scheduler")
    assert code_of("diffusers") is None
    assert IS_STANDALONE


def test_the_pipeline_is_the_file_itself():
    with open(inside.__file__, encoding="utf-8") as file:
        assert code_of("pipeline") == Code("pipeline", file.read())


def test_an_index_stays_as_it_is():
    assert installed_index({"scheduler": ["ucgm_scheduler", "UCGMScheduler"]}) == {
        "scheduler": ["ucgm_scheduler", "UCGMScheduler"]
    }
