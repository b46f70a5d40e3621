"""Run the teacher over a token set: what goes into each shard, and the slice that codecs are calibrated on."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Final

import numpy as np
import torch
from numcodecs import Blosc
from torch import Tensor

from kava.data.tokens import Segment, of_segments
from kava.errors import UserError
from kava.kv import KeysValues, pad_ids, tokens_first
from kava.models.capture import (
    blocks_before_norm,
    capture,
    capture_with_blocks,
    capture_with_hidden,
    observed_attention,
)
from kava.models.placement import Placed
from kava.select.scores import BatchRow, ScoreCollector, Scores, candidates_of
from kava.store.codecs import Calibration, TokenInfo
from kava.store.contents import Contents
from kava.store.layout import Packing, Rows
from kava.store.reader import StoredExample, keep, take
from kava.store.shard import ShardContent
from kava.store.writer import Shard

# Ids per sequence when the first layer's KV is read off; any length within a model's context would do.
IDS_PER_SEQUENCE: Final = 128

# For the estimate of what a store takes besides its codec: per file and shard, per example, per array.
RECORD_BYTES, INDEX_BYTES, METADATA_BYTES = 220, 8, 4000
FILES_OF_COMPONENTS = 7

OnTokens = Callable[[int], object]
# Of the forward that computes now: many may be under way.
_collector: ContextVar[ScoreCollector] = ContextVar("collector")


class Extractor:
    """The teacher, and the examples of a token set.

    Parameters
    ----------
    placed
        The model, and how forwards run; its head is run on the tokens of top-k logits only.
    contents
        What the store holds.
    input_ids, segments
        Split → ids and segments of every example.
    on_tokens
        Called with the number of tokens after each forward over a shard, for progress.
    no_tokens
        Rows of the head that are no tokens, bool `[rows]`, which top-k logits leave out; None for no rows.
    """

    def __init__(
        self,
        placed: Placed,
        contents: Contents,
        input_ids: dict[str, list[np.ndarray]],
        segments: dict[str, list[np.ndarray]],
        on_tokens: OnTokens = lambda _: None,
        no_tokens: np.ndarray | None = None,
    ) -> None:
        self.placed, self.teacher, self.device = placed, placed.model, placed.device
        self.contents, self.on_tokens = contents, on_tokens
        self.no_tokens = None if no_tokens is None else torch.from_numpy(no_tokens).to(self.device)
        self.input_ids, self.segments = input_ids, segments

    @torch.inference_mode()
    def shards(
        self, shards: Sequence[Shard], packings: dict[str, Packing], axes: dict[str, dict[str, Rows]]
    ) -> list[ShardContent]:
        """Content of shards, in the teacher's dtype, on the CPU, from one pass over the teacher's weights."""
        members = [packings[split].members(shard) for split, shard in shards]
        planned = [self._batches(split, of_shard) for (split, _), of_shard in zip(shards, members, strict=True)]
        calls = [
            partial(self._run, split, batch)
            for (split, _), of_shard in zip(shards, planned, strict=True)
            for batch in of_shard
        ]
        with self._observed():
            results = self.placed.forwards(calls)
            return [
                self._gather(split, of_shard, batches_of, results, axes[split])
                for (split, _), of_shard, batches_of in zip(shards, members, planned, strict=True)
            ]

    def _gather(
        self,
        split: str,
        members: np.ndarray,
        planned: list[list[int]],
        results: Iterator[list[tuple[StoredExample, dict[str, Tensor]]]],
        axes: dict[str, Rows],
    ) -> ShardContent:
        """A shard from the next results, one for each of its batches."""
        kept: dict[int, StoredExample] = {}
        signals: dict[str, Tensor] = {}
        for batch in planned:
            tokens = sum(len(self.input_ids[split][example]) for example in batch)
            for example, (stored, of_example) in zip(batch, next(results), strict=True):
                kept[example] = stored
                for name, rows in of_example.items():
                    spec = self.contents.arrays[name]
                    axis = axes[spec.axis]
                    if name not in signals:
                        shape = (axis.used(members), *rows.shape[1:])
                        signals[name] = torch.full(shape, spec.fill_value, dtype=rows.dtype)
                    first = int(axis.start[example]) % axis.per_shard
                    signals[name][first : first + len(rows)] = rows
            self.on_tokens(tokens)
        return ShardContent(*_join([kept[int(example)] for example in members]), signals)

    @torch.inference_mode()
    def calibration(self, packing: Packing) -> Calibration:
        """Evenly spread training examples, as many as the codec wants tokens, and the first layer's KV of every id."""
        lengths = packing.tokens.length
        chosen = calibration_examples(lengths, self.contents.codec.calibration_tokens)
        ids = np.unique(np.concatenate([x for of_split in self.input_ids.values() for x in of_split]))
        planned = self._batches("train", chosen)
        tokens = [sum(int(lengths[example]) for example in batch) for batch in planned]
        with self._observed():
            found = self.placed.run([partial(self._run, "train", batch) for batch in planned], tokens)
            kept = [stored for batch in found for stored, _ in batch]
        kv, info = _join(kept)
        total = int(lengths.sum())
        other_bytes = overhead(self.contents, packing, info)
        return Calibration(kv, info, torch.from_numpy(ids).long(), self._first_layer(ids), total, other_bytes)

    @contextmanager
    def _observed(self) -> Iterator[None]:
        """While active, what `_run` asks of the model's code; once for all forwards, since they may run together."""
        with ExitStack() as stack:
            if self.contents.scores:
                stack.enter_context(observed_attention(self.teacher, lambda *seen: _collector.get()(*seen)))
            if self.contents.signals.token_hidden_states:
                stack.enter_context(blocks_before_norm(self.teacher))
            yield

    def _batches(self, split: str, examples: Iterable[int]) -> list[list[int]]:
        return batches(examples, [len(ids) for ids in self.input_ids[split]], self.contents.settings.batch_tokens)

    def _first_layer(self, ids: np.ndarray) -> KeysValues:
        """KV of the first layer for every id, `[U, 1, H, D]`, as if it depended on nothing else."""
        sequences = [ids[first : first + IDS_PER_SEQUENCE] for first in range(0, len(ids), IDS_PER_SEQUENCE)]
        per_batch = max(1, self.contents.settings.batch_tokens // IDS_PER_SEQUENCE)
        together = [sequences[first : first + per_batch] for first in range(0, len(sequences), per_batch)]
        calls = [partial(self._first_layer_of, batch) for batch in together]
        found = self.placed.run(calls, [sum(map(len, batch)) for batch in together])
        parts = [part for of_batch in found for part in of_batch]
        return KeysValues(*(torch.cat(of_tensor) for of_tensor in zip(*parts, strict=True)))

    def _first_layer_of(self, sequences: list[np.ndarray]) -> list[list[Tensor]]:
        padded, mask = (tensor.to(self.device) for tensor in pad_ids(sequences))
        captured, _ = capture(self.teacher, padded, mask, self.contents.settings.keys, self.placed.offload)
        return [
            [x[row, :1, :, : len(sequence)].permute(2, 0, 1, 3).cpu() for x in captured]
            for row, sequence in enumerate(sequences)
        ]

    def _run(self, split: str, batch: list[int]) -> list[tuple[StoredExample, dict[str, Tensor]]]:
        """One forward: what is kept of each example, and its signals by array name."""
        contents, ids = self.contents, [self.input_ids[split][example] for example in batch]
        segments = [self.segments[split][example] for example in batch]
        padded, mask = pad_ids(ids)
        collector = None
        if scored := contents.scores:
            collector = ScoreCollector(scored, [BatchRow.of(of_example, scored.candidates) for of_example in segments])
            _collector.set(collector)
        captured, hidden, of_tokens = self._forward(padded, mask)
        scores = collector.result() if collector else [None] * len(batch)
        on_cpu = captured.map(lambda tensor: tokens_first(tensor).cpu())
        found = []
        for row, example in enumerate(batch):
            tokens = len(ids[row])
            kv = KeysValues(*(tensor[row, :tokens] for tensor in on_cpu))
            facts = (ids[row], np.arange(tokens), segments[row])
            info = TokenInfo(*(torch.from_numpy(fact.astype(np.int64)) for fact in facts))
            stored, signals = self._keep(StoredExample(kv, info), scores[row], example)
            if of_tokens is not None:
                signals["signals/token_hidden"] = _finite(of_tokens[row, :tokens]).view(torch.int16)
            found.append((stored, signals | self._of_the_answer(hidden, row, segments[row])))
        return found

    def _forward(self, padded: Tensor, mask: Tensor) -> tuple[KeysValues, tuple[Tensor, ...], Tensor | None]:
        """KV, hidden states of all layers or the last ones, and what is stored of every token, `[B, T, layers, W]`."""
        device, signals, keys = self.device, self.contents.signals, self.contents.settings.keys
        inputs = self.teacher, padded.to(device), mask.to(device), keys, self.placed.offload
        if signals.token_hidden_states:
            captured, blocks, last = capture_with_blocks(*inputs)
            of_tokens = torch.stack([blocks[layer + 1].bfloat16() for layer in signals.token_hidden_states], 2)
            return captured, (*blocks[:-1], last), of_tokens.cpu()
        if signals.hidden_states:
            return *capture_with_hidden(*inputs), None
        captured, last = capture(*inputs)
        return captured, (last,), None

    def _keep(
        self, whole: StoredExample, scores: Scores | None, example: int
    ) -> tuple[StoredExample, dict[str, Tensor]]:
        """The selected tokens of an example, and the scores of those."""
        selector, scored = self.contents.selector, self.contents.scores
        segments = whole.info.segment.numpy()
        stored = whole
        if selector.kind != "full":
            positions = selector.select(selector.candidates(segments), scores, example, self.contents.geometry)
            stored = keep(whole, torch.from_numpy(positions).long())
        if scored is None or scores is None:
            return stored, {}
        signals = {}
        for name, term in scores._asdict().items():
            of_tokens = term.new_full((len(segments), *term.shape[1:]), float("nan"))
            of_tokens[torch.from_numpy(candidates_of(scored.candidates, segments)).long()] = term
            signals[f"signals/{name}"] = take(of_tokens, stored.info.position)
        return stored, signals

    def _of_the_answer(self, hidden: tuple[Tensor, ...], row: int, segments: np.ndarray) -> dict[str, Tensor]:
        """Hidden states before the answer, and the top log-probabilities of its tokens, or of all with a label."""
        signals: dict[str, Tensor] = {}
        if self.contents.signals.hidden_states:
            answer = np.flatnonzero(segments == Segment.ANSWER)[0]
            states = torch.stack([layer[row, answer - 1] for layer in hidden])
            signals["signals/hidden"] = states.bfloat16().cpu().view(torch.int16)[None]
        if top := self.contents.signals.topk_logits:
            predicted = np.flatnonzero(of_segments(segments, self.contents.signals.topk_segments))
            logits = self.teacher.get_output_embeddings()(
                hidden[-1][row, predicted - 1]
            )  # the token before predicts it
            logits = logits.float()
            if self.no_tokens is not None:
                logits = logits.masked_fill(self.no_tokens, -torch.inf)
            best = logits.log_softmax(-1).topk(top)
            signals["signals/topk_ids"] = best.indices.int().cpu()
            signals["signals/topk_logprobs"] = best.values.half().cpu()
        return signals


def batches(examples: Iterable[int], lengths: list[int], batch_tokens: int) -> list[list[int]]:
    """Examples in batches of like length, each of at most `batch_tokens` padded tokens.

    Padding changes the rounding of low-precision models, so the composition of batches depends on the shard alone
    and is part of the format: a resumed store then equals an uninterrupted one.
    """
    found: list[list[int]] = []
    for example in sorted((int(index) for index in examples), key=lambda index: (lengths[index], index)):
        # Sorted by length, so that this example is the longest of its batch.
        if found and (len(found[-1]) + 1) * lengths[example] <= batch_tokens:
            found[-1].append(example)
        else:
            found.append([example])
    return found


def calibration_examples(lengths: np.ndarray, wanted: int) -> np.ndarray:
    """Evenly spread examples of about `wanted` tokens together, one at least."""
    share = min(1.0, wanted / int(lengths.sum()))
    count = max(1, round(share * len(lengths)))
    return np.unique(np.linspace(0, len(lengths) - 1, count).round().astype(int))


def overhead(contents: Contents, packing: Packing, sample: TokenInfo) -> int:
    """Estimated bytes of a split's store besides what the codec writes."""
    of_tokens = [name for name in TokenInfo._fields if name != "position" or contents.selector.kind != "full"]
    sizes = [len(Blosc(cname="zstd", clevel=1).encode(getattr(sample, name).int().numpy())) for name in of_tokens]
    per_token = sum(sizes) / len(sample.id)
    moments = 2 * 2 * contents.geometry.channels * np.dtype(np.float64).itemsize
    files = len(contents.arrays) + FILES_OF_COMPONENTS
    records = packing.shards * (moments + files * RECORD_BYTES)
    return (
        int(per_token * packing.tokens.length.sum() + INDEX_BYTES * len(packing.shard))
        + records
        + files * METADATA_BYTES
    )


def _finite(hidden: Tensor) -> Tensor:
    if not torch.isfinite(hidden).all():
        raise UserError("the teacher's hidden states are not finite; check its weights, or set teacher.dtype")
    return hidden


def _join(kept: list[StoredExample]) -> tuple[KeysValues, TokenInfo]:
    kv = KeysValues(*(torch.cat(tensors) for tensors in zip(*(stored.kv for stored in kept), strict=True)))
    return kv, TokenInfo(*(torch.cat(tensors) for tensors in zip(*(stored.info for stored in kept), strict=True)))
