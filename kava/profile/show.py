"""A profile for a terminal: tables with a line per layer, and what they mean in plain sentences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill
from typing import Any

from kava.kv import TENSORS
from kava.report.format import number
from kava.text import table

INFLATED = 0.3  # a floor from which a raw cosine misleads
DOMINANT = 0.25  # share of the squared norm from which a single channel is worth a sentence

# Fitted tokens per input from which what a linear map reaches is near the most that it could.
PLENTY = 10

LINE = 120  # width of a terminal
LEGEND = (
    "Bias: squared norm of the mean vector over the mean squared norm. Rank: effective rank of all heads together. "
    "Floor: raw cosine of predicting the mean. Alike: teacher layer of the largest CKA. r2 one, r2 all: linear map "
    "from the teacher layer at the ratio of depth, from all layers. Centred: centred cosine of the better of the two."
)

Table = tuple[str, list[str], list[list[str]]]


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; heads that do not vary have none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def better(relation: Mapping[str, Any], score: str) -> list[float | None]:
    """Score of the better of the two linear probes in each student layer, mean over heads.

    Which is better is decided by `fold_r2`, within the fitted half: the better on the scored half would flatter itself.
    """
    probes = (relation["one_layer"], relation["all_layers"])
    return [
        mean_of_known(max(probes, key=lambda probe: mean_of_known(probe["fold_r2"][i]) or 0.0)[score][i])
        for i in range(layers(relation))
    ]


def layers(relation: Mapping[str, Any]) -> int:
    """Layers of the student."""
    return len(relation["cka"])


def tables(profile: Mapping[str, Any]) -> list[Table]:
    """Title, header and rows of each table; numbers are means over heads."""
    return [
        *(_of_model(profile, role) for role in ("teacher", "student")),
        ("pair: student against teacher, per student layer", *_of_pair(profile["pair"])),
    ]


def as_text(profile: Mapping[str, Any]) -> str:
    """Tables and sentences."""
    blocks = [f"{title}\n{table([header, *rows])}" for title, header, rows in tables(profile)]
    legend = fill(LEGEND, LINE)
    said = "\n".join(
        fill(sentence, LINE, initial_indent="- ", subsequent_indent="  ") for sentence in sentences(profile)
    )
    return "\n\n".join([*blocks, legend, said])


def _of_model(profile: Mapping[str, Any], role: str) -> Table:
    side = profile[role]

    def cells(name: str, layer: int) -> list[str]:
        facts = side[name]
        means = mean_of_known(facts["norm"][layer]), mean_of_known(facts["bias_share"][layer])
        return [number(means[0], 1), number(means[1], 2), number(facts["effective_rank"][layer], 1)]

    return f"{role} {side['model']}", *_of_layers(("norm", "bias", "rank"), len(side["keys"]["norm"]), cells)


def _of_pair(pair: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    def cells(name: str, layer: int) -> list[str]:
        relation = pair[name]
        alike = _nearest(relation["cka"][layer])
        return [
            number(mean_of_known(relation["cos_sim_constant"][layer]), 2),
            f"{alike} ({number(relation['cka'][layer][alike], 2)})",
            *(number(mean_of_known(relation[probe]["r2"][layer]), 2) for probe in ("one_layer", "all_layers")),
            number(better(relation, "cos_sim_centered")[layer], 2),
        ]

    return _of_layers(("floor", "alike", "r2 one", "r2 all", "centred"), layers(pair["keys"]), cells)


def _of_layers(
    columns: Sequence[str], count: int, cells: Callable[[str, int], list[str]]
) -> tuple[list[str], list[list[str]]]:
    """Header and a row per layer: the columns for keys, then for values."""
    header = ["layer", *(f"{letter} {column}" for letter in "KV" for column in columns)]
    return header, [[str(n), *(cell for name in TENSORS for cell in cells(name, n))] for n in range(count)]


def sentences(profile: Mapping[str, Any]) -> list[str]:
    """What the numbers mean for this pair, three to six sentences."""
    pair = profile["pair"]
    said = [_floor(pair), _nine_tenths(pair), _hardest(profile), _channel(profile["teacher"]), _depth(pair)]
    constant = sum(r2 is None for name in TENSORS for row in pair[name]["all_layers"]["r2"] for r2 in row)
    if constant:
        heads = "1 head of the student does" if constant == 1 else f"{constant} heads of the student do"
        said.append(f"{heads} not vary: there is nothing to align, and no alignment metric counts them.")
    return [sentence for sentence in said if sentence]


def _floor(pair: Mapping[str, Any]) -> str:
    overall = {name: mean_of_known(_flat(pair[name]["cos_sim_constant"])) for name in TENSORS}
    top, name, layer = _extreme(
        max, {name: [mean_of_known(row) for row in pair[name]["cos_sim_constant"]] for name in TENSORS}
    )
    averages = f"over all keys {number(overall['keys'], 2)}, over all values {number(overall['values'], 2)}"
    if top < INFLATED:
        return (
            f"Predicting a constant scores a raw cosine of at most {number(top, 2)} ({name} of layer {layer}; "
            f"{averages}): a raw cosine is hardly inflated here."
        )
    return (
        f"Predicting a constant scores a raw cosine of {number(top, 2)} on the {name} of layer {layer} ({averages}): a "
        "raw cosine below that is worse than nothing; read cos_sim_centered and r2."
    )


def _nine_tenths(pair: Mapping[str, Any]) -> str:
    floor = mean_of_known(value for name in TENSORS for value in _flat(pair[name]["cos_sim_constant"]))
    raw, centred, r2 = (
        mean_of_known(value for name in TENSORS for value in better(pair[name], score))
        for score in ("cos_sim", "cos_sim_centered", "r2")
    )
    assert floor is not None, "a model without layers"
    if floor >= 0.9:
        meaning = f"A mean raw cosine of 0.9 is below the {number(floor, 2)} of a constant"
    else:
        meaning = (
            f"A mean raw cosine of 0.9 lies {100 * (0.9 - floor) / (1 - floor):.0f}% of the way from a constant "
            f"({number(floor, 2)}) to 1"
        )
    if raw is None:
        return f"{meaning}."
    return (
        f"{meaning}; ridge regressions from the teacher reach {number(raw, 2)} raw and {number(centred, 2)} centred, "
        f"with r2 {number(r2, 2)}."
    )


def _hardest(profile: Mapping[str, Any]) -> str:
    explained = {name: better(profile["pair"][name], "r2") for name in TENSORS}
    if all(r2 is None for of_tensor in explained.values() for r2 in of_tensor):
        return ""
    lowest, name, layer = _extreme(min, explained)
    fitted, inputs = profile["tokens"]["fitted"], profile["teacher"]["channels"]
    more = (
        "; more than that takes a nonlinear aligner, other tokens, or a student that moves"
        if fitted >= PLENTY * inputs
        else f" (for {inputs:,} inputs: more --tokens may find more)"
    )
    return (
        f"Hardest are the {name} of layer {layer}: a ridge regression on {fitted:,} tokens reaches r2 "
        f"{number(lowest, 2)} there{more}."
    )


def reach(profile: Mapping[str, Any]) -> str:
    """What the linear probes say about linear aligners, which depends on the number of fitted tokens."""
    fitted, inputs = profile["tokens"]["fitted"], profile["teacher"]["channels"]
    said = f"What a ridge regression on {fitted:,} tokens reaches from {inputs:,} inputs of the teacher"
    if fitted >= PLENTY * inputs:
        return f"{said} is about the ceiling of a linear aligner, as long as the base student does not move."
    return f"{said} is no ceiling: a linear aligner that is trained on more may exceed it."


def _channel(teacher: Mapping[str, Any]) -> str:
    share, name, layer, head = max(
        (share, name, layer, head)
        for name in TENSORS
        for layer, row in enumerate(teacher[name]["largest_channel_share"])
        for head, share in enumerate(row)
        if share is not None
    )
    if share < DOMINANT:
        return ""
    channel = teacher[name]["largest_channel"][layer][head]
    return (
        f"The mean of one channel of the teacher ({name}, layer {layer}, head {head}, channel {channel}) is "
        f"{100 * share:.0f}% of that head's squared norm; aligners therefore read standardised channels."
    )


def _depth(pair: Mapping[str, Any]) -> str:
    matches = [
        _nearest(row) == ratio for name in TENSORS for row, ratio in zip(pair[name]["cka"], pair[name]["ratio_layer"],
                                                                         strict=True)
    ]  # fmt: skip
    advice = "" if 2 * sum(matches) >= len(matches) else "; layer_map: {kind: cka} reads the layers that are"
    return (
        f"By CKA, the teacher layer at the ratio of depth is the one most like the student's in {sum(matches)} of "
        f"{len(matches)} cases (keys and values apart){advice}."
    )


def _nearest(row: Sequence[float]) -> int:
    return max(range(len(row)), key=row.__getitem__)


def _flat(rows: Sequence[Sequence[float | None]]) -> list[float | None]:
    return [value for row in rows for value in row]


def _extreme(
    of: Callable[..., tuple[float, str, int]], values: Mapping[str, Sequence[float | None]]
) -> tuple[float, str, int]:
    return of((value, name, i) for name, row in values.items() for i, value in enumerate(row) if value is not None)
