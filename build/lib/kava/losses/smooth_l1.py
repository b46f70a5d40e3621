"""`smooth_l1`: a square near zero, the absolute value beyond a threshold."""

from torch import Tensor, nn

from kava.losses.masking import SMALLEST_STD, counted, masked_mean


def smooth_l1(student: Tensor, teacher: Tensor, weight_BT: Tensor, threshold: float, layer_std: bool) -> Tensor:
    """Weighted mean of (s − t)² / (2 · threshold) where |s − t| < threshold, and of |s − t| − threshold / 2 elsewhere.

    Parameters
    ----------
    student, teacher
        `[B, L, H, T, D]`.
    weight_BT
        Weight of each token; 0 for tokens that do not count.
    threshold
        In units of the tensors, or of their standard deviation.
    layer_std
        First divide both sides by the standard deviation of each layer of the teacher's, over the weighted tokens
        of the batch, heads and dims. No gradient passes through it: inflating the teacher's would pay.
    """
    s, t = counted(student, weight_BT), counted(teacher, weight_BT)
    if layer_std:
        std = _layer_std(t.detach(), weight_BT)
        s, t = s / std, t / std
    return masked_mean(nn.functional.smooth_l1_loss(s, t, reduction="none", beta=threshold).mean(-1), weight_BT)


def _layer_std(tensor_BLHTD: Tensor, weight_BT: Tensor) -> Tensor:
    weight = weight_BT[:, None, None, :, None].to(tensor_BLHTD.dtype)
    over = (0, 2, 3, 4)
    count = weight.sum() * tensor_BLHTD.shape[2] * tensor_BLHTD.shape[4]
    mean = (weight * tensor_BLHTD).sum(over, keepdim=True) / count
    variance = (weight * (tensor_BLHTD - mean).square()).sum(over, keepdim=True) / count
    return variance.sqrt().clamp(min=SMALLEST_STD)
