"""Which examples are trained on, and when: a list from (seed, epoch), the same for every arm."""

import random

from kava.errors import UserError


def data_order(seed: int, examples: int, count: int) -> list[int]:
    """The first `count` examples of a run: one permutation after the other.

    Parameters
    ----------
    seed
        Seed of the run.
    examples
        Size of the training split.
    count
        steps × batch size × accumulation.
    """
    order: list[int] = []
    epoch = 0
    while len(order) < count:
        permutation = list(range(examples))
        random.Random(f"{seed}/{epoch}").shuffle(permutation)
        order += permutation
        epoch += 1
    return order[:count]


def longest_first(order: list[int], lengths: list[int], per_step: int) -> list[int]:
    """The order with the examples of each optimizer step sorted by length, so that micro-batches hold little padding.

    Which examples a step reads stays as it was drawn: steps of examples of one length alone would be biased.
    """
    steps = [order[first : first + per_step] for first in range(0, len(order), per_step)]
    return [example for step in steps for example in sorted(step, key=lambda example: -lengths[example])]


def partners(lengths: list[int], seed: int) -> list[int]:
    """Another example of like length for each example, for the control that trains on the wrong KV.

    Neighbours by length form groups of at least 16 (fewer only if there are fewer), each rotated by a random step.

    Raises
    ------
    UserError
        A single example has no other.
    """
    if len(lengths) < 2:
        raise UserError("teacher_kv: shuffled needs at least two training examples; raise data.train")
    generator = random.Random(f"{seed}/partners")
    by_length = sorted(range(len(lengths)), key=lambda example: (lengths[example], example))
    partner = [0] * len(lengths)
    groups = max(1, len(lengths) // 16)
    for index in range(groups):
        group = by_length[index * 16 : (index + 1) * 16 if index < groups - 1 else None]
        step = generator.randrange(1, len(group))
        for position, example in enumerate(group):
            partner[example] = group[(position + step) % len(group)]
    return partner
