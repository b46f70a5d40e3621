"""`mercator`: direction first, magnitude on a logarithmic scale."""

from torch import Tensor

from kava.losses.masking import cosine, counted, masked_mean, safe_norm


def mercator(student: Tensor, teacher: Tensor, weight_BT: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha · (1 − mean cosine) + beta · mean (log‖s‖ − log‖t‖)².

    Parameters
    ----------
    student, teacher
        Vectors per head, `[B, L, H, T, D]`.
    weight_BT
        Weight of each token; 0 for tokens that do not count.
    alpha, beta
        Weights of direction and magnitude.
    """
    s, t = counted(student, weight_BT), counted(teacher, weight_BT)
    direction = 1.0 - masked_mean(cosine(s, t), weight_BT)
    magnitude = masked_mean((safe_norm(s).log() - safe_norm(t).log()).square(), weight_BT)
    return alpha * direction + beta * magnitude
