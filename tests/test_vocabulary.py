"""Rows of a head that are no tokens, ids without a row, examples without positions, and tokenizers that differ."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from store_fixtures import fill_store, some_ids
from test_tokens import token_set
from transformers import AutoConfig
from zoo import tokenizers as zoo

from kava.config.auxiliary import LogitKd as LogitKdSettings
from kava.data.fit import Reach, no_tokens, positions, require_fit, require_more_tokens
from kava.errors import UserError
from kava.kv import KeysValues
from kava.losses.auxiliary import BothModels, StudentPass
from kava.losses.logit_kd import LogitKd
from kava.store.reader import StoreReader

TOKENS, PADDED, TOP = 61, 67, 4


def tokenizer(*ids: int) -> Any:
    return SimpleNamespace(get_vocab=lambda: {str(number): number for number in ids})


def padded(model: Any, rows: int) -> Any:
    """The model with rows that are no tokens, and that it prefers to all tokens."""
    grown = tiny_model("llama", vocab_size=rows, tie_word_embeddings=False)
    state = model.state_dict()
    for name, tensor in grown.state_dict().items():
        tensor[: len(state[name])] = state[name]
    # The most probable logit there is, and some more.
    grown.lm_head.weight.data[TOKENS:] = 3 * grown.lm_head.weight.data[:TOKENS].sum(0) + 1
    return grown.eval()


@pytest.fixture(scope="module")
def plain() -> Any:
    return tiny_model("llama", tie_word_embeddings=False)


def extracted(folder: Path, teacher: Any, left_out: np.ndarray | None) -> tuple[torch.Tensor, torch.Tensor]:
    signals = {"topk_logits": TOP, "hidden_states": False, "importance": None}
    fill_store(folder, teacher, some_ids(), {"kind": "bf16"}, left_out, signals=signals)
    ids, logprobs = StoreReader(folder / "manifest.json", torch.device("cpu")).topk_logits("train", 0)
    return ids.long(), logprobs.float()


def test_a_padded_teacher_stores_the_top_of_its_tokens_with_probabilities_among_them(
    plain: Any, tmp_path: Path
) -> None:
    left_out = no_tokens(tokenizer(*range(TOKENS)), PADDED)
    assert left_out is not None
    assert np.flatnonzero(left_out).tolist() == list(range(TOKENS, PADDED))
    ids, logprobs = extracted(tmp_path / "padded", padded(plain, PADDED), left_out)
    row = torch.from_numpy(some_ids()[0])[None]
    with torch.inference_mode():
        logits = plain.double()(row).logits[0]
    plain.float()
    answers = range(row.shape[1] - 4, row.shape[1])
    for (of_ids, of_logprobs), answer in zip(zip(ids, logprobs, strict=True), answers, strict=True):
        expected = logits[answer - 1].log_softmax(-1).topk(TOP)
        assert of_ids.tolist() == expected.indices.tolist()
        torch.testing.assert_close(of_logprobs.double(), expected.values, atol=2e-3, rtol=0)
    # Without it the store would hold rows that are no tokens.
    assert (extracted(tmp_path / "as it was", padded(plain, PADDED), None)[0] >= TOKENS).any()


def test_a_head_without_padding_leaves_nothing_out() -> None:
    """So that its stores keep their bytes."""
    assert no_tokens(tokenizer(*range(TOKENS)), TOKENS) is None
    assert no_tokens(tokenizer(*range(TOKENS + 3)), TOKENS) is None
    holes = no_tokens(tokenizer(0, 1, 3), 5)
    assert holes is not None
    assert holes.tolist() == [False, False, True, False, True]


@pytest.mark.parametrize("rows", [TOKENS, 64, PADDED])
def test_logit_kd_is_the_same_however_many_rows_the_student_is_padded_to(plain: Any, rows: int) -> None:
    left_out = no_tokens(tokenizer(*range(TOKENS)), rows)
    mask = None if left_out is None else torch.from_numpy(left_out)
    teacher = torch.randn(6, TOKENS, generator=torch.Generator().manual_seed(1)).log_softmax(-1).topk(TOP)
    places = torch.tensor([1, 2, 3, 6, 7, 8])  # before the last three tokens of two rows of five
    batch = {"topk_ids": teacher.indices, "topk_logprobs": teacher.values, "topk_from": places}
    answer = torch.zeros(2, 5, dtype=torch.bool)
    found = []
    for model in (plain, padded(plain, rows)):
        hidden = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2), requires_grad=True)
        own = LogitKd(LogitKdSettings(), BothModels(32, no_tokens=None if model is plain else mask))
        nothing = torch.zeros(0)
        loss = own(StudentPass(KeysValues(nothing, nothing), (hidden,), [], answer, model.lm_head), batch)
        found.append((loss, torch.autograd.grad(loss, hidden)[0]))
    torch.testing.assert_close(found[0], found[1])
    assert torch.isfinite(found[0][0])


@pytest.mark.parametrize("top", [417, 1024])
def test_more_log_probabilities_than_tokens_are_refused(top: int) -> None:
    require_more_tokens(tokenizer(*range(417)), 416)
    with pytest.raises(UserError, match=rf"topk_logits is {top}, and the tokenizer has 417 tokens; set it to at most"):
        require_more_tokens(tokenizer(*range(417)), top)


@pytest.mark.parametrize(
    ("family", "settings", "limit"),
    [
        ("gpt2", {"n_positions": 64}, 64),
        ("opt", {"max_position_embeddings": 64}, 64),
        ("llama", {"max_position_embeddings": 64}, 64),
        ("bloom", {}, None),
        ("mpt", {}, None),
        ("llama", {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}, 256),
        ("llama", {"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 128),
        ("qwen2", {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": 4.0,
                                                                   "original_max_position_embeddings": 64}}, 256),
        ("llama", {"max_position_embeddings": 128, "rope_scaling": {
            "rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 64, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0}}, 128),
        ("gemma3_text", {"max_position_embeddings": 64}, 64),
    ],
)  # fmt: skip
def test_positions_are_those_that_a_model_or_its_scaling_reaches(
    family: str, settings: dict[str, Any], limit: int | None
) -> None:
    config = AutoConfig.for_model(family, **settings)
    assert positions(config) == limit
    require_fit("teacher", "M", config, Reach(1, limit or 10_000_000))
    if limit:
        with pytest.raises(UserError, match=rf"the teacher M has {limit} positions.*set max_length: {limit} to drop"):
            require_fit("teacher", "M", config, Reach(1, limit + 1))


def test_an_id_without_a_row_is_refused() -> None:
    for config in (AutoConfig.for_model("llama", vocab_size=61), AutoConfig.for_model("gpt2", vocab_size=61)):
        require_fit("student", "M", config, Reach(60, 1))
        with pytest.raises(UserError, match="the student M has 61 embedding rows, and the data has the token id 61"):
            require_fit("student", "M", config, Reach(61, 1))


@pytest.mark.parametrize("role", ["teacher", "student"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 50}, "{role} .* has 50 embedding rows"),
        ({"model_type": "gpt2", "max_position_embeddings": 20}, "{role} .* has 20 positions"),
        ({"max_position_embeddings": 20}, "{role} .* has 20 positions"),
    ],
)
def test_tokenising_says_what_teacher_and_student_cannot_read(
    role: str, settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    models = {name: str(zoo.bos_adding(tmp_path / name)) for name in ("teacher", "student")}
    zoo.configure(tmp_path / role, **settings)
    changes = [(name, {"model": path}) for name, path in models.items()]
    with pytest.raises(UserError, match=message.format(role=role)):
        token_set(tmp_path, *changes, ("max_length", 512))
    assert not list(tmp_path.glob("tokens/*/manifest.json"))
