"""The experiment record: what it holds, that it is stable, and that it finds the runs again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from record_fixtures import job_inputs, job_spec, record, recorded
from report_files import edit_json
from report_fixtures import PROVENANCE, finished_runs

from kava.config import Jobs, load_config
from kava.errors import UserError
from kava.grades import grade
from kava.report.build import build_report
from kava.report.changed import changed_settings
from kava.report.inputs import report_inputs
from kava.report.record import read_record
from kava.report.write import write_record


@pytest.fixture(scope="module", name="folder")
def recorded_experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return recorded(tmp_path_factory.mktemp("checkout"), "mine", notes="Läuft: “good”\nsecond line")


@pytest.fixture(name="told")
def what_the_record_tells(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "record.yaml").read_text())


def test_a_record_tells_what_the_runs_reached_and_took(folder: Path, told: dict[str, Any]) -> None:
    assert told["name"] == "demo"
    assert told["notes"] == "Läuft: “good”\nsecond line"
    flat, sft = told["results"]["flat"], told["results"]["sft"]
    assert flat["seeds"]["42"]["cos_sim_centered"] == 0.8
    assert flat["alignment"]["grade"] == grade(0.8) == "pass"
    assert flat["train_seconds"] == 2 * 41.5
    assert flat["peak_memory_mib"] == 900.1
    assert (sft["control"], sft["alignment"]) == (True, None)
    assert "grade" not in flat.keys() | sft.keys()
    assert flat["strict_match_mean"] == flat["seeds"]["42"]["strict_match"]
    assert [row["a"] for row in told["comparisons"]] == ["structured", "flat", "structured"]
    assert told["models"]["teacher"]["model"] == "demo-teacher"
    assert read_record(folder).record == told


def test_a_records_date_is_when_the_last_evaluation_ended(told: dict[str, Any]) -> None:
    assert told["date"] == "2026-11-21T14:44:10Z"


def test_a_record_names_no_place_of_this_machine(folder: Path) -> None:
    text = (folder / "record.yaml").read_text()
    assert "/models/of/mine" not in text
    assert "model: big" in text
    assert str(folder.parents[1]) not in text
    assert PROVENANCE["command"] not in text


def test_the_same_runs_give_a_record_of_the_same_bytes(tmp_path: Path) -> None:
    planted = finished_runs(tmp_path, n=40, seeds=("42",))
    before = record(planted).read_bytes()
    assert record(planted).read_bytes() == before
    edit_json(planted.runs["flat"]["42"].student / "cost.json", seconds=7.0)
    assert record(planted).read_bytes() != before


def test_the_report_of_a_record_is_that_of_its_runs(tmp_path: Path) -> None:
    planted = finished_runs(tmp_path, n=40, seeds=("42",))
    direct = build_report(report_inputs(job_spec(planted), job_inputs(planted), {}))
    found = read_record(record(planted).parent)
    again = build_report(report_inputs(found.record["configuration"], found.inputs, {}))
    for part in ("arms", "comparisons", "verdict", "samples", "curves", "cost"):
        assert again.to_dict()[part] == direct.to_dict()[part]


def test_files_are_found_after_a_move_from_anywhere_and_with_a_cache_elsewhere(tmp_path: Path, monkeypatch) -> None:
    planted = finished_runs(tmp_path / "cache", n=40, seeds=("42",))
    project = tmp_path / "checkout" / "results"
    project.mkdir(parents=True)
    folder = (tmp_path / "cache" / "demo").rename(project / "mine")
    inputs = {
        name: folder / path.relative_to(tmp_path / "cache" / "demo") if "/seed-" in name else path
        for name, path in job_inputs(planted).items()
    }
    write_record(job_spec(planted), inputs, build_report(report_inputs(job_spec(planted), inputs, {})))
    (tmp_path / "else" / "where").mkdir(parents=True)
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "cache"))
    for place in (tmp_path, project, folder, tmp_path / "else" / "where"):
        monkeypatch.chdir(place)
        found = read_record(folder)
        assert {name: path.resolve() for name, path in found.inputs.items()} == inputs
    monkeypatch.chdir(project)
    renamed = folder.rename(project / "renamed").relative_to(project)
    assert read_record(renamed).inputs["flat/seed-42/student"] == renamed / "flat/seed-42/student/manifest.json"


def test_what_is_missing_or_broken_is_named_with_what_to_do(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone has no record.yaml; give the folder of a finished experiment"):
        read_record(tmp_path / "gone")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    with pytest.raises(UserError, match=r"record.yaml names .*teacher_kv.*, which does not exist; set KAVA_CACHE"):
        read_record(copy)
    for text, said in (("a: [", "is not valid YAML"), ("just text", "has format None"), ("format: 9", "format 9")):
        (copy / "record.yaml").write_text(text)
        with pytest.raises(UserError, match=said):
            read_record(copy)


def test_notes_are_a_reason_to_make_the_report_again_and_nothing_else() -> None:
    plain, noted = (Jobs(load_config(None, given)) for given in ({}, {"notes": "why"}))
    assert plain.report.params != noted.report.params
    for job in ("tokenize", "extract", "bench"):
        assert getattr(plain, job).params == getattr(noted, job).params
    for stage in ("pretrain", "distill", "evaluate"):
        assert getattr(plain, stage)("flat", 42).params == getattr(noted, stage)("flat", 42).params
    assert plain.reference("teacher").params == noted.reference("teacher").params


def test_settings_that_differ_from_the_record_are_told_and_what_follows_from_them_is_not(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "mine", n=10)
    spec = read_record(folder).record["configuration"]
    assert changed_settings(folder, spec | {"notes": "why", "preset": "demo-3seeds"}) is None
    flat = spec["arms"]["flat"] | {"loss": {"kind": "hybrid", "steps": 5}}
    now = spec | {"seeds": [42, 43], "arms": {"flat": flat, "structured": spec["arms"]["structured"], "rkv": {}}}
    told = changed_settings(folder, now)
    kind = spec["arms"]["flat"]["loss"]["kind"]
    differ = f"(arm rkv: new; arm sft: gone; arms.flat.loss.kind: {kind}, now hybrid; seeds: [42], now [42, 43])"
    assert told
    assert f"{folder} was last made with other settings {differ}. What depends on them runs again" in told
    for broken in ("[", "format: 1", "configuration: {}", "text"):
        (folder / "record.yaml").write_text(broken)
        assert changed_settings(folder, spec) is None
    assert changed_settings(tmp_path / "new", spec) is None


def test_a_run_that_was_made_again_after_its_record_is_refused(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "mine", n=10)
    edit_json(folder / "flat/seed-42/student/manifest.json", optimizer_steps=800)
    with pytest.raises(
        UserError, match=r"manifest.json was made after its record.*report again .* all of its --config"
    ):
        read_record(folder)


def test_a_cache_elsewhere_is_not_in_the_record_and_must_be_named(tmp_path: Path, monkeypatch) -> None:
    folder = recorded(tmp_path / "private" / "place", "mine", n=10)
    told = yaml.safe_load((folder / "record.yaml").read_text())["files"]
    assert told["tokens"]["cache"] == "tokens/demo-0123abcd/manifest.json"
    assert told["flat/seed-42/student"]["path"] == "flat/seed-42/student/manifest.json"
    assert ".." not in str(told)
    moved = folder.rename(tmp_path / "mine")
    with pytest.raises(UserError, match="set KAVA_CACHE to the cache_dir of the run"):
        read_record(moved)
    monkeypatch.setenv("KAVA_CACHE", str(tmp_path / "private/place/results"))
    read_record(moved)


def test_a_record_that_lacks_something_is_refused_in_a_sentence(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KAVA_CACHE", str(folder.parent))
    whole = yaml.safe_load((folder / "record.yaml").read_text())
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    without_student = {name: place for name, place in whole["files"].items() if name != "flat/seed-42/student"}
    for lacking, said in (
        ({name: value for name, value in whole.items() if name != "questions_sha256"}, "questions_sha256: Field requi"),
        (whole | {"configuration": {}}, "configuration: experiment: Field required"),
        (whole | {"files": without_student}, "files has no flat/seed-42/student"),
        (whole | {"files": whole["files"] | {"store": "x"}}, "files: store: "),
    ):
        (copy / "record.yaml").write_text(yaml.safe_dump(lacking))
        with pytest.raises(UserError, match=f"copy/record.yaml: .*{said}.*; make the experiment's report again"):
            read_record(copy)


def test_hardware_and_versions_are_told_as_those_of_the_report(told: dict[str, Any]) -> None:
    assert told["report_made_with"] == {"hardware": "2 CPU cores", "code": None, "versions": PROVENANCE["versions"]}
    assert {"hardware", "versions"}.isdisjoint(told)
