"""Tables of measurements, and the verdict of both sides."""

from diffusers_ucgm.solver_study.measurements import Measurement, verdict


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
