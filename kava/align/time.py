"""Time warp: teacher KV laid onto fewer student tokens, segment by segment."""

import numpy as np
import torch
from torch import Tensor

from kava.data.tokens import Segment


def warp_rows(
    rows: Tensor, teacher_segments: np.ndarray, student_segments: np.ndarray, ratio: float | None, alpha: float
) -> Tensor:
    """Rows of the teacher's tokens, read at the places of the student's.

    Student token j of a segment reads x = (j + 0.5) / r − 0.5 of the teacher's n_t tokens of that segment, cut to
    0 … n_t − 1, with r = n_s / n_t; a segment of equal length is copied.

    Parameters
    ----------
    rows
        `[T_t, …]`.
    teacher_segments, student_segments
        Segment of every token, `[T_t]` and `[T_s]`.
    ratio
        r of the reasoning; None for that of the lengths.
    alpha
        0: the nearest row; 1: linear interpolation; between: a mixture.

    Returns
    -------
    Tensor
        `[T_s, …]` in the dtype of `rows`.
    """
    warped = rows.new_empty((len(student_segments), *rows.shape[1:]))
    for segment in Segment:
        of_teacher = rows[torch.from_numpy(teacher_segments == segment).to(rows.device)]
        into = torch.from_numpy(student_segments == segment).to(rows.device)
        count, there = int(into.sum()), len(of_teacher)
        if count == there:
            warped[into] = of_teacher
        elif count:
            r = ratio if ratio is not None and segment == Segment.REASONING else count / there
            x = (torch.arange(count, device=rows.device, dtype=torch.float64) + 0.5) / r - 0.5
            x = x.clamp(0, there - 1)
            low = x.floor().long()
            share = (x - low).float().view(-1, *[1] * (rows.dim() - 1))
            before, after = of_teacher[low].float(), of_teacher[(low + 1).clamp(max=there - 1)].float()
            linear = before + share * (after - before)
            nearest = of_teacher[(x + 0.5).floor().long().clamp(max=there - 1)].float()
            warped[into] = (alpha * linear + (1 - alpha) * nearest).to(rows.dtype)
    return warped
