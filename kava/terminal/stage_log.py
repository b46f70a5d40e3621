"""What the log of a stage says so far: how far it is, its warnings, its result, why it failed."""

import re
from pathlib import Path

# Of the end of a log: enough for a traceback, and for the updates of a progress bar.
TAIL_BYTES = 16_384
TRACEBACK_LINES = 15
# Share of a stage from which on its progress bar knows how long the rest takes.
KNOWN_PERCENT = 5
BAR = re.compile(r"(?:.*:)?\s*(?P<percent>\d+)%\|.*\|\s*(?P<done>\S+)/(?P<total>\S+) \[[^<]*<(?P<left>[^,\]]*)")
STATUS = re.compile(r"step \d+/\d+|waiting for |calibrating |\S+: writing a store|alternatives: |rate-distortion")
RESULT = re.compile(r"strict match |sealed: |written: ")
WARNING = "warning: "
ERROR = re.compile(r"kava [\w ]+(\(process \d+\))?: error: .")


def progress(log: Path) -> str | None:
    """The newest line that says how far the stage is, with the tokens, steps or questions done; None if none does."""
    for line in reversed(_lines(log, TAIL_BYTES)):
        if bar := BAR.match(line):
            if bar["done"] == bar["total"]:
                return None  # that part is over, and the next one has said nothing yet
            # Answers come in batches: after the first of one, the rate says nothing.
            known = "?" not in bar["left"] and int(bar["percent"]) >= KNOWN_PERCENT
            left = f", {bar['left'].strip()} left" if known else ""
            return f"{bar['done']} of {bar['total']}{left}"
        if STATUS.match(line):
            return line
    return None


def result(log: Path) -> str | None:
    """What a finished stage says that it made, where that is a figure to see at once."""
    return next((line for line in reversed(_lines(log, TAIL_BYTES)) if RESULT.match(line)), None)


def warnings(log: Path) -> list[str]:
    """Every warning of a log, once."""
    return list(dict.fromkeys(line for line in _lines(log) if line.startswith(WARNING)))


def failure(log: Path) -> list[str]:
    """Why a stage failed: its one sentence, or the end of the log where it has none."""
    lines = _lines(log, TAIL_BYTES) or ["its log is empty: it was killed, or could not start"]
    return sentence(log) or lines[-TRACEBACK_LINES:]


def sentence(log: Path) -> list[str]:
    """What a stage says for a person to read as it ends without success; empty if it could not."""
    lines = _lines(log, TAIL_BYTES)
    sentences = [number for number, line in enumerate(lines) if ERROR.match(line)]
    if not sentences:
        return []
    # Of several processes each says its own; a sentence may go on in further lines.
    earlier = dict.fromkeys(lines[number] for number in sentences[:-1])
    return [*earlier, *lines[sentences[-1] :][:TRACEBACK_LINES]]


def _lines(log: Path, last_bytes: int | None = None) -> list[str]:
    """Lines that are not empty, updates of a progress bar among them; none of a log that is not there yet."""
    try:
        with log.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, log.stat().st_size - last_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:  # not there, or on a node's disk that is not ours to read
        return []
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
