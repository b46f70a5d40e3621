"""Signals of the teacher, by the names that losses read.

To add a signal: one file here with a class, and the class in `SIGNALS`; what a store has to hold for it is up to
`kava/store` and `kava/teacher`.
"""

from kava.config.arms import Arm
from kava.losses import signals_read
from kava.training.signals.base import Signal, StoredSplit, TeacherSignals
from kava.training.signals.hidden_states import HiddenStates
from kava.training.signals.kv import Kv
from kava.training.signals.token_hidden_states import TokenHiddenStates
from kava.training.signals.topk_logits import TopkLogits

SIGNALS: tuple[type[Signal], ...] = (Kv, HiddenStates, TokenHiddenStates, TopkLogits)


def signals_of(arm: Arm | None) -> list[type[Signal]]:
    """What the losses of an arm read; KV alone for None, as the metrics do."""
    names = {"kv"} if arm is None else signals_read(arm)
    return [signal for signal in SIGNALS if signal.name in names]


def from_store(stored: StoredSplit) -> TeacherSignals:
    """The signals that an arm's losses read, from one store.

    Raises
    ------
    UserError
        The store is of other data, or cannot serve a loss.
    """
    signals = signals_of(stored.arm)
    stored.check(token_by_token=Kv in signals)
    return TeacherSignals(signal(stored) for signal in signals)
