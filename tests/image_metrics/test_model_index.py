"""Results of an evaluation enter the model card."""

import pytest
from evaluation_runs import ALL
from huggingface_hub import ModelCard

from diffusers_ucgm.image_metrics.model_index import update_model_card


pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def test_model_card_gets_an_entry_for_each_setting(run, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [ucgm]\n---\n\n# A model\n\nSome words.\n")
    result = run(tmp_path / "out")
    for _ in range(2):
        update_model_card(folder, result)
    other = run(tmp_path / "other", num_inference_steps=3)
    card = ModelCard.load(update_model_card(folder, other))
    assert card.data.license == "apache-2.0"
    assert card.content.endswith("\n# A model\n\nSome words.\n")
    results = card.data.eval_results
    assert len(results) == 2 * len(ALL)
    found = {(each.metric_type, each.metric_args["num_inference_steps"]): each.metric_value for each in results}
    assert found["frechet_distance", 2] == pytest.approx(result.metrics["frechet_distance"], abs=1e-4)
    assert found["recall", 3] == pytest.approx(other.metrics["recall"], abs=1e-4)
    assert results[0].dataset_name == "real"


def test_model_card_is_made_where_there_is_none(run, given, tmp_path):
    result = run(tmp_path / "out", num_samples=8)
    (tmp_path / "model").mkdir()
    card = ModelCard.load(update_model_card(tmp_path / "model", result))
    assert card.data.model_name == "model"
    assert "Frechet distance" in card.data.eval_results[0].metric_name
    with pytest.raises(FileNotFoundError, match="`folder` must be a folder with a model"):
        update_model_card(tmp_path / "nowhere", result)
