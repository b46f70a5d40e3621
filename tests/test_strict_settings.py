"""Settings that mean two things, or none that is allowed: equal keys, URLs, places, names, seeds."""

import os
import pwd
from pathlib import Path

import pytest
from command_fixtures import in_a_folder_of_its_own, sentence  # noqa: F401
from zoo.machines import with_mode, without_home

from kava.cli import main
from kava.config import Jobs, load_config
from kava.config.identity import model_identity
from kava.config.load import REPOSITORY, check_typed
from kava.config.models import ModelSettings
from kava.config.strict_yaml import parse_yaml
from kava.errors import UserError

CONFIG = str(REPOSITORY / "config.yaml")
TEACHER = REPOSITORY / "kava" / "demo" / "teacher"


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


# 8: a key given twice


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("distill: {steps: 20}\nseeds: [1]\ndistill: {save_every: 2}\n", "distill", "line 1 and line 3"),
        ("distill:\n  steps: 20\n  lr: 1\n  steps: 30\n", "steps", "line 2 and line 4"),
        ("arms: {flat: null, flat: {}}", "flat", "line 1"),
        ("arms:\n  - {a: 1,\n     'a': 2}\n", "a", "line 2 and line 3"),
        ("on: 1\ntrue: 2\n", "true", "line 1 and line 2"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2\n", "b", "line 4 and line 5"),
        ('{"seeds": [1], "seeds": [2]}', "seeds", "line 1"),
    ],
)
def test_a_yaml_key_given_twice_is_refused_with_both_lines(text: str, key: str, lines: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text, encoding="utf-8")
    for read in (lambda: load_config(file), lambda: check_typed([file], [])):
        with pytest.raises(UserError, match=rf"mine.yaml is ambiguous: key '{key}' stands twice, in {lines}, and") as e:
            read()
        assert "\n" not in str(e.value)


def test_a_key_given_twice_on_the_command_line_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'flat' stands twice" in sentence(
        capsys, "config", "--configfile", CONFIG, "--set", "arms={flat: null, flat: {}}"
    )
    with pytest.raises(UserError, match=r"--config 'arms=.* key 'flat' stands twice"):
        check_typed([], ["--cores", "1", "--config", "arms={flat: null, flat: {}}"])
    check_typed([], ["--config", "notes={no YAML", "seeds=[1, 2]", "arms={flat: {a: 1}, sft: {a: 1}}"])


def test_merge_keys_and_anchors_work() -> None:
    text = "base: &base {steps: 1, lr: 2}\na: &a\n  <<: *base\n  steps: 3\nb: {<<: [*a, *base]}\nc: *a\n"
    merged = {"steps": 3, "lr": 2}
    assert parse_yaml(text) == {"base": {"steps": 1, "lr": 2}, "a": merged, "b": merged, "c": merged}


# 18: a configuration that is no text


@pytest.mark.parametrize("kind", ["folder", "latin", "binary", "utf16", "unreadable"])
def test_a_configuration_file_that_cannot_be_read_is_one_sentence(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    if kind == "folder":
        file.mkdir()
    else:
        text = {"latin": "notes: é".encode("latin-1"), "binary": b"a: \x00", "utf16": "notes: a".encode("utf-16")}
        file.write_bytes(text.get(kind, b"notes: a"))
    with with_mode(file, 0o000 if kind == "unreadable" else 0o755):
        error = sentence(capsys, "config")
    expected = {"folder": "is a folder", "binary": "is not valid YAML", "unreadable": "cannot be read"}
    assert expected.get(kind, "is not UTF-8") in error


# 16, 23: places


@pytest.mark.parametrize(
    "url", ["s3://bucket/kava", "gs://b", "hf://datasets/a/b", "http://x/y", "file:///data", "S3:/b"]
)
@pytest.mark.parametrize("setting", ["cache_dir", "teacher.model", "student.model", "data.path", "KAVA_CACHE"])
def test_a_url_is_refused_where_a_folder_is_meant(
    url: str, setting: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if setting == "KAVA_CACHE":
        monkeypatch.setenv(setting, url)
        options = []
    else:
        options = ["--set", "data={kind: gsm8k}"] if setting == "data.path" else []
        options += ["--set", f"{setting}={url}"]
    assert "is a URL" in sentence(capsys, "config", "--configfile", CONFIG, *options)
    assert not list(Path().iterdir())


@pytest.mark.parametrize("typed", ["~/kava", "$HOME/kava", "${HOME}/kava", "$KAVA_TEST/kava"])
def test_a_home_folder_and_variables_are_expanded_once(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAVA_TEST", str(tmp_path))
    data = {"kind": "gsm8k", "path": typed}
    config = load_config(CONFIG, {"cache_dir": typed, "teacher": {"model": typed}, "data": data})
    expected = str(tmp_path / "kava")
    assert [config.cache_dir, config.teacher.model, config.data.path] == [expected] * 3
    monkeypatch.setenv("KAVA_CACHE", typed)
    assert Jobs(load_config(CONFIG)).cache == tmp_path / "kava"
    assert main(["store", "ls", "--configfile", CONFIG, f"--cache-dir={typed}"]) == 0
    assert not Path("~").exists()


@pytest.mark.parametrize(
    ("typed", "fault"),
    [
        ("$KAVA_NEVER_SET/kava", "names the variable $KAVA_NEVER_SET, which is not set"),
        ("~nobody-of-this-name/kava", "names a home folder that is not known"),
        ("{teacher}/kava", "holds braces"),
        ("kava{}", "holds braces"),
        ("", "is empty"),
        (" kava", "white space"),
        ("kava\n", "white space"),
        ("ka\nva", "line break"),
        ("caf\udce9", "letters that this locale"),
    ],
)
def test_a_place_that_cannot_be_meant_is_one_sentence(typed: str, fault: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(CONFIG, {"cache_dir": typed})
    assert fault in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["my {model}", "m" * 250, "数" * 80, 'it\'s # "a" model é'])
def test_any_name_of_a_model_folder_makes_a_folder_of_the_cache(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    for file in TEACHER.iterdir():
        if file.is_file():
            (tmp_path / name / file.name).symlink_to(file)
    plan = Jobs(load_config(CONFIG, {"teacher": {"model": str(tmp_path / name)}}))
    for job in (plan.extract, plan.reference("teacher"), plan.bench):
        folder = job.output.parent
        folder.mkdir(parents=True)
        assert not set("{}") & set(str(folder))


def test_a_uid_without_a_name_and_without_a_home_needs_neither(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kava.config.identity.LARGE", 1)
    without_home(monkeypatch)
    with pytest.raises(KeyError):
        pwd.getpwuid(os.getuid())
    identity = model_identity(ModelSettings(model="kava:teacher"))
    assert all(len(value) == 64 for value in identity["files"].values())
    assert "names a home folder that is not known" in sentence(
        capsys, "config", "--configfile", CONFIG, "--set", "cache_dir=~/kava"
    )
    assert main(["config", "--configfile", CONFIG]) == 0
    assert not list(Path().iterdir())


# 18: names and seeds


OWN = ["tokens", "Tokens", "teacher_kv", "references", "bench", "ab_report.html", "ab_report.json", "comparison.html"]


@pytest.mark.parametrize("name", [*OWN, "n" * 300, ".shared", ".lock", "..", "a/b"])
def test_an_experiment_cannot_take_the_name_of_what_stands_beside_it(name: str) -> None:
    with pytest.raises(UserError, match=r"experiment"):
        load_config(CONFIG, {"experiment": name})


@pytest.mark.parametrize(
    "names", [["record.yaml"], ["report.html"], ["Report.HTML"], ["n" * 300], [".lock"], ["a", "A"]]
)
def test_an_arm_cannot_take_the_name_of_what_stands_beside_it(names: list[str]) -> None:
    with pytest.raises(UserError, match="arms"):
        load_config(CONFIG, {"arms": {name: {"aligner": None} for name in names}})


def test_arms_and_a_cache_inside_the_experiments_folder_are_kept_apart(tmp_path: Path) -> None:
    arms = {"arms": {"tokens": {"aligner": None}, "own": {"aligner": None}}}
    assert load_config(CONFIG, arms)
    for cache in ("results/demo", "./results/x/../demo", str(tmp_path / "results/demo"), "results/demo/own"):
        with pytest.raises(UserError, match=r"arms\.(tokens|own) is the name"):
            load_config(CONFIG, arms | {"cache_dir": cache})


@pytest.mark.parametrize("seed", [-1, 2**32, 2**63, 10**30, 1.5])
def test_a_seed_that_a_library_would_refuse_later_is_refused_at_once(seed: float) -> None:
    for settings in ({"seeds": [seed]}, {"data": {"seed": seed}}):
        with pytest.raises(UserError, match="seed"):
            load_config(CONFIG, settings)
    assert load_config(CONFIG, {"seeds": [0, 2**32 - 1]}).seeds == [0, 4294967295]
