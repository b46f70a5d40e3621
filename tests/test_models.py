"""One pretrained model in a process, quantised for real."""

import gc
from types import SimpleNamespace

import pytest
import torch

from kava.config.models import Teacher
from kava.device import GIB, choose_device, use_device
from kava.errors import UserError
from kava.models.load import load_student, load_teacher, load_tokenizer, second_model_allowed

CPU = torch.device("cpu")


def source(path, **changes) -> Teacher:
    return Teacher(model=str(path), **changes)


def test_loading_a_second_model_raises_until_the_first_is_gone(tinystories) -> None:
    first = load_student(source(tinystories), CPU)
    with pytest.raises(RuntimeError, match="one process holds one pretrained model"):
        load_teacher(source(tinystories), CPU)
    with second_model_allowed():
        load_student(source(tinystories), CPU)
    with pytest.raises(RuntimeError, match="one process holds one pretrained model"):
        load_student(source(tinystories), CPU)
    assert first is not None
    del first
    gc.collect()
    load_student(source(tinystories), CPU)


def test_teacher_is_really_in_4_bits_and_frozen(tinystories) -> None:
    import bitsandbytes

    gc.collect()
    teacher = load_teacher(source(tinystories), CPU)
    projection = teacher.model.layers[0].self_attn.k_proj
    assert isinstance(projection, bitsandbytes.nn.Linear4bit)
    assert projection.weight.quant_state.quant_type == "nf4"
    assert projection.weight.numel() == 128 * 64 // 2  # two values per byte
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_double_quantization_is_of_the_scales(tinystories) -> None:
    for double in (True, False):
        gc.collect()
        teacher = load_teacher(source(tinystories, double_quantization=double), CPU)
        state = teacher.model.layers[0].self_attn.k_proj.weight.quant_state
        assert state.nested is double
        assert state.absmax.dtype == (torch.uint8 if double else torch.float32)
        del teacher, state


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@torch.inference_mode()
def test_int8_teacher_multiplies_in_8_bits_and_answers_nearly_as_the_whole_one(tinystories, dtype: str, caplog) -> None:
    ids = torch.randint(3, 2000, (2, 40), generator=torch.Generator().manual_seed(0))
    logits = {}
    for quantization in ("none", "nf4", "int8"):
        gc.collect()
        teacher = load_teacher(source(tinystories, quantization=quantization, dtype=dtype), CPU)
        logits[quantization] = teacher(ids).logits.float()
        if quantization == "int8":
            assert teacher.model.layers[0].self_attn.k_proj.weight.dtype == torch.int8
            assert torch.equal(teacher(ids).logits.float(), logits["int8"])
        del teacher
    apart = {name: (logits[name] - logits["none"]).norm() / logits["none"].norm() for name in ("nf4", "int8")}
    assert 0 < apart["int8"] < 0.05
    assert apart["int8"] < apart["nf4"]
    assert not caplog.records, "no line per multiplication"


def test_student_weights_are_fp32_whatever_the_checkpoint_is(tinystories) -> None:
    gc.collect()
    assert {parameter.dtype for parameter in load_student(source(tinystories), CPU).parameters()} == {torch.float32}


def test_a_directory_without_weights_is_one_clear_sentence(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    gc.collect()
    with pytest.raises(UserError, match="cannot load the model"):
        load_student(source(tmp_path), CPU)
    with pytest.raises(UserError, match="nowhere does not exist; give an existing directory or a hub id"):
        load_tokenizer(source(tmp_path / "nowhere"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(UserError, match="set device: cpu"):
        choose_device("cuda")
    assert choose_device("auto").type == "cpu"


def test_a_gpu_is_named_by_its_index_and_its_allocator_held_to_the_budget(monkeypatch) -> None:
    capped = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=16 * GIB))
    # What torch itself does first with the device it is given.
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: capped.append((share, device.index))
    )
    runtime = SimpleNamespace(device="auto", vram_budget_gib=8.0)
    assert use_device(runtime) == torch.device("cuda", 0)  # type: ignore[arg-type]
    assert capped == [(7 / 16, 0)]
