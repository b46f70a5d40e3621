"""CKA: its known values, and the debiased estimate against the definition over kernels."""

import pytest
import torch

from kava.cka import cka_matrix, linear_cka


def features(width: int, samples: int = 40, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_kernels(x: torch.Tensor, y: torch.Tensor) -> float:
    """Song et al. (2012), eq. 5, on kernels with zero diagonals."""

    def hsic(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        k, m = (f @ f.T for f in (a, b))
        k.fill_diagonal_(0)
        m.fill_diagonal_(0)
        n, one = len(k), torch.ones(len(k), dtype=k.dtype)
        outer = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return ((k @ m).trace() + outer - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    return float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())


def test_cka_of_features_with_themselves_is_one() -> None:
    assert float(linear_cka(features(7), features(7))) == pytest.approx(1, abs=1e-12)


def test_cka_ignores_rotation_scale_and_shift() -> None:
    x, y = features(7), features(5, seed=1)
    y[:, :3] += x[:, :3]
    rotation = torch.linalg.qr(features(7, 7, seed=2)).Q
    expected = float(linear_cka(x, y))
    assert 0.1 < expected < 0.9
    assert float(linear_cka(3 * x @ rotation + 100, y)) == pytest.approx(expected, abs=1e-10)


def test_debiased_cka_agrees_with_the_definition_over_kernels() -> None:
    x, y = features(7) + 2, features(5, seed=1)
    y[:, :3] += x[:, :3]
    assert float(linear_cka(x, y)) == pytest.approx(by_kernels(x, y), abs=1e-10)


def test_unrelated_features_score_about_zero_however_wide() -> None:
    # The biased estimate would be near 1 here: more features than samples.
    scores = [float(linear_cka(features(200, seed=2 * s), features(200, seed=2 * s + 1))) for s in range(20)]
    assert abs(sum(scores) / 20) < 0.02


def test_features_that_do_not_vary_are_like_nothing() -> None:
    assert float(linear_cka(torch.ones(40, 3, dtype=torch.float64), features(5))) == 0


def test_matrix_holds_every_pair_of_layers() -> None:
    x = torch.stack([features(7, seed=s) for s in range(3)])
    y = torch.stack([x[1, :, :5] + features(5, seed=9), x[2, :, 2:]])
    matrix = cka_matrix(x, y)
    assert matrix.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert float(matrix[i, j]) == pytest.approx(float(linear_cka(x[i], y[j])), abs=1e-10)


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 4"):
        linear_cka(features(2, 3), features(2, 3))
