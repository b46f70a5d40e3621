"""NF4 on a CPU computes with its codes, whatever the shape of a matrix."""

import pytest
import torch
from torch import Tensor
from zoo.models import write_model

from kava.config.models import Teacher
from kava.models.load import load_teacher
from kava.models.nf4 import serve_any_shape

# The 16 values of NF4 (Dettmers et al. 2023, QLoRA, appendix E).
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip


def rounded(weight: Tensor) -> Tensor:
    """Each block of 64 values, in the order of memory, to the nearest of the 16 times its largest."""
    flat = torch.nn.functional.pad(weight.flatten(), (0, -weight.numel() % 64)).reshape(-1, 64)
    largest = flat.abs().amax(dim=1, keepdim=True)
    codes = ((flat / largest)[..., None] - NF4).abs().argmin(dim=-1)
    return (NF4[codes] * largest).flatten()[: weight.numel()].reshape(weight.shape)


@pytest.mark.parametrize("rows_columns", [(64, 64), (36, 36), (40, 40), (48, 48), (64, 96), (32, 160), (37, 41)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_product_is_that_of_the_rounded_weights(rows_columns: tuple[int, int], dtype: torch.dtype) -> None:
    import bitsandbytes as bnb

    rows, columns = rows_columns
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, columns, generator=generator) for n in (rows, 5))
    layer = bnb.nn.Linear4bit(columns, rows, compute_dtype=dtype, quant_type="nf4", compress_statistics=False)
    layer.load_state_dict({"weight": weight, "bias": torch.ones(rows)})
    model = torch.nn.Sequential(layer.to("cpu")).eval()
    serve_any_shape(model)
    expected = x @ rounded(weight).T + 1
    error = (model(x.to(dtype)).float() - expected).abs().max() / expected.abs().max()
    assert error < 0.02


@pytest.mark.parametrize("width", [40, 48, 72, 96])
@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@torch.inference_mode()
def test_a_teacher_of_odd_dimensions_answers_nearly_as_the_whole_one(width: int, quantization: str, tmp_path) -> None:
    folder = write_model(tmp_path, hidden_size=width, head_dim=width // 4, intermediate_size=width + 4)
    source = Teacher(model=str(folder), dtype="float32", quantization="none")
    ids = torch.arange(3, 20)[None]
    whole = load_teacher(source, torch.device("cpu"))(ids).logits
    answered = load_teacher(source.model_copy(update={"quantization": quantization}), torch.device("cpu"))(ids).logits
    assert 0 < (answered - whole).norm() / whole.norm() < 0.2
