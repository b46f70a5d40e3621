"""`mercator`: direction first, magnitude on a logarithmic scale."""

from torch import Tensor

from kava.losses.masking import cosine, masked_mean, safe_norm


def mercator(student: Tensor, teacher: Tensor, mask_BT: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · (1 − mean cosine) + beta · mean (log‖s‖ − log‖t‖)².

    Parameters
    ----------
    student, teacher
        Vectors per head, `[B, L, H, T, D]`.
    mask_BT
        1 for tokens that count.
    alpha, beta
        Weights of direction and magnitude.
    """
    s, t = student.float(), teacher.float()
    direction = 1.0 - masked_mean(cosine(s, t), mask_BT)
    magnitude = masked_mean((safe_norm(s).log() - safe_norm(t).log()).square(), mask_BT)
    return alpha * direction + beta * magnitude
