"""JSON files that are JSON, and not what they should be: one sentence each."""

import json
from pathlib import Path
from typing import Any

import pytest

from kava.commands.generate import _longest_answer
from kava.data.prompt_format import PromptFormat
from kava.errors import UserError
from kava.files import read_json
from kava.store.admin.describe import read_begun


@pytest.mark.parametrize("text", ["[]", "null", "1", '"x"'])
def test_a_manifest_that_is_no_object(text: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError, match="holds no JSON object; delete it"):
        read_json(path)


@pytest.mark.parametrize("attributes", [[], None, {"kava": []}, {"kava": {}}, {"kava": {"spec": "x"}}])
def test_a_root_group_that_says_nothing_of_its_store(attributes: Any, tmp_path: Path) -> None:
    path = tmp_path / "store.zarr" / "zarr.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"attributes": attributes}))
    with pytest.raises(UserError, match="run extract, which makes a new one"):
        read_begun(tmp_path)


@pytest.mark.parametrize(
    "prompt", ["hello", "{0}", "{question", "{foo}{question}", "{question.x}", "{question}{question}"]
)
def test_a_prompt_without_one_place_for_the_question(prompt: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kava": {"prompt": prompt, "stop": []}}))
    with pytest.raises(UserError, match=r"config\.json is damaged .*; distil the student again"):
        PromptFormat.of_student(tmp_path)


@pytest.mark.parametrize("longest", ["x", -5, 0, 1.5, True, [3]])
def test_a_longest_answer_that_is_no_number_of_tokens(longest: Any, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"max_new_tokens": longest}))
    with pytest.raises(UserError, match=r"1 or more is allowed; give --max-new-tokens"):
        _longest_answer(tmp_path)
