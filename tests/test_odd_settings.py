"""Values of settings that YAML makes of what was meant otherwise: truth for numbers, halves of characters, circles."""

from pathlib import Path

import pytest

from kava.config.load import load_config, parse_assignments
from kava.errors import UserError


@pytest.mark.parametrize("value", ["true", "yes", "on", "false"])
@pytest.mark.parametrize(
    "key", ["data.train", "max_length", "evaluation.batch_size", "arms.flat.kv_weight", "arms.flat.time_warp.ratio"]
)
def test_truth_is_no_number(key: str, value: str) -> None:
    with pytest.raises(UserError, match="and a number is expected; write the number"):
        load_config(None, {"preset": "demo", **parse_assignments([f"{key}={value}"])})


def test_truth_is_kept_where_it_is_meant() -> None:
    settings = parse_assignments(["report.codecs=yes", "arms.flat.pretrain_projector=off"])
    config = load_config(None, {"preset": "demo", **settings})
    assert config.report.codecs
    assert not config.arms["flat"].pretrain_projector


@pytest.mark.parametrize(
    "setting",
    [
        'notes="\\ud800"',
        'template="{question} \\udc00{answer}"',
        'chat={system: "\\ud800"}',
        'teacher.revision="\\udfff"',
    ],
)
def test_half_a_surrogate_pair_is_no_text(setting: str) -> None:
    with pytest.raises(UserError, match="half of a surrogate pair"):
        load_config(None, {"preset": "demo", **parse_assignments([setting])})


@pytest.mark.parametrize("text", ["arms: &a {flat: *a}", "arms: &a [*a]", "arms: &a {flat: {x: [1, *a]}}"])
def test_an_alias_within_its_anchor(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"preset: demo\n{text}\n", encoding="utf-8")
    with pytest.raises(UserError, match="holds itself"):
        load_config(path)
    with pytest.raises(UserError, match="holds itself"):
        parse_assignments([text.replace(": ", "=", 1)])


def test_an_alias_that_is_used_twice_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("preset: demo\narms: {flat: &a {aligner: {kind: flat}}, again: *a}\n", encoding="utf-8")
    assert load_config(path).arms["again"] == load_config(path).arms["flat"]
