"""Read a sealed KV store: one example at a time, contiguous slices only."""

from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from pydantic import ValidationError
from torch import Tensor

from kava.config.kv import KvStore, RkvSelection, RkvWindowSelection, Selection
from kava.errors import UserError
from kava.kv import TENSORS, Geometry, KeysValues
from kava.select import Selector, make_selector
from kava.select.scores import Scores
from kava.store.array_spec import TOKENS_PER_GROUP, ArraySpec, Axis
from kava.store.codecs import TokenInfo
from kava.store.contents import Contents
from kava.store.files import StoreFiles
from kava.store.integrity import REPAIR, Integrity, read_manifest
from kava.store.layout import STATISTICS, shard_file, shard_name
from kava.text import first_line

# Encoded splits up to this size are read once and kept; a GSM8K store of the reference pair is not.
IN_MEMORY_BYTES = 2 << 30


class StoredExample(NamedTuple):
    """KV of an example's kept tokens, `[M, L, H, D]`, and which tokens those are."""

    kv: KeysValues
    info: TokenInfo


class StoreReader:
    """A finished store.

    Parameters
    ----------
    manifest
        Path of its `manifest.json`.
    device
        Where to decode, and where what is read lies.
    select
        A selection that is made on reading; only for a store that keeps every token.

    Attributes
    ----------
    geometry
        Shape of the teacher's KV.
    mean, std
        Channel statistics over the training tokens, `{"keys", "values"}` → float32 `[L, H, D]`, on the CPU.

    Raises
    ------
    UserError
        The store is damaged or is not the one that its folder names, or the selection cannot be made from it.
    """

    def __init__(self, manifest: Path, device: torch.device | str = "cpu", select: Selection | None = None) -> None:
        self.manifest = read_manifest(manifest)
        self.device = torch.device(device)
        self.geometry = Geometry(**self.manifest["geometry"])
        self.contents = Contents(_settings(self.manifest), self.geometry, self.manifest["hidden_width"])
        self.codec = self.contents.codec
        self.keys_form = self.contents.settings.keys
        files = StoreFiles(manifest.parent)
        self._integrity = Integrity(files, self.manifest)
        self._integrity.check_files()
        self._root = files.group()
        if self.codec.calibration_tokens:
            self._integrity.check_shard("parameters")
            self.codec.load_parameters(read_parameters(self._root), self.device)
        self._splits: dict[str, _Split] = {}
        statistics = self._root[STATISTICS]
        self.mean = {tensor: torch.from_numpy(statistics[f"{tensor}/mean"][:]) for tensor in TENSORS}
        self.std = {tensor: torch.from_numpy(statistics[f"{tensor}/std"][:]) for tensor in TENSORS}
        self.selector = self._selector_on_reading(select) if select else None

    def whole(self) -> "StoreReader":
        """This reader without its selection on reading; what either reads into memory is there for both."""
        other = copy(self)
        other.selector = None
        return other

    @property
    def scope(self) -> str:
        """`example` if the kept tokens are the same in all layers and heads, else `head`."""
        return (self.selector or self.contents.selector).scope

    @property
    def keeps_every_token(self) -> bool:
        """True if what is read of an example are its tokens 0 … T−1."""
        return (self.selector or self.contents.selector).kind == "full"

    def read(self, split: str, example: int) -> StoredExample:
        """Keys and values of one example, decoded.

        Raises
        ------
        UserError
            A shard that is missing or damaged.
        """
        stored = self._split(split)
        start, tokens = stored.rows("token", example)
        info = self._info(stored, start, tokens)
        rows = {}
        for name, spec in self.codec.arrays.items():
            first, last = start // spec.tokens_per_row, -(-(start + tokens) // spec.tokens_per_row)
            rows[name] = stored.read(name, first, last).to(self.device, non_blocking=True)
        kv = self.codec.decode(rows, start % TOKENS_PER_GROUP, info)
        found = StoredExample(kv, info)
        return keep(found, self._positions(info, split, example)) if self.selector else found

    def tokens(self, split: str, example: int) -> TokenInfo:
        """Facts of an example's stored tokens, before a selection on reading."""
        stored = self._split(split)
        return self._info(stored, *stored.rows("token", example))

    def kept(self, split: str, example: int) -> TokenInfo:
        """Facts of the tokens that `read` returns, without their KV."""
        info = self.tokens(split, example)
        return _keep_facts(info, self._positions(info, split, example)) if self.selector else info

    def scores(self, split: str, example: int) -> Scores:
        """Scores of the stored tokens, float32 `[M]` or `[M, L, H]`; NaN for those that were no candidates."""
        return Scores(*(self._signal(split, example, name) for name in ("importance", "redundancy")))

    def hidden_states(self, split: str, example: int) -> Tensor:
        """Hidden states at the last token before the answer, bfloat16 `[L + 1, width]`, embeddings first."""
        return self._signal(split, example, "hidden")[0].view(torch.bfloat16)

    def token_hidden_states(self, split: str, example: int, layers: list[int]) -> Tensor:
        """Hidden states of every token behind stored teacher layers, bfloat16 `[T, layers, width]`."""
        rows, stored = self._signal(split, example, "token_hidden"), self.contents.signals.token_hidden_states or []
        return rows[:, [stored.index(layer) for layer in layers]].view(torch.bfloat16)

    def topk_logits(self, split: str, example: int) -> tuple[Tensor, Tensor]:
        """Ids `[A, k]` and log-probabilities `[A, k]` for each token of `topk_segments`, largest first."""
        return self._signal(split, example, "topk_ids"), self._signal(split, example, "topk_logprobs")

    def _signal(self, split: str, example: int, name: str) -> Tensor:
        spec = self.contents.arrays.get(f"signals/{name}")
        if spec is None:
            raise UserError(f"the store has no {name}; set kv.signals and extract again (it becomes another store)")
        stored = self._split(split)
        start, length = stored.rows(spec.axis, example)
        return stored.read(f"signals/{name}", start, start + length).to(self.device)

    def _split(self, split: str) -> "_Split":
        if split not in self._splits:
            self._splits[split] = _Split(self._root[split], split, self.contents.arrays, self._integrity)
        return self._splits[split]

    def _info(self, stored: "_Split", start: int, tokens: int) -> TokenInfo:
        read = {}
        for name in TokenInfo._fields:
            if f"token/{name}" in self.contents.arrays:
                read[name] = stored.read(f"token/{name}", start, start + tokens).long()
        position = read.setdefault("position", torch.arange(tokens))
        if int(read["id"].min()) < 0 or int(position.min()) < 0:
            raise UserError(f"rows {start} to {start + tokens} of {stored.name} were never written; {REPAIR}")
        return TokenInfo(*(read[name].to(self.device, non_blocking=True) for name in TokenInfo._fields))

    def _selector_on_reading(self, settings: Selection) -> Selector[Any]:
        stored = self.contents.settings
        if stored.select.kind != "full":
            raise UserError(
                f"the store keeps what select {stored.select.kind} chose; a selection on reading needs a store with "
                "kv.select: full"
            )
        if isinstance(settings, RkvSelection | RkvWindowSelection) and stored.signals.importance != settings.scores:
            has = stored.signals.importance and stored.signals.importance.model_dump()
            raise UserError(
                f"select {settings.kind} on reading needs kv.signals.importance: {settings.scores.model_dump()}; the "
                f"store has {has}"
            )
        return make_selector(settings)

    def _positions(self, info: TokenInfo, split: str, example: int) -> Tensor:
        """What the selection on reading chooses."""
        assert self.selector is not None
        candidates = self.selector.candidates(info.segment.cpu().numpy())
        scores = None
        if self.selector.needs_scores:
            scores = Scores(*(term.cpu()[torch.from_numpy(candidates)] for term in self.scores(split, example)))
        positions = self.selector.select(candidates, scores, example, self.geometry)
        return torch.from_numpy(positions).long().to(self.device)


def _settings(manifest: dict[str, Any]) -> KvStore:
    """Of what a manifest's key holds, the settings of the store."""
    key = manifest["spec"]
    try:
        return KvStore.model_validate({name: key[name] for name in KvStore.model_fields if name in key})
    except ValidationError as error:
        raise UserError(f"the store is of another version of KAVA ({first_line(error)}); run extract again") from None


def keep(whole: StoredExample, positions: Tensor) -> StoredExample:
    """Tokens at positions `[M]`, or at other ones in each head `[M, L, H]`, of an example that has all its tokens."""
    kv = KeysValues(*(take(tensor, positions) for tensor in whole.kv))
    return StoredExample(kv, _keep_facts(whole.info, positions))


def _keep_facts(whole: TokenInfo, positions: Tensor) -> TokenInfo:
    return TokenInfo(whole.id[positions], positions, whole.segment[positions])


def take(rows: Tensor, positions: Tensor) -> Tensor:
    """Rows `[T, …]` at positions `[M]`, or rows `[T, L, H, …]` at positions `[M, L, H]`."""
    if positions.dim() == 1:
        return rows[positions]
    trailing = rows.shape[positions.dim() :]
    return rows.gather(0, positions.reshape(*positions.shape, *[1] * len(trailing)).expand(*positions.shape, *trailing))


def read_parameters(root: Any) -> dict[str, np.ndarray]:
    """Arrays of a calibrated codec from a store."""
    members = root["parameters"].members(max_depth=None) if "parameters" in root else ()
    return {name: item[...] for name, item in members if isinstance(item, zarr.Array)}


class _Split:
    def __init__(self, group: Any, name: str, arrays: dict[str, ArraySpec], integrity: Integrity) -> None:
        self.name, self._specs, self._integrity = name, arrays, integrity
        self._index = {axis: group[f"index/{axis}"][:] for axis in {spec.axis for spec in arrays.values()}}
        self._arrays: dict[str, Any] = {array: group[array] for array in arrays}
        small = sum(array.nbytes for array in self._arrays.values()) <= IN_MEMORY_BYTES
        # Ids and segments are small in every store, and every example is asked for them.
        kept = [array for array in arrays if small or array.startswith("token/")]
        self._arrays |= {array: self.read(array, 0, self._arrays[array].shape[0]) for array in kept}

    def rows(self, axis: Axis, example: int) -> tuple[int, int]:
        """First row of an example, and how many it has."""
        start, length = self._index[axis][example]
        return int(start), int(length)

    def read(self, name: str, first: int, last: int) -> Tensor:
        """Rows of an array, on the CPU."""
        array = self._arrays[name]
        if isinstance(array, Tensor):
            return array[first:last]
        height = array.shards[0]
        for shard in range(first // height, -(-last // height)):
            file = shard_file(self.name, name, shard, self._specs[name])
            self._integrity.check_shard(shard_name(self.name, shard), file)
        try:
            return torch.from_numpy(array[first:last])
        except (ValueError, RuntimeError, OSError) as error:
            shard_first = shard_name(self.name, first // height)
            raise UserError(f"shard {shard_first}: {array.path} cannot be read ({error}); {REPAIR}") from error
