"""Short evaluations, for the tests of image metrics."""

from pathlib import Path

from diffusers_ucgm.image_metrics import samples


FOLDER = Path(__file__).parent
NUMBER, BATCH = 22, 4  # in six files, the last with two
ALL = {
    "frechet_distance",
    "spatial_frechet_distance",
    "inception_score",
    "inception_score_std",
    "precision",
    "recall",
}


def words(given, **changes):
    options = {
        "model": given / "model",
        "steps": 2,
        "num-samples": NUMBER,
        "batch-size": BATCH,
        "features": given / "classifier",
        "reference": given / "real",
        "device": "cpu",
        **changes,
    }
    return [word for name, value in options.items() for word in (f"--{name}", *str(value).split())]


def drawn_of(monkeypatch):
    """The seeds of every call that draws from now on."""
    calls, generate = [], samples.generate

    def counted(pipe, conditions, seeds, *args, **kwargs):
        calls.append(list(seeds))
        return generate(pipe, conditions, seeds, *args, **kwargs)

    monkeypatch.setattr(samples, "generate", counted)
    return calls
