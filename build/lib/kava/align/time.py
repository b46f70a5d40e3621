"""Time warp: teacher rows laid onto student tokens, segment by segment, where the student reads fewer tokens."""

import numpy as np
import torch
from torch import Tensor

from kava.data.tokens import Segment


def warp_rows(
    rows: Tensor,
    segments_teacher: np.ndarray | Tensor,
    segments_student: np.ndarray | Tensor,
    ratio: float | None,
    alpha: float,
) -> Tensor:
    """Lay the rows of one example's teacher tokens onto its student tokens.

    Prompt, reasoning and answer are warped apart. A segment of equal lengths is handed on as it is, bit for bit,
    unless `ratio` warps it.

    Parameters
    ----------
    rows
        One row per teacher token, `[T_t, …]`, of any floating dtype, on any device.
    segments_teacher, segments_student
        `Segment` of every token, `[T_t]` and `[T_s]`, on the CPU; contiguous and in order.
    ratio
        Student tokens per teacher token in the reasoning; None: that of the lengths, as in the other segments.
    alpha
        0: the nearest teacher token; 1: linear interpolation; between: a mixture.

    Returns
    -------
    Tensor
        `[T_s, …]`, in the dtype of `rows`.

    Raises
    ------
    ValueError
        The student has tokens in a segment where the teacher has none.
    """
    assert len(rows) == len(segments_teacher), f"{len(rows)} rows for {len(segments_teacher)} teacher tokens"
    lengths = zip(_lengths(segments_teacher), _lengths(segments_student), strict=True)
    pieces, start = [], 0
    for segment, (teacher_tokens, student_tokens) in zip(Segment, lengths, strict=True):
        piece = rows[start : start + teacher_tokens]
        start += teacher_tokens
        its_ratio = ratio if segment is Segment.REASONING else None
        if student_tokens and not teacher_tokens:
            raise ValueError(
                f"the student has {student_tokens} tokens of {segment.name.lower()} and the teacher none to lay onto "
                "them; tokenise both from the same examples, or drop this one"
            )
        if student_tokens != teacher_tokens or its_ratio is not None:
            piece = _interpolate(piece, *interpolation(teacher_tokens, student_tokens, its_ratio, alpha))
        pieces.append(piece)
    return torch.cat(pieces)


def interpolation(
    teacher_tokens: int, student_tokens: int, ratio: float | None, alpha: float
) -> tuple[np.ndarray, np.ndarray]:
    """Where each student token of a segment reads.

    Student token j reads the teacher position (j + 0.5) / r − 0.5, clamped to the segment, with r = n_s / n_t by
    default: token centres lie on token centres, as when an image is resized. The mixture of the nearest row and the
    linear interpolation is itself an interpolation between the same two rows.

    Parameters
    ----------
    teacher_tokens, student_tokens
        n_t and n_s.
    ratio, alpha
        As in `warp_rows`; of two equally near tokens the later is the nearest, since it has read the earlier.

    Returns
    -------
    lower, weight
        `[n_s]`: the earlier of the two rows, int64, and the share of the row after it, float64.
    """
    assert 0 <= alpha <= 1, f"alpha is {alpha}, not 0 to 1"
    centres = np.arange(student_tokens) + 0.5
    scaled = centres * teacher_tokens / student_tokens if ratio is None else centres / ratio
    position = (scaled - 0.5).clip(0, max(0, teacher_tokens - 1))
    lower = np.floor(position).astype(np.int64)
    fraction = position - lower
    return lower, alpha * fraction + (1 - alpha) * (fraction >= 0.5)


def _interpolate(rows: Tensor, lower: np.ndarray, weight: np.ndarray) -> Tensor:
    upper = np.minimum(lower + 1, len(rows) - 1)
    exact = torch.promote_types(rows.dtype, torch.float32)  # half precision rounds once, at the end
    shares = torch.from_numpy(weight).to(rows.device, exact).view(-1, *[1] * (rows.dim() - 1))
    below, above = (rows[torch.from_numpy(index).to(rows.device)].to(exact) for index in (lower, upper))
    return below.lerp(above, shares).to(rows.dtype)


def _lengths(segments: np.ndarray | Tensor) -> list[int]:
    values = np.asarray(segments)
    assert (values[1:] >= values[:-1]).all(), "segments are not contiguous and in order"
    return [int((values == segment).sum()) for segment in Segment]
