"""A matrix of numbers as a table with coloured cells, one HTML fragment; its style stands in `page.css`."""

from collections.abc import Sequence
from html import escape

from kava.report.format import number

# Viridis (van der Walt and Smith, 2015), ten even steps: rises in lightness, so it survives colour blindness and grey.
SCALE = (
    *("#440154", "#482878", "#3e4989", "#31688e", "#26828e"),
    *("#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"),
)
# More columns than this leave no room for digits; the number then shows on hover.
WIDEST_WITH_NUMBERS = 16


def heat_map(
    values: list[list[float | None]],
    rows: list[str],
    columns: list[str],
    title: str,
    low: float,
    high: float,
    digits: int = 2,
) -> str:
    """An HTML fragment: a table whose cells are coloured by their number.

    Parameters
    ----------
    values
        `[rows][columns]`; None is a cell without a number, hatched and marked n/a.
    rows, columns
        Headings.
    title
        Caption of the table, plain text.
    low, high
        Numbers at the two ends of the colour scale; those beyond take the colour of the end.
    digits
        Decimals. Numbers stand in the cells of up to 16 columns; in wider maps they show on hover.

    Returns
    -------
    str
        All text is escaped. Looks the same on light and dark pages, and prints in colour.
    """
    assert low < high, f"a colour scale from {low} to {high} has no length"
    assert len(values) == len(rows), f"{len(values)} rows of values, {len(rows)} headings"
    assert all(len(row) == len(columns) for row in values), f"not every row has {len(columns)} values"
    wide = len(columns) > WIDEST_WITH_NUMBERS
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            _cell(value, (value - low) / (high - low) if value is not None else 0.0, digits, (name, column), wide)
            for column, value in zip(columns, row, strict=True)
        )
        + "</tr>"
        for name, row in zip(rows, values, strict=True)
    )
    hidden = " Numbers show on hover." if wide else ""
    key = (
        f'<small>{number(low, digits)}<span class="key" aria-hidden="true" '
        f'style="background:linear-gradient(to right,{",".join(SCALE)})"></span>{number(high, digits)}{hidden}</small>'
    )
    return (
        f'<div class="heat" tabindex="0" role="region" aria-label="{escape(title)}">\n'
        f'<table class="{"wide" if wide else "numbered"}"><caption>{escape(title)}{key}</caption>\n'
        f"<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
    )


def _cell(value: float | None, share: float, digits: int, place: tuple[str, str], wide: bool) -> str:
    said = "n/a" if value is None else number(value, digits)
    hover = f' title="{escape(", ".join(place))}: {said}"' if wide else ""
    if value is None:
        return f'<td class="none"{hover}>{said}</td>'
    red, green, blue = _colour(share)
    return f'<td style="background:#{red:02x}{green:02x}{blue:02x};color:{_ink(red, green, blue)}"{hover}>{said}</td>'


def _colour(share: float) -> tuple[int, int, int]:
    """The scale at `share` of its length, between two steps a straight line in sRGB."""
    place = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    index = min(int(place), len(SCALE) - 2)
    start, end = (bytes.fromhex(SCALE[i][1:]) for i in (index, index + 1))
    red, green, blue = (round(a + (place - index) * (b - a)) for a, b in zip(start, end, strict=True))
    return red, green, blue


def _ink(*colour: int) -> str:
    """Black or white, whichever contrasts more (WCAG 2, relative luminance)."""
    shares = [channel / 255 for channel in colour]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    luminance = sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return "#000" if luminance > 0.179 else "#fff"


def layer_by_head(values: Sequence[Sequence[Sequence[float | None]]], title: str) -> str:
    """Heat map of one metric between 0 and 1, `[2][L][H]`, keys first: a row per layer, K and V heads side by side."""
    keys, others = values
    heads = range(len(keys[0]))
    table = [[*k, *v] for k, v in zip(keys, others, strict=True)]
    columns = [f"{tensor}{head}" for tensor in "KV" for head in heads]
    return heat_map(table, [str(layer) for layer in range(len(table))], columns, title, 0.0, 1.0)
