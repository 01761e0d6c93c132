"""The lines of scores by the kind of prompt."""

from diffusers_ucgm.image_metrics.score_lines import prompt_lines, score_lines


def scores(images, kind, agreement=None, reason="too few"):
    metrics = {} if agreement is None else {"text_agreement": agreement}
    return {
        "images": images,
        "kind": kind,
        "metrics": metrics,
        "left_out": {} if metrics else {"text_agreement": reason},
    }


def found(*rows, used=3):
    return {"model": "clip", "num_prompts": 3, "num_used_prompts": used, "scores": list(rows)}


def test_generated_images_are_beside_real_ones():
    rows = [scores("generated", None, 0.5), scores("generated", "seen", 0.6), scores("generated", "few")]
    rows += [scores("real", None, 0.8), scores("real", "seen", 0.75), scores("real", "few")]
    assert score_lines("text_agreement", found(*rows)) == [
        "    all: real images 0.8000, ratio 0.6250",
        "    seen: 0.6000, real images 0.7500, ratio 0.8000",
        "    few: left out (too few), real images left out (too few)",
    ]


def test_without_real_images_there_are_kinds_alone():
    assert score_lines("text_agreement", found(scores("generated", None, 0.5))) == []
    rows = [scores("generated", None, 0.5), scores("generated", "seen", 0.5), scores("real", None, 0.0)]
    assert score_lines("text_agreement", found(*rows)) == ["    all: real images 0.0000", "    seen: 0.5000"]


def test_other_metrics_and_other_evaluations_have_no_such_lines():
    assert score_lines("frechet_distance", found(scores("generated", None, 0.5))) == []
    assert score_lines("text_agreement", None) == prompt_lines(None) == []


def test_prompts_without_a_sample_are_counted():
    assert prompt_lines(found()) == []
    assert prompt_lines(found(used=2)) == ["Only the first 2 of 3 prompts have a sample."]
