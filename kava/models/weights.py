"""Whether the files of a checkpoint hold the weights of its model: by their headers, and by the report of a load.

`transformers` makes up what it does not find, and only logs that it did. It converts names while it loads (prefixes,
older names, merged experts), so that its own code is run over the headers, with tensors that have shapes and no data.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from transformers.utils import logging as transformers_logging

from kava.models.on_disk import INDEX, shards_of
from kava.models.quantised import quantised_names

FLOATS = ("F64", "F32", "F16", "BF16")
# What files of older versions hold beside the weights, all of it computed anew: rotary tables, causal masks.
DERIVED = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|rotary_pos_emb\.inv_freq|masked_bias|position_ids)$"
)
CAUSAL_MASK = re.compile(r"(^|\.)(attn|attention)\.bias$")
LAYER = re.compile(r"\.(layers|h|blocks)\.\d+\.")
OF_ADAPTER = re.compile(r"\.(lora_[AB]|base_layer|modules_to_save)\b|^base_model\.")
# `transformers` raises, and names nothing, where it merges or splits tensors.
CONVERSION = (
    "its files lack some of the tensors that are merged into those of the model (such as an expert's), or hold them in "
    "another shape; copy or download the files again"
)
SHOWN = 3


class Stored(NamedTuple):
    """A tensor as the header of its file describes it."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Holes:
    """What a checkpoint lacks of its model, and what it has beside it; names as `transformers` reports them."""

    missing: tuple[str, ...]  # weights that would be made up
    unexpected: tuple[str, ...]  # tensors that nothing of the model reads
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]  # name, shape in the file, by `config.json`
    beyond: bool = True  # whether what is unexpected lies in layers that the model does not have

    def fault(self) -> str | None:
        """What is wrong, and what to do, as `what; fix`; None if nothing is."""
        said = []
        if self.missing:
            said.append(f"lack {_count(self.missing)} of the model, which would be made up ({_some(self.missing)})")
        if self.mismatched:
            shapes = [
                f"{name} is {list(stored)} and not {list(by_config)}" for name, stored, by_config in self.mismatched
            ]
            said.append(f"hold {_count(shapes)} of another shape than config.json says ({_some(shapes, 1)})")
        if self.unexpected:
            said.append(f"hold {_count(self.unexpected)} that no part of the model reads ({_some(self.unexpected)})")
        return f"its files {', and '.join(said)}; {self._fix()}" if said else None

    def _fix(self) -> str:
        if kind := quantised_names(self.unexpected):
            return f"the names are those of {kind}: take the checkpoint that was not quantised"
        if any(OF_ADAPTER.search(name) for name in self.unexpected):
            return "the names are those of an adapter: merge it into its base model and save that"
        if set(self.missing) == {"lm_head.weight"} and not self.unexpected:
            return (
                "the model was saved without its head: save the causal language model, or, if its head is its "
                "embedding, set tie_word_embeddings: true in its config.json"
            )
        if self.unexpected and not self.missing and all(LAYER.search(name) for name in self.unexpected):
            if not self.beyond:
                return (
                    "its config.json describes layers without them (such as the biases that it switches off): copy "
                    "the config.json that belongs to them"
                )
            return "its files have more layers than its config.json: copy the config.json that belongs to them"
        if prefix := _foreign_prefix(self.missing, self.unexpected):
            return f"the names of its files begin with {prefix!r}: save the model without that wrapper"
        return "its config.json and its files are not of one model: copy both again, or choose another checkpoint"


def read_headers(folder: Path) -> dict[str, Stored]:
    """Names, shapes and dtypes of all tensors of a directory that `weights_fault` calls whole."""
    return dict(_each_tensor(folder))


def _each_tensor(folder: Path) -> Iterator[tuple[str, Stored]]:
    for shard in shards_of(folder):
        with safe_open(folder / shard, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                yield name, Stored(tuple(tensor.get_shape()), tensor.get_dtype())


def headers_fault(folder: Path, model: Any) -> str | None:
    """Why the files of a directory are not the weights of a model; None if they are. Reads headers only.

    `weights_fault` has nothing to say of the directory; the model is that of its `config.json`, on the meta device.
    """
    stored = read_headers(folder)
    if fault := repeats_fault(folder, model, stored):
        return fault
    if absent := _named_by_index_only(folder, stored):
        return f"{INDEX} names {_count(absent)} that no shard holds: {_some(absent)}; copy or download the files again"
    state = {name: torch.empty(of.shape, dtype=model.dtype, device="meta") for name, of in stored.items()}
    try:
        with without_report(), _without_bar(), torch.random.fork_rng(devices=[]):
            _, report = type(model).from_pretrained(
                None, config=model.config, state_dict=state, dtype=model.dtype, device_map={"": "meta"},
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
    except RuntimeError:
        return CONVERSION
    return loaded_fault(folder, model, report)


def loaded_fault(folder: Path, model: Any, report: Mapping[str, Any]) -> str | None:
    """Why a model is not the one of its files, by the report of its load; None if it is."""
    stored = read_headers(folder)
    repeats = repeats_fault(folder, model, stored)
    return repeats or holes(report, model, stored).fault() or codes_fault(model, stored)


def repeats_fault(folder: Path, model: Any, stored: Mapping[str, Stored]) -> str | None:
    """Why it is not known which of two tensors a weight is; None if each is there once.

    `transformers` takes one of them, and says nothing: of two shards that hold one name, and of names with and without
    the prefix of the body.
    """
    if twice := [name for name, files in Counter(name for name, _ in _each_tensor(folder)).items() if files > 1]:
        return f"its shards hold {_count(twice)} more than once ({_some(twice)}); copy or download the files again"
    prefix = f"{model.base_model_prefix}."
    if both := [name for name in stored if f"{prefix}{name}" in stored]:
        return (
            f"its files hold {_count(both)} twice, with and without the prefix {prefix!r} ({_some(both)}), of which "
            "one alone would count; save the model again with only the right ones"
        )
    return None


def holes(report: Mapping[str, Any], model: Any, stored: Mapping[str, Stored]) -> Holes:
    """The report of `from_pretrained(output_loading_info=True)` without what is known to be harmless.

    `transformers` has taken away tied weights, and what a family says that it ignores.
    """
    derived = {name for name, _ in model.named_non_persistent_buffers()}

    def harmless(name: str) -> bool:
        if DERIVED.search(name) or name in derived:
            return True
        tensor = next((stored[form] for form in _forms(name, model) if form in stored), None)
        # A mask [1, 1, T, T]; a bias that is a weight has one dimension.
        return bool(CAUSAL_MASK.search(name)) and tensor is not None and len(tensor.shape) == 4

    layers = {match[0] for name in model.state_dict() if (match := LAYER.search(name))}
    unexpected = [name for name in report["unexpected_keys"] if not harmless(name)]
    return Holes(
        tuple(sorted(report["missing_keys"], key=_natural)),
        tuple(sorted(unexpected, key=_natural)),
        tuple(sorted(((n, tuple(a), tuple(b)) for n, a, b in report["mismatched_keys"]), key=lambda m: _natural(m[0]))),
        not all((match := LAYER.search(name)) and match[0] in layers for name in unexpected),
    )


@contextmanager
def without_report() -> Iterator[None]:
    """Keep back the table that `transformers` logs of a load: what is wrong is raised."""
    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(_is_no_report)
    try:
        yield
    finally:
        logger.removeFilter(_is_no_report)


@contextmanager
def _without_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _is_no_report(record: logging.LogRecord) -> bool:
    return "LOAD REPORT" not in record.getMessage()


def codes_fault(model: Any, stored: Mapping[str, Stored]) -> str | None:
    """Why the dtypes of a checkpoint are not those of weights; None if they are.

    Integers and float8 are codes: taken for numbers, without their scales, they are other weights.
    """
    floating = {name for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
    codes = [
        name for name, of in stored.items() if of.dtype not in FLOATS and floating.intersection(_forms(name, model))
    ]
    if not codes:
        return None
    return (
        f"its files hold weights as {stored[codes[0]].dtype} ({_some(codes)}), and only {', '.join(FLOATS)} are read; "
        "take the checkpoint that was not quantised"
    )


def _named_by_index_only(folder: Path, stored: Mapping[str, Stored]) -> list[str]:
    if shards_of(folder) == ["model.safetensors"]:
        return []
    return sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]) - stored.keys())


def _forms(name: str, model: Any) -> tuple[str, str, str]:
    """A name as it is, and with and without the prefix of the body, which files may or may not have."""
    prefix = f"{model.base_model_prefix}."
    return name, f"{prefix}{name}", name.removeprefix(prefix)


def _foreign_prefix(missing: Iterable[str], unexpected: Iterable[str]) -> str | None:
    wanted = sorted(missing, key=len)
    for name in unexpected:
        for suffix in wanted:
            if name.endswith(f".{suffix}"):
                return name.removesuffix(suffix)
    return None


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _count(tensors: Sequence[str]) -> str:
    return "1 tensor" if len(tensors) == 1 else f"{len(tensors)} tensors"


def _some(names: Sequence[str], shown: int = SHOWN) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
