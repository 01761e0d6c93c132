"""All attempts on files."""

import random
from pathlib import Path

from .attempts import Attempt
from .images import image_attempts, source_attempts
from .models import folder_attempts, state_attempts, weight_attempts
from .outside import outside_attempts
from .values import settings_file_attempts, statistics_attempts


def file_attempts(rng: random.Random, artefacts: Path) -> list[Attempt]:
    """All attempts on files, in random order."""
    attempts = [
        *folder_attempts(rng, artefacts),
        *weight_attempts(rng, artefacts),
        *state_attempts(rng, artefacts),
        *settings_file_attempts(rng, artefacts),
        *statistics_attempts(rng, artefacts),
        *image_attempts(rng),
        *source_attempts(rng, artefacts),
        *outside_attempts(rng, artefacts),
    ]
    rng.shuffle(attempts)
    return attempts
