"""A teacher under classifier-free guidance, so that a few-step model learns guided answers (arXiv 2210.03142).

    F = F(x_t, t, null) + s (F(x_t, t, c) - F(x_t, t, null))

The teacher is called twice, with and without the condition; its times are the same in both calls.
"""

from collections.abc import Mapping

from torch import Tensor

from .loss_inputs import check_null_condition, repeat_rows
from .student_path import Denoiser


__all__ = ["guided_teacher"]


def guided_teacher(teacher: Denoiser, null_condition: Mapping[str, object], scale: float) -> Denoiser:
    """A denoiser that gives a teacher's guided answer, by two calls of it.

    Args:
        teacher: The network, called without gradient.
        null_condition: The keywords that stand for no condition: those of every call, other than times.
        scale: The guidance scale s: 1 is the teacher itself, 0 its answer without a condition.

    Raises:
        ValueError: If there is no null condition; the denoiser raises it where the null condition does not fit.
    """
    if not null_condition:
        raise ValueError(
            f"`null_condition` must be given for a teacher with a guidance scale of {scale}, got {null_condition!r}."
        )

    def answer(x_t: Tensor, t: Tensor, /, **condition: object) -> Tensor:
        # A second time is among the keywords, and stays what it is.
        given = {name: condition[name] for name in null_condition if name in condition}
        check_null_condition(given, null_condition, is_needed=True)
        null = {name: repeat_rows(value, given[name]) for name, value in null_condition.items()}
        without = teacher(x_t, t, **{**condition, **null})
        return without + scale * (teacher(x_t, t, **condition) - without)

    return answer
