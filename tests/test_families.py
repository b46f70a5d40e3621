"""Every family of models goes the whole way, as teacher and as student, to an evaluated student."""

from pathlib import Path
from typing import Any

# Here and not within the first model that is loaded: where it lacks a kernel it logs an exception, and the captured log
# would keep that model's frames, and so the model.
import bitsandbytes  # noqa: F401
import pytest
import torch
from conftest import tiny_model

import kava.demo
from kava.bench.workspace import BenchJobs, free, quiet
from kava.config.job import Runtime
from kava.config.load import REPOSITORY, load_config
from kava.config.models import ModelSettings
from kava.data import tokenize
from kava.evaluation import evaluate
from kava.files import read_json
from kava.models.capture import geometry
from kava.models.load import load_student, load_tokenizer
from kava.teacher import extract
from kava.training import distill, pretrain

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
STEPS = {"steps": 4, "batch_size": 4, "accumulation": 1, "log_every": 2}


def write_model(folder: Path, family: str, layers: int, width: int, kv_heads: int) -> str:
    """Random weights, 4 attention heads, the demo's tokenizer."""
    tokenizer = load_tokenizer(ModelSettings(model=str(Path(kava.demo.__file__).parent / "teacher")))
    shape: dict[str, Any] = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    if family == "gpt2":
        shape |= {"n_layer": layers, "n_embd": width, "n_positions": 256}
    else:
        shape |= {"num_hidden_layers": layers, "hidden_size": width, "head_dim": width // 4}
        # Where a CPU has AVX-512 for bf16, bitsandbytes packs NF4 in rows of 32 outputs and blocks of 64 inputs.
        shape |= {"num_key_value_heads": kv_heads, "max_position_embeddings": 256, "intermediate_size": 64}
    tiny_model(family, **shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("family", "quantization", "lora"),
    [
        ("qwen2", "nf4", None),
        ("qwen3", "int8", None),
        ("llama", "nf4", {"rank": 4}),
        ("mistral", "none", None),
        ("gpt2", "nf4", {"rank": 4, "targets": ["c_attn", "c_proj"]}),
    ],
    ids=["qwen2", "qwen3-int8", "llama-lora", "mistral-unquantised", "gpt2-lora"],
)
def test_a_family_goes_from_tokens_to_an_evaluated_student(
    family: str, quantization: str, lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    teacher = write_model(tmp_path / "teacher", family, layers=3, width=64, kv_heads=2)
    student = write_model(tmp_path / "student", family, layers=2, width=32, kv_heads=1)
    config = load_config(
        REPOSITORY / "config.yaml",
        {
            "teacher": {"model": teacher, "quantization": quantization},
            "student": {"model": student, "lora": lora},
            "data": {"train": 24, "validation": 4, "test": 4},
            "arms": {"flat": None, "sft": None, "structured": {"pretrain_projector": True, "train_projector": True}},
            "pretrain": STEPS,
            "distill": STEPS,
            "evaluation": {"batch_size": 4, "max_new_tokens": 4},
        },
    )
    plan, runtime = BenchJobs(config, tmp_path), Runtime.of(config)
    jobs = [plan.pretrain("structured", 42), plan.distill("structured", 42), plan.evaluate("structured", 42)]
    order = [plan.tokenize, plan.extract, plan.reference("teacher"), *jobs]
    stages = [tokenize.run, extract.run, evaluate.run, pretrain.run, distill.run, evaluate.run]
    with quiet():
        for run, job in zip(stages, order, strict=True):
            free(CPU)
            run(job, runtime)
    free(CPU)

    kv_heads = (4, 4) if family == "gpt2" else (2, 1)
    store = read_json(plan.extract.output)
    assert store["geometry"] == {"layers": 3, "kv_heads": kv_heads[0], "head_dim": 16}
    assert store["spec"]["teacher"]["quantization"] == quantization
    pretrained, distilled, evaluated = (read_json(job.output) for job in jobs)
    assert pretrained["optimizer_steps"] == distilled["optimizer_steps"] == 4
    assert -1 <= distilled["alignment"]["cos_sim_centered"] <= 1
    assert evaluated["n"] == read_json(plan.reference("teacher").output)["n"] == 4

    before = load_student(ModelSettings(model=student), CPU)
    keys = {name: tensor.clone() for name, tensor in before.state_dict().items() if "attn" in name}
    del before
    free(CPU)
    after = load_student(ModelSettings(model=str(plan.distill("structured", 42).output.parent)), CPU)
    assert geometry(after.config).to_dict() == {"layers": 2, "kv_heads": kv_heads[1], "head_dim": 8}
    trained = [name for name in keys if name.endswith(("k_proj.weight", "c_attn.weight"))]
    assert len(trained) == 2
    assert all(not torch.equal(after.state_dict()[name], keys[name]) for name in trained)
