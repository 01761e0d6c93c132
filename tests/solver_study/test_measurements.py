"""Tables of measurements, and the verdict of both sides."""

import csv
import io

import pytest

from diffusers_ucgm.solver_study.measurements import (
    Measurement,
    comparison_csv,
    comparison_table,
    save_comparison,
    verdict,
)


def test_evaluations_stand_beside_calls_where_calls_are_guided(tmp_path):
    pytest.importorskip("matplotlib")
    guided = [Measurement("a", 2, 2, 0.5, evaluations=4.0), Measurement("b", 2, 2, 0.25, evaluations=3.5)]
    assert comparison_table(guided, "evaluations").splitlines()[2:] == ["| a | 4 |", "| b | 3.5 |"]
    printed = save_comparison(guided, tmp_path)
    assert "Network evaluations of a sample, of which a guided call has two, by network calls:" in printed
    assert "| b | 3.5 |" in (tmp_path / "comparison.md").read_text()
    plain = [Measurement("a", 2, 2, 0.5, evaluations=2.0), Measurement("b", 2, reason="cannot")]
    assert "guided" not in save_comparison(plain, tmp_path / "plain").replace(str(tmp_path), "")


def test_the_verdict_names_the_best_of_both_sides_where_both_were_measured():
    rows = [
        Measurement("UCGM-S", 2, 2, 0.5),
        Measurement("UCGM-S auto", 2, 2, 0.25),
        Measurement("Euler", 2, 2, 0.5),
        Measurement("Heun", 2, reason="cannot"),
        Measurement("UCGM-S", 4, 4, 0.1),
    ]
    assert verdict(rows, ["UCGM-S", "UCGM-S auto"]).splitlines()[2:] == [
        "| 2 | UCGM-S auto: 2.50e-01 | Euler: 5.00e-01 | 0.50 |"
    ]


def test_a_median_stands_with_its_interval(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        Measurement("a", 2, 2, 0.5, median_low=0.4, median_high=0.75),
        Measurement("b", 2, 1, 0.75, median_low=0.7, median_high=0.8),
    ]
    assert comparison_table(rows).splitlines()[2:] == ["| a | **0.5** [0.4, 0.75] |", "| b | 0.75 [0.7, 0.8] (1) |"]
    assert "by network calls, with its 95% bootstrap interval over the seeds:" in save_comparison(rows, tmp_path)


def test_a_few_step_model_has_a_row_of_the_frechet_distance_alone(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        Measurement("a", 2, 2, 0.5, 0.6, 0.0, 30.0, evaluations=4.0),
        Measurement("b", 2, reason="cannot"),
        Measurement("tuned", 2, 2, frechet_distance=12.0, evaluations=2.0),
    ]
    assert comparison_table(rows).splitlines()[2:] == ["| a | **0.5** |", "| b |  |"]
    assert comparison_table(rows, "frechet_distance").splitlines()[2:] == [
        "| a | 30 |",
        "| b |  |",
        "| tuned | **12** |",
    ]
    printed = save_comparison(rows, tmp_path, emphasised=["tuned"])
    assert "Fréchet distance to the reference, by network calls:" in printed
    assert {each.name for each in tmp_path.iterdir()} == {
        *("comparison.md", "comparison.csv", "quality.png", "frechet.png")
    }


def test_every_value_is_in_the_csv():
    rows = [Measurement("a, b", 2, 2, 0.1234567890123, median_low=0.1), Measurement("c", 4, reason='ValueError: "no"')]
    first, second = csv.DictReader(io.StringIO(comparison_csv(rows)))
    assert first["solver"] == "a, b"
    assert float(first["median"]) == 0.1234567890123
    assert (second["calls"], second["median"], second["reason"]) == ("4", "", 'ValueError: "no"')
    assert list(first) == list(vars(rows[0]))
