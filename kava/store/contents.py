"""What a store holds, as its settings say: codec, selection, signals, and the arrays that follow from them."""

import numpy as np

from kava.config.kv import Importance, KvStore, RkvSelection, RkvWindowSelection
from kava.data.tokens import of_segments
from kava.errors import UserError
from kava.kv import Geometry
from kava.select import make_selector
from kava.store.array_spec import ArraySpec
from kava.store.codecs import make_codec
from kava.store.layout import AXIS_CHUNKS, Packing, Rows

NAN = float("nan")


class Contents:
    """Codec, selector and signals of a store.

    Parameters
    ----------
    settings
        Of the store, or its whole key.
    geometry
        Of the teacher's KV.
    hidden_width
        Width of the teacher's hidden states.

    Raises
    ------
    UserError
        A signal of a layer that the teacher has not.
    """

    def __init__(self, settings: KvStore, geometry: Geometry, hidden_width: int) -> None:
        self.settings, self.geometry, self.hidden_width = settings, geometry, hidden_width
        self.codec = make_codec(settings.codec, geometry)
        self.selector = make_selector(settings.select)
        self.signals = settings.signals
        whole_rows = self.selector.scope == "example" or not self.codec.mixes_heads
        assert whole_rows, f"codec {self.codec.kind} cannot code rows that mix tokens"
        if (of_layers := self.signals.token_hidden_states) and of_layers[-1] >= geometry.layers:
            raise UserError(
                f"kv.signals.token_hidden_states names the teacher's layer {of_layers[-1]}, and it has "
                f"{geometry.layers}, from 0 to {geometry.layers - 1}"
            )

    @property
    def arrays(self) -> dict[str, ArraySpec]:
        """Arrays of a split."""
        layers, heads = self.geometry.layers, self.geometry.kv_heads
        per_head = ((layers, heads), ("layer", "kv_head"))
        row, names = per_head if self.selector.scope == "head" else ((), ())
        arrays = dict(self.codec.arrays)
        arrays["token/id"] = ArraySpec("int32", row, names, -1)
        arrays["token/segment"] = ArraySpec("int8", row, names, -1)
        if self.selector.kind != "full":
            arrays["token/position"] = ArraySpec("int32", row, names, -1)
        if self.scores:
            row, names = per_head if self.scores.scope == "head" else ((), ())
            arrays["signals/importance"] = ArraySpec("float32", row, names, NAN)
            arrays["signals/redundancy"] = ArraySpec("float32", row, names, NAN)
        if self.signals.hidden_states:
            # bfloat16 bits, as in the codec of that name: fp16 would overflow on massive activations.
            shape = (layers + 1, self.hidden_width)
            arrays["signals/hidden"] = ArraySpec("int16", shape, ("layer", "width"), 0x7FC0, axis="example")
        if of_layers := self.signals.token_hidden_states:
            shape = (len(of_layers), self.hidden_width)
            arrays["signals/token_hidden"] = ArraySpec("int16", shape, ("layer", "width"), 0x7FC0)
        if top := self.signals.topk_logits:
            arrays["signals/topk_ids"] = ArraySpec("int32", (top,), ("rank",), -1, axis="answer")
            arrays["signals/topk_logprobs"] = ArraySpec("float16", (top,), ("rank",), NAN, axis="answer")
        return arrays

    @property
    def scores(self) -> Importance | None:
        """Which scores of tokens are stored: those that the store's own selection goes by, or those of the signal."""
        select = self.settings.select
        return select.scores if isinstance(select, RkvSelection | RkvWindowSelection) else self.signals.importance

    def pack(self, segments: list[np.ndarray], split: str) -> tuple[Packing, dict[str, Rows]]:
        """Packing of a split, and the rows of every axis in use, from the segment of every token of every example."""
        lengths = [self.selector.rows(len(self.selector.candidates(of_example))) for of_example in segments]
        if 0 in lengths:
            raise UserError(
                f"{split} example {lengths.index(0)} has no token that kv.select {self.selector.kind} may keep; set "
                "kv.select.candidates: all"
            )
        packing = Packing.pack(lengths, self.settings.shard_tokens)
        axes = {"token": packing.tokens}
        if self.signals.topk_logits:
            predicted = [int(of_segments(x, self.signals.topk_segments).sum()) for x in segments]
            axes["answer"] = packing.axis(predicted, AXIS_CHUNKS["answer"])
        if self.signals.hidden_states:
            axes["example"] = packing.axis([1] * len(segments), AXIS_CHUNKS["example"])
        return packing, axes
