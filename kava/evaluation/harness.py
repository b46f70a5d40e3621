"""lm-evaluation-harness in process: its task, filters and marks, with answers that end row by row."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from torch.nn.utils.rnn import pad_sequence
from transformers import StoppingCriteriaList, StopStringCriteria

from kava.config.schema import Evaluation
from kava.data.fit import Longest, lack, positions
from kava.data.prompt import prompt_ids
from kava.data.task import read_task
from kava.errors import UserError
from kava.models.load import ends_of
from kava.tasks.base import Harness

# More tokens than any prompt has.
NEVER_CUT = 1 << 30


class AnswerStop(StopStringCriteria):
    """Ends each row whose answer has a stop string; the prompt's own text is none of it."""

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        super().__init__(tokenizer, list(stop))
        self._prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return super().__call__(input_ids[:, self._prompt_length :], scores, **kwargs)


def prompt_batch(tokenizer: Any, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of prompts, padded on the left, int64 `[B, T]`."""
    rows = [torch.tensor(prompt_ids(tokenizer, prompt)) for prompt in prompts]
    ids = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id, padding_side="left")
    masks = [torch.ones_like(row) for row in rows]
    return ids, pad_sequence(masks, batch_first=True, padding_side="left")


class RowwiseStop(HFLM):
    """The harness's Hugging Face model, asked as in training, each row of which stops where its own answer ends.

    The harness has rules of its own for start tokens, and takes an end token that a tokenizer appends for a part of the
    question; here a prompt has the ids that it had in training, and all of them.

    The harness decodes every row at every step once for each stop string, and lets a row that has ended go on until
    all have. transformers' own criterion compares ids on the device, and ends each row by itself. The answers are those
    that the harness gives to one question at a time, whatever the batch: in its own batches a row goes on behind a stop
    string that is a special token, such as `<|im_end|>`, which decoding then drops.

    Nor does it cut a prompt from the left to make room for the answer, as the harness's own class does and only logs:
    what does not fit the model's positions is refused before the first answer.
    """

    @property
    def max_length(self) -> int:
        """What the harness cuts prompts to; ours are never cut."""
        return NEVER_CUT

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Answers to prompts with their generation settings, in order.

        Raises
        ------
        UserError
            A prompt and its longest answer have more tokens than the model has positions.
        """
        limits = {self.model.name_or_path or "the model": positions(self.model.config)}
        lengths = [(len(self.tok_encode(prompt)), settings["max_gen_toks"]) for prompt, settings in
                   (request.args for request in requests)]  # fmt: skip
        number = max(range(len(lengths)), key=lambda number: sum(lengths[number]))
        tokens, max_new_tokens = lengths[number]
        if sentence := lack(limits, Longest(number, tokens), max_new_tokens):
            raise UserError(sentence)
        return super().generate_until(requests, disable_tqdm)

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        assert add_special_tokens is None, "only whole prompts are encoded: likelihoods are not asked for"
        assert left_truncate_len is None, "a prompt is never cut"
        assert not kwargs, f"not known here: {sorted(kwargs)}"
        return prompt_ids(self.tokenizer, string)

    def tok_batch_encode(
        self,
        strings: list[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert padding_side == "left", "answers follow their prompts"
        assert not truncation, "a prompt is never cut"
        ids, mask = prompt_batch(self.tokenizer, strings)
        assert left_truncate_len is None or ids.shape[1] <= left_truncate_len, "a prompt is never cut"
        return ids, mask

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: Sequence[str], **generation: Any
    ) -> torch.Tensor:
        sampled = generation.pop("do_sample", False) or generation.pop("temperature", 0.0)
        assert not sampled, "answers are greedy: a sampled one could not be paired with another arm's"
        limit = positions(self.model.config)
        assert limit is None or max_length <= limit, f"{max_length} tokens, and {limit} positions"
        return self.model.generate(
            input_ids=context,
            max_length=max_length,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([AnswerStop(self.tokenizer, stop, context.shape[1])]),
            pad_token_id=self.tokenizer.pad_token_id,
            use_cache=True,
            **generation,
        )


def harness_results(model: Any, tokenizer: Any, task_folder: Path, settings: Evaluation) -> dict[str, Any]:
    """Run the harness on a loaded model.

    Parameters
    ----------
    model, tokenizer
        A causal language model and its tokenizer.
    task_folder
        As `kava.data.task.write_task` made it.
    settings
        `batch_size`, questions per generate call, and `max_new_tokens`, longest answer in tokens.

    Returns
    -------
    dict
        What `lm_eval.evaluate` returns, with its samples.
    """
    return score(answering(model, tokenizer, settings.batch_size), task_folder, settings.max_new_tokens)


def answering(model: Any, tokenizer: Any, batch_size: int) -> RowwiseStop:
    """A loaded model and its tokenizer as the harness asks it, so many prompts at a time."""
    # It warns of a model that is given and not named, as ours is.
    logging.getLogger("lm_eval.models.huggingface").setLevel(logging.ERROR)
    prepare(model, tokenizer)
    return RowwiseStop(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def prepare(model: Any, tokenizer: Any) -> None:
    """Give a loaded model the ends of its answers, and its tokenizer padding that the model has a row for."""
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        tokenizer.pad_token = tokenizer.eos_token  # an added token without a row; padding is masked, but looked up
    model.generation_config.eos_token_id = ends_of(model.generation_config, tokenizer)


def answer(lm: RowwiseStop, prompt: str, stop: Sequence[str], max_new_tokens: int) -> str:
    """The greedy answer to one prompt, as the evaluation of the test questions has it."""
    settings = {"until": list(stop), "max_gen_toks": max_new_tokens, "do_sample": False, "temperature": 0.0}
    request = Instance("generate_until", {}, (prompt, settings), 0)
    return lm.generate_until([request], disable_tqdm=True)[0]


def score(lm: LM, task_folder: Path, max_new_tokens: int) -> dict[str, Any]:
    """Have any of the harness's models answer the questions; returns what `lm_eval.evaluate` does, with its samples."""
    # Not `simple_evaluate`, which lists the installed packages afterwards: three seconds of every evaluation.
    task = read_task(task_folder)
    tasks = TaskManager(include_defaults=False).load([task])
    tasks["tasks"][task["task"]].set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    results = evaluate(lm=lm, task_dict=tasks, bootstrap_iters=0)
    assert results is not None, "the harness returns results in the first process, and there is one"
    return results


def samples(results: Mapping[str, Any], task: Harness) -> list[dict[str, Any]]:
    """One record per question from the harness's samples, which stand once per filter."""
    by_filter: dict[str, dict[int, Any]] = {name: {} for name in task.filters.values()}
    for sample in results["samples"][task.name]:
        by_filter[sample["filter"]][sample["doc_id"]] = sample
    (first, *_) = by_filter.values()
    return [
        {
            "doc_id": doc_id,
            "question": sample["doc"]["question"],
            "gold": sample["doc"]["answer"],
            "answer": sample["resps"][0][0],
        }
        | {metric: int(by_filter[name][doc_id]["exact_match"]) for metric, name in task.filters.items()}
        for doc_id, sample in sorted(first.items())
    ]
