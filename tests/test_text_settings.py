"""Text of one's own: what plan and doctor know of its rows, and which settings it cannot have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from zoo.data import write_lines
from zoo.text import pair, text_config, token_set

from kava.config import load_config
from kava.config.jobs import Jobs
from kava.config.models import ModelSettings
from kava.data.positions import look
from kava.doctor.sources import sources
from kava.errors import UserError
from kava.plan.tokens import count_tokens

DEMO = ModelSettings(model="kava:teacher")
GOOD = json.dumps({"prompt": "Say five.", "response": "Five."})


def test_the_plan_and_the_doctor_know_the_rows(tmp_path: Path) -> None:
    write_lines(tmp_path / "data", [pair(n) for n in range(40)], [pair(n, "test") for n in range(5)])
    config = text_config(tmp_path, data={"validation": 4})
    estimate = count_tokens(Jobs(config))
    assert not estimate.known
    assert str(look(config)) == "all test questions fit"
    checks = {check.name: check for check in sources(config, "kava fetch").checks}
    assert checks["data"].status == "ok"
    assert "JSON lines, 36 train, 4 validation, 5 test rows, of prompt and response, or of messages" in str(
        checks["data"]
    )
    token_set(tmp_path, data={"validation": 4})
    known = count_tokens(Jobs(config))
    assert (known.known, known.examples) == (True, estimate.examples)
    assert known.tokens == pytest.approx(estimate.tokens, rel=0.02)


def test_examples_beyond_the_positions_of_a_model_are_known_before_a_run(tmp_path: Path) -> None:
    test = [pair(0, "test") | {"response": "Tom has 5 apples. " * 300}]
    write_lines(tmp_path / "data", [pair(n) for n in range(4)], test)
    fix = "set max_length: 1024 to drop longer examples"
    assert fix in str(look(text_config(tmp_path, max_length=4096)).lack)
    with pytest.raises(UserError, match=fix):
        token_set(tmp_path, max_length=4096)
    assert look(text_config(tmp_path, max_length=1024)).lack is None


def test_data_that_nobody_has_counted_is_to_be_fetched() -> None:
    data = {"kind": "text", "path": "somebody/something", "revision": "a" * 40}
    config = load_config(None, {"data": data})
    with pytest.raises(
        UserError, match=r"the rows of somebody/something at aaaa.* are not on this machine.*kava fetch"
    ):
        count_tokens(Jobs(config))


# Settings.

BUDGET = {"kind": "right_crop", "budget": 4}
RKV = {"kind": "rkv", "budget": 4}
NEEDS_A_REASONING: dict[str, tuple[dict[str, Any], str]] = {
    "equations": ({"student_reasoning": "equations"}, "set student_reasoning: full"),
    "a selection": ({"kv": {"select": BUDGET}}, "set kv.select.candidates: all"),
    "R-KV": ({"kv": {"select": RKV}}, "set kv.select.candidates: all"),
    "scores": ({"kv": {"signals": {"importance": {"kind": "rkv"}}}}, "set kv.signals.importance.candidates: all"),
    "logits": ({"kv": {"signals": {"topk_segments": ["reasoning", "answer"]}}}, r"set topk_segments: \[answer\]"),
    "an arm's selection": ({"arms": {"flat": {"select": BUDGET}}}, "set arms.flat.select.candidates: all"),
    "CODI": (
        {"kv": {"signals": {"hidden_states": True}}, "arms": {"flat": {"auxiliary": {"codi": {}}}}},
        "set auxiliary.codi: null",
    ),
    "KV of the reasoning": ({"arms": {"flat": {"segments": ["reasoning"]}}}, r"set segments: \[prompt, answer\]"),
}


@pytest.mark.parametrize(("settings", "fix"), NEEDS_A_REASONING.values(), ids=NEEDS_A_REASONING)
def test_what_needs_a_reasoning_is_refused_with_the_fix(settings: dict[str, Any], fix: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"rows of data\.kind: text have no reasoning.*{fix}"):
        load_config(None, {"data": {"kind": "text", "path": str(tmp_path)}} | settings)
    load_config(None, settings)


def test_tokens_of_prompt_and_response_may_be_chosen_and_scored(tmp_path: Path) -> None:
    chosen = RKV | {"candidates": "all"}
    settings = {
        "kv": {"signals": {"importance": {"kind": "rkv", "candidates": "all"}, "topk_logits": 8}},
        "arms": {"flat": {"select": chosen, "auxiliary": {"logit_kd": {}}, "segments": ["answer"]}},
    }
    load_config(None, {"data": {"kind": "text", "path": str(tmp_path)}} | settings)


def test_the_template_of_an_example_is_that_of_its_task_unless_it_is_given(tmp_path: Path) -> None:
    text = {"kind": "text", "path": str(tmp_path)}
    assert load_config(None, {}).template == "Question: {question}\nAnswer: {answer}"
    assert load_config(None, {"data": text}).template == "{question}{answer}"
    assert load_config(None, {"data": text, "template": "{question}\n{answer}"}).template == "{question}\n{answer}"


def test_wrong_data_is_one_sentence_and_says_nothing_of_the_template() -> None:
    with pytest.raises(UserError) as refused:
        load_config(None, {"data": {"kind": "text"}})
    assert str(refused.value) == "configuration: data.text.path: Field required"
