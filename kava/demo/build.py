"""Makes the demo's teacher and base student, by training both from nothing on the demo's train split.

Command: python -m kava.demo.build [--output DIR] [--only teacher|student] [--seed N]
"""

import argparse
import random
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kava.tasks.demo import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

PROMPT = "Question: {question}\nAnswer:"
TEXT = PROMPT + " {answer}"
POSITIONS = 1024
ANSWER = re.compile(r"#### (-?[0-9.,]+)")  # lm-evaluation-harness's strict match for GSM8K
LONGEST_ANSWER = 80  # tokens generated at most; the demo's answers have under 65


@dataclass(frozen=True)
class Recipe:
    """One model's shape and training; both are Qwen2 models with 4 attention heads and 2 KV heads."""

    layers: int
    head_dim: int
    mlp_width: int
    examples: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    purpose: str


RECIPES = {
    "teacher": Recipe(
        layers=4,
        head_dim=32,
        mlp_width=384,
        examples=12_000,
        steps=600,
        batch_size=64,
        learning_rate=3e-3,
        weight_decay=0.01,
        purpose="It is the teacher of KAVA's demo: it solves nearly all of the problems.",
    ),
    "student": Recipe(
        layers=2,
        head_dim=16,
        mlp_width=192,
        examples=8_000,
        steps=250,
        batch_size=32,
        learning_rate=3e-3,
        weight_decay=0.01,
        purpose="It is the base student of KAVA's demo: it has learnt the language and the form of an "
        "answer, not yet the arithmetic, and leaves room for distillation to show.",
    ),
}


def new_model(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> "Qwen2ForCausalLM":
    """Return an untrained model of the recipe's shape, its weights drawn from torch's global generator."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=4 * recipe.head_dim,
            intermediate_size=recipe.mlp_width,
            num_hidden_layers=recipe.layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=recipe.head_dim,
            max_position_embeddings=POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(
    model: "Qwen2ForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[dict[str, str]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float = 0.01,
    seed: int,
) -> None:
    """Train `model` in place, with cross entropy on every token of question, answer and end token.

    Parameters
    ----------
    model
        The model, in float32.
    tokenizer
        Its tokenizer.
    rows
        Problems as `kava.tasks.demo.generate` returns them.
    steps, batch_size
        Updates, and examples in each; the rows are shuffled anew whenever all have been read.
    learning_rate
        The peak of a one-cycle schedule, reached after a tenth of the steps.
    weight_decay
        AdamW's.
    seed
        Decides the order of the rows.
    """
    import torch
    from torch.nn.utils import clip_grad_norm_
    from torch.nn.utils.rnn import pad_sequence

    texts = [TEXT.format(**row) + str(tokenizer.eos_token) for row in rows]
    sequences = [torch.tensor(ids) for ids in tokenizer(texts).input_ids]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    rng = random.Random(seed)
    order: list[int] = []
    start = time.perf_counter()
    model.train()
    for step in range(1, steps + 1):
        while len(order) < batch_size:
            order += rng.sample(range(len(rows)), len(rows))
        batch, order = [sequences[index] for index in order[:batch_size]], order[batch_size:]
        # No attention mask: padding stands on the right, where causal attention never looks.
        labels = pad_sequence(batch, batch_first=True, padding_value=-100)
        input_ids = labels.masked_fill(labels == -100, tokenizer.pad_token_id)
        loss = model(input_ids=input_ids, labels=labels, use_cache=False).loss
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss.item():.3f}  {time.perf_counter() - start:.0f} s",
                flush=True,
            )


def complete(
    model: "Qwen2ForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    rows: list[dict[str, str]],
    batch_size: int = 250,
) -> list[str]:
    """Return the model's greedy answer to each question, without special tokens."""
    import torch

    model.eval()
    completions: list[str] = []
    for start in range(0, len(rows), batch_size):
        prompts = [PROMPT.format(**row) for row in rows[start : start + batch_size]]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=batch.input_ids,
                attention_mask=batch.attention_mask,
                max_new_tokens=LONGEST_ANSWER,
                do_sample=False,
            )
        completions += tokenizer.batch_decode(ids[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
    return completions


def strict_match(completions: list[str], rows: list[dict[str, str]]) -> float:
    """Return the share of completions whose number after `#### ` is the number of the row's answer."""
    correct = 0
    for completion, row in zip(completions, rows, strict=True):
        found = ANSWER.search(completion)
        correct += found is not None and found[1] == row["answer"].rsplit("#### ", 1)[1]
    return correct / len(rows)


def model_card(name: str, recipe: Recipe, seed: int, parameters: int, accuracy: float) -> str:
    """Return the README of a model directory."""
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---

# KAVA demo {name}

A Qwen2 model with {recipe.layers} layers, 4 attention heads, 2 KV heads of dimension {recipe.head_dim} and
{parameters:,} parameters.
{recipe.purpose}
It knows nothing but these problems and is of no use outside tests and demonstrations.

**Training.** From random weights, {recipe.steps} steps of {recipe.batch_size} examples with cross entropy
on every token (AdamW, one-cycle learning rate with a peak of {recipe.learning_rate}, weight decay
{recipe.weight_decay}, seed {seed}). It saw the first {recipe.examples:,} problems of the `train` split of
`kava.data.demo` (seed {seed}) as `Question: {{question}}\\nAnswer: {{answer}}` and an end token, and no other
text. The splits share no question and no combination of numbers, so it has met no problem of `validation` or
`test`, nor one with the numbers of such a problem.

**Strict match.** {accuracy:.1%} of the first 500 problems of the `test` split (seed 0), decoded greedily,
with these bfloat16 weights read as float32.

**Made by** `python -m kava.demo.build --only {name} --seed {seed}`. Apache-2.0.
"""


def build(name: str, output: Path, seed: int) -> float:
    """Train one model and write it, its tokenizer and its card into the directory `output / name`.

    Parameters
    ----------
    name
        "teacher" or "student".
    output
        Where the model's directory is made.
    seed
        Decides the training problems, their order and the initial weights.

    Returns
    -------
    float
        Strict match on 500 test problems, of the weights as saved.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from kava.demo.tokenizer import build_tokenizer

    # Teacher and student must read the same ids, so their tokenizer depends on neither recipe nor seed.
    tokenizer = build_tokenizer((TEXT.format(**row) for row in generate("train", 8_000, seed=0)), POSITIONS)
    recipe = RECIPES[name]
    torch.manual_seed(seed)
    model = new_model(recipe, tokenizer)
    print(f"{name}: {model.num_parameters():,} parameters", flush=True)
    train(
        model,
        tokenizer,
        generate("train", recipe.examples, seed),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        seed=seed,
    )

    directory = output / name
    model.to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    saved = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    test = generate("test", 500, seed=0)
    accuracy = strict_match(complete(saved, tokenizer, test), test)
    card = model_card(name, recipe, seed, model.num_parameters(), accuracy)
    (directory / "README.md").write_text(card, encoding="utf-8")
    print(f"{name}: strict match {accuracy:.3f}, written to {directory}", flush=True)
    return accuracy


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the demo's teacher and base student from nothing.")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).parent,
        help="directory that gets teacher/ and student/ (default: the package's own)",
    )
    parser.add_argument("--only", choices=tuple(RECIPES), help="build one of the two (default: both)")
    parser.add_argument("--seed", type=int, default=0, help="of problems, order and weights (default: 0)")
    arguments = parser.parse_args(argv)
    for name in [arguments.only] if arguments.only else RECIPES:
        build(name, arguments.output, arguments.seed)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
