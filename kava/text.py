"""Numbers, errors and tables for a terminal."""

from collections.abc import Sequence

from kava.errors import UserError


def size(count: float) -> str:
    """Bytes in the decimal unit that a disk is sold by."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Whole seconds, minutes and seconds, or hours and minutes."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = whole // 60
    return f"{minutes} min {whole % 60:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def first_line(error: BaseException) -> str:
    """What an exception says, without the rest of a long message; its name and arguments if it says nothing."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def table(rows: Sequence[Sequence[str]], left: int | None = None) -> str:
    """Columns as wide as their widest cell; the first `left` to the left (all, if None), the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        cells += [cell.rjust(width) for cell, width in zip(row[len(cells) :], widths[len(cells) :], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def from_outside(text: str) -> str:
    """A text of the command line or the environment as UTF-8, where the locale knows less.

    Python keeps bytes that the locale's encoding lacks as surrogates, which no file of ours can hold.

    Raises
    ------
    UserError
        It is not UTF-8 either.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeError:
        raise UserError(f"{text!a} is not UTF-8; type it on a terminal that is, or put it into a file") from None


def some(items: Sequence[object], most: int = 5) -> str:
    """The first of many, with a sign where there are more."""
    return ", ".join([*map(str, items[:most]), *(["…"] if len(items) > most else [])])
