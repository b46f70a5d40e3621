"""One report over several experiments: what is compared, what differs, and what must not be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_fixtures import record, recorded, trained_anew
from report_files import edit_json, sha, write_tokens
from report_fixtures import finished_runs

from kava.cli import main
from kava.errors import UserError
from kava.report.across import name_each, report_across
from kava.report.build import build_report
from kava.report.inputs import ReportInputs
from kava.report.record import Experiment, read_record
from kava.report.statistics.p_values import holm


@pytest.fixture(scope="module", name="folders")
def two_experiments(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same arms and questions; the second's `flat` is better, and it was trained for longer."""
    longer = {"notes": "twice the steps", "distill": {"steps": 800}}
    return (
        recorded(tmp_path_factory.mktemp("one"), "short"),
        recorded(tmp_path_factory.mktemp("two"), "long", rates={"flat": 0.9}, edit=trained_anew, **longer),
    )


@pytest.fixture(scope="module", name="numbers")
def report_of_both(folders: tuple[Path, Path]) -> dict[str, Any]:
    return report_across([read_record(folder) for folder in folders], "kava report short long").to_dict()


def test_arms_are_named_by_their_experiment_and_keep_their_own_numbers(folders, numbers: dict[str, Any]) -> None:
    assert list(numbers["arms"]) == [f"{e}/{arm}" for e in ("short", "long") for arm in ("flat", "structured", "sft")]
    for folder in folders:
        for arm, row in read_record(folder).record["results"].items():
            assert numbers["arms"][f"{folder.name}/{arm}"]["strict_match_mean"] == row["strict_match_mean"]


def test_same_named_arms_and_each_experiments_own_pairs_are_compared_with_one_correction(numbers) -> None:
    pairs = [(row["a"], row["b"]) for row in numbers["comparisons"]]
    assert pairs[:3] == [(f"long/{arm}", f"short/{arm}") for arm in ("flat", "structured", "sft")]
    own = [("structured", "flat"), ("flat", "sft"), ("structured", "sft")]
    assert pairs[3:] == [(f"{e}/{a}", f"{e}/{b}") for e in ("short", "long") for a, b in own]
    assert not any(row["identical"] or row["same_as"] for row in numbers["comparisons"])
    adjusted = holm([row["p_value"] for row in numbers["comparisons"]])
    assert [row["p_value_holm"] for row in numbers["comparisons"]] == pytest.approx(adjusted)
    assert numbers["controls"] == ["short/sft", "long/sft"]


def test_a_comparison_across_is_the_difference_of_the_two_files_question_by_question(folders, numbers) -> None:
    def marks(folder: Path) -> dict[int, int]:
        lines = (folder / "flat/seed-42/evaluation/samples.jsonl").read_text().splitlines()
        return {line["doc_id"]: line["strict_match"] for line in map(json.loads, lines)}

    short, long = map(marks, folders)
    row = numbers["comparisons"][0]
    assert row["delta"] == pytest.approx(np.mean([long[doc] - short[doc] for doc in short]))
    assert row["discordant"]["42"] == [
        sum(long[doc] > short[doc] for doc in short),
        sum(long[doc] < short[doc] for doc in short),
    ]


def test_the_question_across_names_the_settings_in_which_arms_differ_if_they_are_few(numbers) -> None:
    assert numbers["question"] == (
        "Does long/flat (distill.steps 800) score otherwise than short/flat (distill.steps 400), "
        "long/structured (distill.steps 800) score otherwise than short/structured (distill.steps 400) and "
        "long/sft (distill.steps 800) score otherwise than short/sft (distill.steps 400)?"
    )


def test_settings_in_which_experiments_differ_stand_among_the_differences_of_their_arms(numbers) -> None:
    steps = numbers["arm_differences"]["distill.steps"]
    assert {arm: value for arm, value in steps.items() if arm.endswith("/sft")} == {"short/sft": 400, "long/sft": 800}
    assert "notes" not in numbers["arm_differences"]
    assert numbers["experiments"]["long"]["notes"] == "twice the steps"


def test_other_steps_are_unequal_terms_that_are_said(folders, tmp_path: Path) -> None:
    def longer(planted: ReportInputs) -> None:
        for seeds in planted.runs.values():
            edit_json(seeds["42"].student / "manifest.json", optimizer_steps=800, data_order_sha256=sha("other"))

    other = recorded(tmp_path, "other", edit=longer)
    numbers = report_across([read_record(folders[0]), read_record(other)], "").to_dict()
    said = " ".join(numbers["fairness"]["mismatches"])
    assert "optimizer steps differs between arms (short/flat 400" in said
    assert "data order differs" in said
    assert "the comparison is not fair as it stands: 2 mismatches" in numbers["verdict"]


def test_different_questions_are_said_shown_and_never_compared(folders, tmp_path: Path) -> None:
    planted = finished_runs(tmp_path / "results", n=60, seeds=("42",))
    for arm in planted.runs:
        edit_json(planted.runs[arm]["42"].evaluation / "manifest.json", questions_sha256=sha("others"))
    other = record(planted).parent
    numbers = report_across([read_record(folders[0]), read_record(other)], "").to_dict()
    said = " ".join(numbers["fairness"]["mismatches"])
    assert "answered different test questions, and are not compared with each other: short; demo." in said
    assert {(row["a"].split("/")[0], row["b"].split("/")[0]) for row in numbers["comparisons"]} == {
        ("short", "short"),
        ("demo", "demo"),
    }
    assert all(row["delta"] is not None for row in numbers["comparisons"])
    assert numbers["samples"]["questions"] == []
    assert numbers["arms"]["demo/flat"]["strict_match_mean"] > 0


def test_an_arm_that_answered_other_questions_is_compared_with_none_though_its_doc_ids_are_the_same(tmp_path) -> None:
    planted = finished_runs(tmp_path, n=60, seeds=("42",))
    edit_json(planted.runs["flat"]["42"].evaluation / "manifest.json", questions_sha256=sha("others"))
    numbers = build_report(planted).to_dict()
    compared = {(row["a"], row["b"]): row["delta"] is not None for row in numbers["comparisons"]}
    assert compared == {("structured", "flat"): False, ("flat", "sft"): False, ("structured", "sft"): True}
    assert "Not all models answered the same questions" in numbers["fairness"]["mismatches"][0]


def test_another_teacher_is_shown_with_its_numbers_and_leaves_no_common_cka_map(folders, tmp_path: Path) -> None:
    def with_map(planted: ReportInputs) -> None:
        projector = planted.runs["flat"]["42"].projector
        assert projector is not None
        edit_json(projector / "manifest.json", cka={"keys": [[1.0]], "values": [[1.0]]})

    other = recorded(tmp_path, "other", edit=with_map)
    shared = report_across([read_record(other)], "")
    assert shared.cka == {"keys": [[1.0]], "values": [[1.0]]}
    text = (other / "record.yaml").read_text()
    for part in ("teacher", "teacher_kv/demo-0123abcd"):
        (other.parent / part).rename(other.parent / f"{part}-large")
        text = text.replace(f"cache: {part}/", f"cache: {part}-large/")
    (other / "record.yaml").write_text(text)
    numbers = report_across([read_record(folder) for folder in (folders[0], other)], "").to_dict()
    (said,) = numbers["fairness"]["mismatches"]
    assert said.startswith("The experiments have no teacher in common (short: demo-teacher, strict match 93.3% (")
    assert said.endswith("the row of the teacher is that of short.")
    assert numbers["cka"] is None
    assert set(numbers["stores"]) == {"demo-0123abcd", "demo-0123abcd-large"}


def test_experiments_of_the_same_name_are_numbered_and_one_given_twice_is_refused(folders, tmp_path: Path) -> None:
    same = recorded(tmp_path, "short")
    found = [read_record(folder) for folder in (folders[0], same)]
    assert list(name_each(found)) == ["short (1)", "short (2)"]
    with pytest.raises(UserError, match="is given twice"):
        name_each([found[0], found[0]])


def test_the_command_writes_page_and_numbers_and_prints_the_verdict(folders, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("kava.report.page.render._library", str)  # seconds, and tested with the page
    assert main(["report", *map(str, folders)]) == 0
    report = json.loads(Path("results/comparison.json").read_text(encoding="utf-8"))
    assert capsys.readouterr().out.startswith(report["verdict"])
    html = Path("results/comparison.html").read_text(encoding="utf-8")
    assert "twice the steps" in html
    assert 'id="experiments"' in html
    one = tmp_path / "one"
    shutil.copytree(folders[0].parent, one)
    assert main(["report", str(one / folders[0].name)]) == 0
    assert (one / folders[0].name / "report.html").is_file()
    assert json.loads(Path("results/comparison.json").read_text(encoding="utf-8")) == report


def test_one_folder_is_reported_alone(folders) -> None:
    numbers = report_across([read_record(folders[1])], "").to_dict()
    assert list(numbers["experiments"]) == ["long"]
    assert [row["a"] for row in numbers["comparisons"]] == ["long/structured", "long/flat", "long/structured"]
    assert numbers["fairness"]["equal"]


def test_the_command_says_what_is_wrong_in_a_sentence(folders, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(folders[0]), "results/never"]) == 1
    assert "kava report: error: results/never has no record.yaml; give the folder" in capsys.readouterr().err
    assert main(["report", str(folders[0]), "--output", "x.json"]) == 1
    assert "must end in .html" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_leaked_test_questions_are_said_of_the_experiments_that_trained_on_them(tmp_path: Path) -> None:
    leaked, clean = "Tom has 3 apples and buys 4 more of them. How many?", "Ines reads 12 pages a day. How long?"
    folders = [
        recorded(
            tmp_path / name,
            name,
            edit=lambda planted, text=text: write_tokens(planted.tokens["demo"].parents[2], [leaked], [text, leaked]),
        )
        for name, text in (("one", clean), ("two", f"{clean} And how long for 10?"), ("three", leaked))
    ]
    numbers = report_across([read_record(folder) for folder in folders], "").to_dict()
    assert [line.split(" test")[0] for line in numbers["fairness"]["mismatches"]] == [
        "one and two: 1 of 2",
        "three: 2 of 2",
    ]
    assert numbers["warnings"] == []


def test_experiments_with_other_seeds_keep_their_means_and_are_compared_over_those_in_common(
    folders, tmp_path: Path
) -> None:
    three = recorded(tmp_path, "three", seeds=("42", "43", "44"), edit=trained_anew)
    numbers = report_across([read_record(folders[0]), read_record(three)], "").to_dict()
    assert numbers["fairness"]["mismatches"] == []
    for arm, row in read_record(three).record["results"].items():
        assert numbers["arms"][f"three/{arm}"]["strict_match_mean"] == row["strict_match_mean"] is not None
        assert numbers["cost_mean"][f"three/{arm}"]["train_seconds"] is not None
    assert all(row["complete"] for row in numbers["comparisons"])
    seeds = [len(row["seeds"]) for row in numbers["comparisons"]]
    assert seeds == [1, 1, 1, 1, 1, 1, 3, 3, 3]
    for said in ("one seed for 6 of 9 comparisons, which cannot", "3 seeds for 3 of 9 comparisons"):
        assert said in numbers["verdict"]
    assert all(bin_["arms"]["three/flat"]["rate"] is not None for bin_ in numbers["breakdown"]["length"])


def test_numbers_are_given_until_every_experiment_has_a_name_of_its_own() -> None:
    places = ("a/demo", "b/demo", "c/demo (1)", "d/other")
    named = name_each([Experiment(Path(place), {}, {}) for place in places])
    assert list(named) == ["demo (2)", "demo (3)", "demo (1)", "other"]


def test_the_same_model_given_by_another_path_is_no_difference_and_another_hub_id_is_one(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/big").mkdir(parents=True)
    given = {"absolute": str(tmp_path / "models/big"), "relative": "models/big", "hub": "someone/big"}
    found = [
        read_record(recorded(tmp_path / name, name, n=10, teacher={"model": model})) for name, model in given.items()
    ]
    assert "teacher.model" not in report_across(found[:2], "").to_dict()["arm_differences"]
    assert "teacher.model" in report_across(found[1:], "").to_dict()["arm_differences"]


def test_a_file_that_is_gone_or_broken_is_named_without_a_traceback(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    folder = recorded(tmp_path, "mine", n=10)
    samples = folder / "flat/seed-42/evaluation/samples.jsonl"
    samples.write_text("{")
    assert main(["report", str(folder)]) == 1
    assert "samples.jsonl, line 1 is not JSON" in capsys.readouterr().err
    samples.unlink()
    assert main(["report", str(folder)]) == 1
    said = capsys.readouterr().err
    assert "error: the folder results/mine/flat/seed-42/evaluation has no samples.jsonl; restore it, or run" in said
