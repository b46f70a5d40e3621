"""A heat map as an HTML fragment."""

from html import escape


def heat_map(
    values: list[list[float | None]], rows: list[str], columns: list[str], title: str, low: float, high: float,
    digits: int = 2,
) -> str:  # fmt: skip
    """A table whose cells are shaded from `low` to `high`."""
    body = []
    for name, row in zip(rows, values, strict=True):
        cells = []
        for value in row:
            share = 0.0 if value is None else min(1.0, max(0.0, (value - low) / (high - low)))
            colour = f"background: rgb(0 114 178 / {share:.2f})"
            cells.append(f'<td class="n" style="{colour}">{"–" if value is None else f"{value:.{digits}f}"}</td>')
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(cells)}</tr>')
    head = "".join(f'<th scope="col" class="n">{escape(column)}</th>' for column in columns)
    return (
        f'<figure class="chart"><h3>{escape(title)}</h3><div class="scroll"><table>'
        f"<thead><tr><th></th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div></figure>"
    )
