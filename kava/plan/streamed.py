"""What an extraction takes of the GPU when the teacher's weights come from the disk, layer after layer."""

from functools import cache
from itertools import pairwise

import torch

from kava.config.kv import KvStore
from kava.config.models import Teacher
from kava.models.cut import cut_config
from kava.plan.geometry import read_geometry
from kava.plan.resident import quantised_bytes
from kava.plan.trace import layer_counts, trace_forward


def streamed_parts(teacher: Teacher, tokens: int, kv: KvStore) -> dict[str, int]:
    """Parts of the peak of an extraction, by name of `kava.plan.memory.PARTS`.

    Two of what is read together (embeddings, a layer, the head) are there at once, since one is read while the other
    computes; of a wave's tokens, the hidden states wait.

    Parameters
    ----------
    teacher
        Its model and how it is loaded.
    tokens
        Of the longest example.
    kv
        Settings of the store.
    """
    config = read_geometry(teacher)
    rows = max(1, kv.batch_tokens // tokens)
    signals = kv.signals
    stations, used = _stations(teacher, rows * tokens, signals.topk_logits is not None)
    largest = max(first + second for first, second in pairwise(stations))
    waiting = max(teacher.wave_tokens, kv.shard_tokens) * config.hidden_size * getattr(torch, teacher.dtype).itemsize
    kept = config.num_hidden_layers + 1 if signals.hidden_states or signals.token_hidden_states else 1
    forward = dict(_forward_of_one_layer(teacher, rows, tokens, kv.keys))
    forward["activations"] = forward.get("activations", 0) + waiting * kept
    return forward | {"weights": largest, "temporary": forward.get("temporary", 0) + used}


def _stations(teacher: Teacher, tokens: int, head: bool) -> tuple[list[int], int]:
    """Bytes of the modules whose weights come and go, in their order, and what a matrix of a layer takes in use."""
    config = read_geometry(teacher)
    layer, used = quantised_bytes(layer_counts(config), teacher, teacher.dtype, tokens)
    vocabulary = config.vocab_size * config.hidden_size * getattr(torch, teacher.dtype).itemsize
    return [vocabulary, *[layer] * config.num_hidden_layers, *([vocabulary] if head else [])], used


@cache
def _forward_of_one_layer(teacher: Teacher, rows: int, tokens: int, keys: str) -> tuple[tuple[str, int], ...]:
    config = cut_config(read_geometry(teacher), [0])
    parts = trace_forward(config, getattr(torch, teacher.dtype), rows, tokens, keys).parts
    return tuple((name, count) for name, count in parts.items() if name != "weights")
