"""Heat maps: what stands in a cell, what its colour says, and that it can be read in any scheme."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kava.report.page import heatmap
from kava.report.page.heatmap import SCALE, heat_map, layer_by_head


def cells(html: str) -> list[str]:
    return re.findall(r"<td (?:style|class).*?</td>", html)


def colours(html: str) -> list[tuple[str, str]]:
    return re.findall(r'style="background:(#\w{6});color:(#\w{3})"', html)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    shares = [channel / 255 for channel in bytes.fromhex(digits)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_number_stands_in_each_cell_and_the_ends_of_the_scale_have_its_end_colours() -> None:
    html = heat_map([[0.0, 0.5], [1.0, -3.0]], ["a", "b"], ["c", "d"], "Cosine", 0.0, 1.0)
    assert [re.sub("<.*?>", "", cell) for cell in cells(html)] == ["0.00", "0.50", "1.00", "−3.00"]
    shown = [background for background, _ in colours(html)]
    assert (shown[0], shown[2], shown[3]) == (SCALE[0], SCALE[-1], SCALE[0])
    assert "1.000" in heat_map([[1.0]], ["a"], ["b"], "t", 0.0, 1.0, digits=3)


def test_scale_rises_in_lightness_and_numbers_contrast_with_every_colour_of_it() -> None:
    steps = 101
    html = heat_map([[i / (steps - 1)] for i in range(steps)], ["r"] * steps, ["c"], "t", 0.0, 1.0)
    found = colours(html)
    lightness = [luminance(background) for background, _ in found]
    assert lightness == sorted(lightness)
    for background, ink in found:
        dark, light = sorted((luminance(background), luminance(ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG 2, AA


def test_unknown_cell_is_hatched_and_says_so() -> None:
    html = heat_map([[None, 0.5]], ["a"], ["b", "c"], "t", 0.0, 1.0)
    assert cells(html)[0] == '<td class="none">n/a</td>'
    style = Path(heatmap.__file__).with_name("page.css").read_text()
    assert ".heat td.none { color: #444; background: repeating-linear-gradient" in style
    assert "<style" not in html


@pytest.mark.parametrize(("width", "hovered"), [(16, 0), (17, 17)])
def test_numbers_of_maps_wider_than_sixteen_columns_show_on_hover(width: int, hovered: int) -> None:
    html = heat_map([[0.25] * width], ["student 3"], [f"teacher {i}" for i in range(width)], "CKA", 0.0, 1.0)
    assert html.count('title="student 3, teacher ') == hovered
    assert ("Numbers show on hover" in html) == bool(hovered)


def test_is_a_table_with_caption_and_scoped_headings_and_its_text_is_escaped() -> None:
    html = heat_map([[0.5]], ["<b>"], ['"x" & y'], "<script>", 0.0, 1.0)
    assert "<script>" not in html
    assert "<b>" not in html
    assert "<caption>&lt;script&gt;" in html
    assert html.count('scope="row"') == html.count('scope="col"') == 1


def test_keys_and_values_of_each_head_stand_side_by_side_by_layer() -> None:
    html = layer_by_head([[[0.1, 0.2], [0.3, None]], [[0.5, 0.6], [0.7, 0.8]]], "r²")
    assert re.findall(r'scope="col">(\w+)<', html) == ["K0", "K1", "V0", "V1"]
    said = [re.sub("<.*?>", "", cell) for cell in cells(html)]
    assert said == ["0.10", "0.20", "0.50", "0.60", "0.30", "n/a", "0.70", "0.80"]
