"""A model that is larger than memory: its weights come from the disk one layer at a time, while many forwards wait.

Every forward is a greenlet. Before a module whose weights are not there it steps aside; when all have done so, the
weights of the module that comes first are put in place, and the forwards that want it go on. So each layer is read
once for all forwards together, whatever a family's own `forward` does between its layers, and one batch computes at a
time: with the kernels, the order and the bits of a model that is in memory as a whole.
"""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from greenlet import getcurrent, greenlet
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kava.errors import UserError
from kava.models.cut import layers_of
from kava.models.on_disk import shards_of

T = TypeVar("T")
Weights = dict[str, Tensor]
Convert = Callable[[str, Tensor], Tensor]

# Of a forward that has not come to any module yet.
BEGINNING: Final = -1


class Files:
    """The tensors of a directory of safetensors, by name.

    Parameters
    ----------
    folder
        Holds `model.safetensors`, or shards and their index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = {shard: safe_open(folder / shard, framework="pt") for shard in shards_of(folder)}
        self._where = {name: shard for shard, file in self._open.items() for name in file.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str) -> Tensor:
        """A tensor as it is stored, mapped from its file; `UserError` names one that cannot be read."""
        shard = self._where[name]
        try:
            return self._open[shard].get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{name} of {self.folder / shard} cannot be read ({error}); copy the file again") from None


class Station:
    """A module whose weights are put in place together, and taken away together.

    Parameters
    ----------
    name, module
        Of the model.
    stored
        Name in the module → name in the files, of parameters and of buffers that are saved.
    """

    def __init__(self, name: str, module: nn.Module, stored: dict[str, str]) -> None:
        self.name, self.module, self.stored = name, module, stored
        self._empty = {part: _holdings(part) for part in module.modules()}

    def fill(self, weights: Weights) -> None:
        """Put weights in place."""
        for name, tensor in weights.items():
            path, _, leaf = name.rpartition(".")
            part = self.module.get_submodule(path)
            holds: dict[str, Any] = part._parameters if leaf in part._parameters else part._buffers
            holds[leaf] = tensor

    def clear(self) -> None:
        """Let the weights go."""
        for part, holdings in self._empty.items():
            vars(part).update({name: copy.copy(value) for name, value in holdings.items()})


def _holdings(module: nn.Module) -> dict[str, Any]:
    """Attributes that hold a module's weights, or what bitsandbytes keeps of them."""
    names = ("_parameters", "_buffers", "quant_state", "state")
    return {name: copy.copy(vars(module)[name]) for name in names if name in vars(module)}


class StreamedModel:
    """Forwards of a model whose weights are read as they are needed.

    Parameters
    ----------
    model
        Its parameters are on the meta device, and those of its embeddings, layers and head will come and go.
    folder
        Of its weights.
    device
        Where it computes.
    convert
        Name and tensor as stored → what the module holds, on its device.
    head
        Whether forwards will want the head.

    Attributes
    ----------
    waited
        Seconds in which nothing was computed since weights were not there yet.
    read_bytes
        Bytes of weights that were put in place.

    Raises
    ------
    UserError
        The files have no tensor of the name of a weight.
    """

    def __init__(self, model: Any, folder: Path, device: torch.device, convert: Convert, head: bool) -> None:
        self.model, self.device = model, device
        self.waited, self.read_bytes = 0.0, 0
        self._files, self._convert = Files(folder), convert
        _, layers = layers_of(model)
        heavy = [model.get_input_embeddings(), *layers, model.get_output_embeddings()]
        names = {module: name for name, module in model.named_modules()}
        within = {part for module in heavy for part in module.modules()}
        for module, name in names.items():
            _move_tables(module, device)
            if module not in within:  # norms and tables of positions are small, and stay
                own = Station(name, module, self._stored(name, _own_weights(module)))
                own.fill(self._load(own))
        wanted = heavy if head else heavy[:-1]
        self._stations = [Station(names[each], each, self._stored(names[each], each.state_dict())) for each in wanted]
        self._at: Station | None = None
        self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="weights")
        self._coming: tuple[Station, Future[Weights]] | None = None
        for place, station in enumerate(self._stations):
            station.module.register_forward_pre_hook(self._step_aside(place))

    def forwards(self, calls: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Results of functions that run the model, in their order; all have run when the first one comes."""
        waiting = {greenlet(call): BEGINNING for call in calls}
        order, results = list(waiting), {}
        try:
            while waiting:
                place = min(waiting.values())
                if place != BEGINNING:
                    self._open(place)
                for forward in [each for each, wanted in waiting.items() if wanted == place]:
                    given = forward.switch()
                    if forward.dead:
                        results[forward] = given
                        del waiting[forward]
                    else:
                        waiting[forward] = given
        finally:
            self._close()
        yield from (results[forward] for forward in order)

    def _step_aside(self, place: int) -> Callable[..., None]:
        station = self._stations[place]

        def until_filled(*_: Any) -> None:
            while self._at is not station:
                getcurrent().parent.switch(place)

        return until_filled

    def _open(self, place: int) -> None:
        station = self._stations[place]
        self._close()
        started = time.monotonic()
        if self._coming is None or self._coming[0] is not station:
            self._coming = station, self._reader.submit(self._load, station)
        weights = self._coming[1].result()
        self.waited += time.monotonic() - started
        self.read_bytes += sum(tensor.nbytes for tensor in weights.values())
        station.fill(weights)
        self._at = station
        # The next one is read while this one computes; the first of the next wave is not, which may never come.
        self._coming = None
        if place + 1 < len(self._stations):
            following = self._stations[place + 1]
            self._coming = following, self._reader.submit(self._load, following)

    def _close(self) -> None:
        if self._at:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # a copy must not come upon weights that are still read
            self._at.clear()
            self._at = None

    @torch.inference_mode()
    def _load(self, station: Station) -> Weights:
        prefix = f"{station.name}." if station.name else ""
        return {name: self._convert(prefix + name, self._files.read(stored)) for name, stored in station.stored.items()}

    def _stored(self, module: str, weights: Iterable[str]) -> dict[str, str]:
        prefix = f"{module}." if module else ""
        return {name: self._file_name(prefix + name) for name in weights}

    def _file_name(self, name: str) -> str:
        """Under which name the files hold a weight: its own, or that of its twin; with the body's prefix, or not."""
        twins = self.model.all_tied_weights_keys
        twins = twins | {source: target for target, source in twins.items()}
        prefix = f"{self.model.base_model_prefix}."
        for own in (name, twins.get(name, name)):
            for form in (own, own.removeprefix(prefix), prefix + own):
                if form in self._files:
                    return form
        raise UserError(
            f"{self._files.folder} holds no {name}, and transformers makes it of others as it loads the whole model; "
            "set teacher.placement: resident"
        )


def _own_weights(module: nn.Module) -> list[str]:
    """Names of what a module itself has in its files."""
    buffers = module._buffers.keys() - module._non_persistent_buffers_set
    return [name for name in [*module._parameters, *buffers] if getattr(module, name) is not None]


def _move_tables(module: nn.Module, device: torch.device) -> None:
    """Move buffers that no file holds, such as the frequencies of RoPE."""
    for name in module._non_persistent_buffers_set:
        table = module._buffers[name]
        module._buffers[name] = None if table is None else table.to(device)
