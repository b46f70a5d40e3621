"""Prefetch: order, errors and memory are those of a plain loop; only the waiting is not."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_fixtures import batches, make_model, order_of_run, run, store_of

from kava.config.arms import FlatAligner
from kava.errors import UserError
from kava.training.batches import Batches
from kava.training.finish import data_wait_share
from kava.training.prefetch import AHEAD, Prefetch


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_results_are_those_of_a_plain_loop_in_order() -> None:
    with Prefetch(str, range(20)) as results:
        assert list(results) == [str(item) for item in range(20)]
        assert list(results) == []
    assert list(Prefetch(str, [])) == []


def test_a_result_is_computed_while_the_caller_works_on_the_one_before() -> None:
    begun = [threading.Event() for _ in range(2)]
    with Prefetch(lambda item: begun[item].set(), range(2)) as results:
        next(results)
        assert begun[1].wait(timeout=10)


def test_the_thread_is_never_more_than_a_few_results_ahead() -> None:
    drawn: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            drawn.append(item)
            yield item

    with Prefetch(str, items()) as results:
        for taken in range(1, 15):
            next(results)
            assert len(drawn) == taken + AHEAD


def test_an_error_is_raised_itself_where_its_result_was_due_and_ends_the_thread() -> None:
    error = UserError("the store is damaged")

    def load(item: int) -> int:
        if item == 3:
            raise error
        return item

    with Prefetch(load, range(9)) as results:
        assert [next(results) for _ in range(3)] == [0, 1, 2]
        with pytest.raises(UserError) as raised:
            next(results)
    assert raised.value is error
    assert not threads()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_caller_that_fails_leaves_no_thread_and_does_not_wait_for_what_it_never_asked_for(error: type) -> None:
    loaded = []
    release = threading.Event()

    def load(item: int) -> int:
        loaded.append(item)
        return item if item == 0 or release.wait(timeout=10) else -1

    def work() -> None:
        with Prefetch(load, range(9)) as results:
            next(results)
            threading.Timer(0.05, release.set).start()
            raise error

    with pytest.raises(error):
        work()
    assert not threads()
    assert loaded in ([0], [0, 1])


def test_waiting_is_measured() -> None:
    with Prefetch(time.sleep, [0.05] * 3) as results:
        list(results)
        assert results.waited > 0.1


def batches_with(before_read: Callable[[int], Any]) -> Batches:
    data = batches()
    read = store_of(data).read

    def wrapped(split: str, example: int) -> Any:
        before_read(example)
        return read(split, example)

    store_of(data).read = wrapped  # type: ignore[method-assign]
    return data


def test_training_ends_with_the_weights_of_a_run_that_reads_nothing_ahead(tmp_path: Path, monkeypatch) -> None:
    class Plain:
        waited = 0.0

        def __init__(self, load: Callable[[Any], Any], items: Any) -> None:
            self.items, self.results = items, map(load, items)

        def __next__(self) -> Any:
            return next(self.results)

        def __iter__(self) -> Any:
            return self

        def close(self) -> None:
            pass

    ahead, plain = make_model(FlatAligner()), make_model(FlatAligner())
    run(tmp_path / "ahead", ahead)
    monkeypatch.setattr("kava.training.micro_batches.Prefetch", Plain)
    run(tmp_path / "plain", plain)
    for (name, a), b in zip(ahead.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("error", [UserError("this example cannot be read"), KeyboardInterrupt()])
def test_what_stops_the_reader_stops_training_at_the_step_that_needed_it(error: Any, tmp_path: Path) -> None:
    broken = order_of_run()[20]  # of step 3, with 8 examples a step

    def damaged(example: int) -> None:
        if example == broken:
            raise error

    with pytest.raises(type(error)) as raised:
        run(tmp_path, make_model(), data=batches_with(damaged))
    assert raised.value is error
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [2]
    assert not threads()


def test_a_slice_given_up_leaves_no_thread() -> None:
    parts = batches().slice(range(40), 4)
    next(parts)
    assert threads()
    del parts
    assert not threads()


def test_the_share_of_time_waited_for_data_is_logged(tmp_path: Path) -> None:
    run(tmp_path, make_model(), data=batches_with(lambda _: time.sleep(0.01)))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < record["data_wait"] < 1 for record in records)
    assert 0 < data_wait_share(records) < 1
    two = [{"seconds": 10.0, "data_wait": 0.5}, {"seconds": 40.0, "data_wait": 0.1}]
    assert data_wait_share(two) == pytest.approx((5 + 3) / 40)
