"""What several tests need: the shared models and data, tiny models of each family."""

import gc
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Two test workers on two cores: tiny matrices gain nothing from more threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from kava.config.load import REPOSITORY
from kava.terminal.noise import leave_out_noise

SHARED = REPOSITORY.parent / "shared"
# A shell lets what a script starts in the background ignore Ctrl-C, which tests send to themselves and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
# As every command does; one of these records holds the frames of an exception, and so a model, until a test ends.
leave_out_noise()


# Files of minutes, longest first: a worker that came to one of them last would end alone.
LONG = (
    "test_workflow.py",
    "test_store_integrity.py",
    "test_store_processes.py",
    "test_smoke.py",
    "test_bench_train.py",
    "test_documented_commands.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


def pytest_collection_finish() -> None:
    # Every run of training collects garbage twice: what imports have made is none, and half a second to search through.
    gc.freeze()


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A command sends its log to the stderr of its test, which is closed when the test ends."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def tinystories() -> Path:
    """A small Llama with real trained weights."""
    return _shared("models/tinystories-656k")


@pytest.fixture(scope="session")
def qwen_tokenizer() -> Path:
    return _shared("models/qwen2.5-tokenizer")


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The real GSM8K."""
    return _shared("data/gsm8k")


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not beside this checkout; CI has it")
    return path


def tiny_model(family: str, **changes: Any) -> Any:
    """A model of a family with random weights, 3 layers, 4 attention heads, 2 KV heads, head dim 8."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if family == "gpt2":
        settings = {"n_layer": 3, "n_head": 4, "n_embd": 32, "vocab_size": 61, "n_positions": 64}
    else:
        settings = {
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 32,
            "head_dim": 8,
            "intermediate_size": 48,
            "vocab_size": 61,
            "max_position_embeddings": 64,
        }
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **(settings | {"bos_token_id": 1, "eos_token_id": 2} | changes))
    return AutoModelForCausalLM.from_config(config).eval()
