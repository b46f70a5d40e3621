"""The model card of an exported student: what the hub reads, what a person reads, and that it is stable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from scipy.stats import binomtest

from kava.card import base_licence, card_text, write_card
from kava.cli import main
from kava.config import Runtime, load_config
from kava.config.arms import Arm
from kava.config.load import REPOSITORY
from kava.errors import UserError
from kava.files import write_json

SCORES = {"strict_match": 0.816, "flexible_extract": 0.82, "n": 500}
QWEN = load_config(None, {"preset": "qwen2.5-8gb"})


@pytest.fixture(name="manifest")
def of_a_distilled_student() -> dict[str, Any]:
    return {
        "spec": {
            "name": "structured",
            "seed": 42,
            "arm": Arm(aligner={"kind": "structured"}).model_dump(),
            "distill": {"student_lr": 4e-3},
            "export_dtype": "float32",
            "lora": None,
        },
        "inputs": {"tokens": "demo-0123", "store": "teacher-int8-0123"},
        "alignment": {"cos_sim_centered": 0.91, "r2": 0.5785, "mag_ratio": None, "per_head": {"r2": [[[0.5]]]}},
        "optimizer_steps": 500,
        "train_tokens": 1_152_128,
        "projector_parameters": 2192,
    }


@pytest.fixture(name="sources")
def of_the_demo() -> dict[str, dict[str, Any]]:
    return Runtime.of(load_config(None)).sources


def test_the_hub_reads_the_accuracies_from_the_header(manifest, sources) -> None:
    card = ModelCard(card_text(manifest, sources, SCORES))
    told = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert told == {"strict match": 0.816, "flexible extract": 0.82}
    assert card.data.model_name == "student-structured-seed-42"
    assert card.data.license == "apache-2.0"  # as the shipped student's own card says
    assert card.data.base_model is None  # kava:student is no repository of the hub


def test_the_interval_is_wilsons_over_questions(manifest, sources) -> None:
    interval = binomtest(408, 500).proportion_ci(method="wilson")
    text = card_text(manifest, sources, SCORES)
    assert f"| strict match | 0.8160 | {interval.low:.4f} to {interval.high:.4f} |" in text
    assert "500 test questions of KAVA's generated word problems" in text


def test_a_person_reads_what_was_trained_on_what(manifest, sources) -> None:
    text = card_text(manifest, sources, SCORES)
    for line in ("| optimizer steps | 500 |", "| training tokens | 1,152,128 |", "| teacher | kava:teacher, nf4 |",
                 "| r2 | 0.5785 |", "| mag_ratio | none |", "grade of the centred cosine: good"):  # fmt: skip
        assert line in text
    assert "| per_head |" not in text


def test_a_student_without_teacher_or_evaluation_says_so(manifest, sources) -> None:
    text = card_text(manifest | {"alignment": None, "inputs": {"tokens": "x"}, "projector_parameters": None}, sources)
    assert "Not evaluated yet." in text
    assert "| teacher | none |" in text
    assert "Trained without a projector" in text
    assert ModelCard(text).data.eval_results is None


def test_a_base_model_and_data_of_the_hub_are_linked_with_their_revisions(manifest) -> None:
    card = ModelCard(card_text(manifest, Runtime.of(QWEN).sources, SCORES))
    assert card.data.base_model == "Qwen/Qwen2.5-0.5B"
    assert card.data.datasets == "openai/gsm8k"
    assert card.data.eval_results[0].dataset_revision == QWEN.data.revision
    assert f"Qwen/Qwen2.5-0.5B at {QWEN.student.revision}" in card.text


def test_a_directory_has_no_revision_whatever_the_preset_pins(manifest, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    here = {"model": str(tmp_path)}
    config = load_config(
        None, {"preset": "qwen2.5-8gb", "teacher": here, "student": here, "data": {"path": str(tmp_path)}}
    )
    text = card_text(manifest, Runtime.of(config).sources, SCORES)
    assert ModelCard(text).data.eval_results[0].dataset_revision is None
    assert not any(pinned.revision in text for pinned in (QWEN.teacher, QWEN.student, QWEN.data))


def test_a_licence_is_the_base_cards_or_unknown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = {"model": str(tmp_path), "revision": None}
    assert base_licence(source) == {"license": "unknown"}
    for header, told in (
        ("license: other\nlicense_name: mine", {"license": "other", "license_name": "mine"}),
        ("language: en", {"license": "unknown"}),
        ("license: [", {"license": "unknown"}),
    ):
        (tmp_path / "README.md").write_text(f"---\n{header}\n---\n")
        assert base_licence(source) == told
    # Not in the hub's cache: nothing is fetched for a card.
    assert base_licence({"model": "no-such/model", "revision": "0" * 40}) == {"license": "unknown"}


def test_equal_facts_give_equal_bytes_wherever_the_folder_lies(tmp_path: Path, manifest, sources) -> None:
    manifest["spec"]["arm"] = dict(reversed(manifest["spec"]["arm"].items()))
    for name in ("here", "there"):
        write_card(tmp_path / name, manifest, sources, SCORES)
    here, there = ((tmp_path / name / "README.md").read_bytes() for name in ("here", "there"))
    assert here == there == card_text(manifest, sources, SCORES).encode()
    assert str(tmp_path).encode() not in here


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, manifest, sources) -> None:
    (tmp_path / "README.md").mkdir()
    with pytest.raises(UserError, match=r"README.md cannot be written .*; make the student's folder writable"):
        write_card(tmp_path, manifest, sources)


def test_only_the_students_own_evaluation_writes_into_its_card(manifest, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    options = [
        "--configfile",
        str(REPOSITORY / "config.yaml"),
        "--set",
        "data.train=8",
        "--set",
        "data.validation=2",
        "--set",
        "data.test=2",
    ]
    options += ["--set", "evaluation.max_new_tokens=4", "--set", f"cache_dir={tmp_path}"]
    assert main(["tokenize", *options]) == 0
    student = tmp_path / "run" / "student"
    shutil.copytree(REPOSITORY / "kava" / "demo" / "student", student)
    (student / "README.md").write_text("as it was")
    write_json(student / "manifest.json", manifest)
    arm = ["evaluate", *options, "--arm", "structured", "--input", f"student={student / 'manifest.json'}"]
    assert main(arm) == 1
    assert "run `kava evaluate --reference teacher`" in capsys.readouterr().err
    assert main(["evaluate", *options, "--reference", "teacher"]) == 0
    assert main([*arm, "--output", str(tmp_path / "trial" / "manifest.json")]) == 0
    assert (student / "README.md").read_text() == "as it was"
    assert main([*arm, "--output", str(tmp_path / "run" / "evaluation" / "manifest.json")]) == 0
    card = (student / "README.md").read_text()
    assert "2 test questions of" in card
    assert "| answer NLL, nats per token |" in card
    assert "| teacher agreement |" in card
