"""Tables of measurements, and the verdict of both sides."""

import pytest

from diffusers_ucgm.solver_study.measurements import Measurement, comparison_table, save_comparison, verdict


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
