"""Other people's machines: locales, permissions, and Ctrl-C."""

import ast
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from command_fixtures import in_a_folder_of_its_own, sentence  # noqa: F401
from zoo.machines import (
    ascii_locale,
    latin_locale,
    of_another_user,
    permissions_count,
    read_only,
    umask,
    with_mode,
)

from kava.cli import main
from kava.config.load import REPOSITORY, parse_assignments
from kava.data.task import read_task
from kava.errors import UserError
from kava.exits import INTERRUPTED, exit_status, print_whatever_the_locale
from kava.faults import machine_fault
from kava.files import write_json
from kava.locks import claim, live_holder, locked, present
from kava.store.admin.inventory import entries

CONFIG = str(REPOSITORY / "config.yaml")
TEACHER = REPOSITORY / "kava" / "demo" / "teacher"
SMALL = ["--configfile", CONFIG, "--set", "data={train: 20, validation: 5, test: 5}"]


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# 7: locales


def test_no_text_file_is_read_or_written_in_the_encoding_of_the_locale() -> None:
    """Ruff's PLW1514 knows this only where it can tell that something is a path."""
    loose = []
    for file in [*(REPOSITORY / "kava").rglob("*.py"), *(REPOSITORY / "workflow").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            mode = next((a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)), "")
            opens = name == "open" and isinstance(node.func, ast.Attribute) and mode in ("r", "w", "a", "a+", "x")
            of_process = any(
                ast.unparse(given[key]) == "True" for key in ("text", "universal_newlines") if key in given
            )
            if (name in ("read_text", "write_text") or opens or of_process) and "encoding" not in given:
                loose.append(f"{file.relative_to(REPOSITORY)}:{node.lineno}")
    assert not loose


OLD_LOADER = (
    "import json\nfrom pathlib import Path\nfrom datasets import Dataset\n\n\ndef load(**_):\n"
    "    lines = (Path(__file__).parent / 'test.jsonl').read_text().strip().split('\\n')\n"
    "    return {'test': Dataset.from_list([json.loads(line) for line in lines])}\n"
)
WORDS = "Zoë’s 3 crêpes — wie viele? 数"

IN_A_LOCALE = """
import json, sys
from kava.cli import main
from kava.files import read_json
from kava.evaluation.harness import TaskManager, read_task
from pathlib import Path
data = f"data={{kind: gsm8k, path: {sys.argv[1]}, validation: 1}}"
assert main(["tokenize", "--configfile", sys.argv[2], "--set", data, "--set", "notes=" + sys.argv[4]]) == 0
(manifest,) = Path("results/tokens").glob("*/manifest.json")
read_json(manifest)
(manifest.parent / "task" / "questions.py").write_text(sys.argv[3], encoding="utf-8")
task = TaskManager(include_defaults=False).load([read_task(manifest.parent / "task")])["tasks"]["kava_gsm8k"]
print(json.dumps([row["question"] for row in task.test_docs()]))
print(sys.argv[4], "\\xe9")
"""


@pytest.mark.slow
@pytest.mark.parametrize("locale", ["ascii", "latin"])
def test_a_stage_and_the_harness_read_the_same_text_in_any_locale(locale: str, tmp_path: Path) -> None:
    row = {"question": WORDS, "answer": f"{WORDS}\n#### 3"}
    for split in ("train", "test"):
        lines = "".join(json.dumps(row | {"question": f"{WORDS} {n}"}, ensure_ascii=False) + "\n" for n in range(3))
        (tmp_path / f"{split}.jsonl").write_text(lines, encoding="utf-8")
    environment = ascii_locale() if locale == "ascii" else latin_locale(tmp_path)
    typed = "Grüße".encode("latin-1" if locale == "latin" else "utf-8")
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", IN_A_LOCALE, str(tmp_path), CONFIG, OLD_LOADER, typed],
        env=os.environ | environment | {"PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    questions = json.loads(done.stdout.splitlines()[0])
    assert questions == [f"{WORDS} {n}" for n in range(3)]


def test_questions_are_read_as_utf8_whatever_an_older_token_sets_loader_does(tmp_path: Path) -> None:
    (tmp_path / "questions.py").write_text("raise AssertionError('not read')", encoding="utf-8")
    (tmp_path / "kava_gsm8k.yaml").write_text(
        "task: kava_gsm8k\ncustom_dataset: !function questions.load\n", encoding="utf-8"
    )
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": WORDS}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_task(tmp_path)["custom_dataset"]()["test"]["question"] == [WORDS]


def test_what_the_locale_cannot_print_is_escaped() -> None:
    code = f"from kava.exits import {print_whatever_the_locale.__name__} as p; p(); print('\\xe9 \\u2192 \\udce9')"
    environment = os.environ | ascii_locale() | {"PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert done.stdout == b"\\xe9 \\u2192 \\udce9\n"


def test_arguments_that_the_locale_cannot_decode_are_utf8() -> None:
    undecoded = "notes=Grüße".encode().decode("ascii", "surrogateescape")
    assert parse_assignments([undecoded]) == {"notes": "Grüße"}
    with pytest.raises(UserError, match="is not UTF-8"):
        parse_assignments(["notes=\udce9"])


# 15: permissions


def test_results_that_cannot_be_written_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    Path("results").mkdir()
    with read_only(Path("results")):
        error = sentence(capsys, "tokenize", *SMALL)
    assert "results/tokens" in error
    assert "cannot be written" in error
    assert "chmod u+w" in error


def test_a_finished_token_set_serves_who_may_only_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tokenize", *SMALL]) == 0
    capsys.readouterr()
    with read_only(Path("results")):
        assert main(["tokenize", *SMALL, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["stage"] == "tokenize"
        (entry,) = entries(Path("results"))
        assert entry.busy is None
    # What another user made under the usual umask, with all the locks that it made.
    of_another_user(Path("results"))
    with permissions_count():
        assert main(["tokenize", *SMALL]) == 0
        (entry,) = entries(Path("results"))
        assert entry.busy is None
        other = "data={train: 21, validation: 5, test: 5}"
        error = sentence(capsys, "tokenize", "--configfile", CONFIG, "--set", other)
    assert "cannot be written, since root may not write in" in error
    assert "chmod g+s" in error


@pytest.mark.parametrize("what", ["tokens", "set", "manifest", "data", "weights", "model"])
def test_what_cannot_be_read_is_one_sentence_with_its_path(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"question": "How many?", "answer": "One.\n#### 1"}
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(f"{json.dumps(row)}\n" * 4, encoding="utf-8")
    model = tmp_path / "model"
    model.mkdir()
    for file in TEACHER.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    settings = [f"data={{kind: gsm8k, path: {tmp_path}, validation: 1}}", f"teacher.model={model}"]
    options = ["--configfile", CONFIG, *(word for setting in settings for word in ("--set", setting))]
    assert main(["tokenize", *options]) == 0
    capsys.readouterr()
    (tokens,) = Path("results/tokens").iterdir()
    path = {
        "tokens": tokens.parent, "set": tokens, "manifest": tokens / "manifest.json", "data": tmp_path / "train.jsonl",
        "weights": model / "model.safetensors", "model": model,
    }[what]  # fmt: skip
    with with_mode(path, 0):
        error = sentence(capsys, "extract", *options)
    assert str(path) in error
    assert "cannot be read" in error or "cannot be reached" in error


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_are_made_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    with umask(mask):
        write_json(tmp_path / "new" / "manifest.json", {})
        with locked(tmp_path / "new" / ".lock"):
            pass
    for path in (tmp_path / "new").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_lock_that_another_user_made_is_held_and_seen(tmp_path: Path) -> None:
    path = tmp_path / "store" / ".lock"
    with locked(path):
        pass
    with read_only(path.parent):
        held = claim(path)
        assert held is not None
        assert claim(path) is None
        assert live_holder(path) is not None
        held.release()
        with present(path), present(path.with_name("other.lock")):
            assert live_holder(path) is not None
        with pytest.raises(PermissionError):
            claim(path.with_name("another.lock"))


@pytest.mark.parametrize(
    "words", ["Permission denied (os error 13)", "No space left on device", "Read-only file system"]
)
def test_what_a_library_says_of_the_machine_is_a_sentence(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise RuntimeError(f"Error while writing: {words}")

    assert exit_status("kava test", work) == 1
    assert "run again" in (error := capsys.readouterr().err) or "correct the permissions" in error
    assert machine_fault(ValueError("a bug")) is None


# 22: Ctrl-C


def test_ctrl_c_is_one_sentence_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("kava.data.tokenize.run", interrupted)
    assert main(["tokenize", *SMALL]) == INTERRUPTED == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        "kava tokenize: interrupted; what is finished is kept: run again to go on"
    )


@pytest.mark.slow
def test_a_finished_store_serves_who_may_only_read_it_and_what_cannot_be_read_is_no_damage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = [*SMALL, "--set", "kv.shard_tokens=1024", "--set", "evaluation.max_new_tokens=4"]
    references = (["evaluate", "--reference", role] for role in ("teacher", "student_base"))
    stages = (["tokenize"], ["extract"], *references)
    for stage in stages:
        assert main([*stage, *options]) == 0
    (store,) = Path("results/teacher_kv").iterdir()
    verify = ["store", "verify", str(store)]
    longer = ["--set", "evaluation.max_new_tokens=5"]
    with read_only(Path("results")):
        for stage in (*stages, ["store", "ls"]):
            assert main([*stage, *options]) == 0
        assert main(verify) == 0
        assert "references cannot be written" not in capsys.readouterr().err
        assert "results/references" in sentence(capsys, "evaluate", "--reference", "teacher", *options, *longer)
    before = sorted(store.rglob("*"))
    shard = next(path for path in before if "/c/" in str(path) and path.is_file())
    for path in (shard, store / "store.zarr", store.parent):
        with with_mode(path, 0):
            for arguments in (verify, ["extract", *options], ["pretrain", "--arm", "flat", *options]):
                assert "cannot be re" in sentence(capsys, *arguments)
    with with_mode(store.parent, 0):
        assert "teacher_kv cannot be read" in sentence(capsys, "store", "ls", *options)
    assert sorted(store.rglob("*")) == before
    (store / "manifest.json").unlink()
    of_another_user(store)
    with permissions_count():
        assert f"{store} cannot be written" in sentence(capsys, "extract", *options)
