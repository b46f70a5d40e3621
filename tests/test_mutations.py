"""The lists of mutations fit the code: each fault can still be put in, and its tests are there."""

from mutations.entries import load, problems


def test_every_mutation_applies_and_names_tests_that_exist() -> None:
    mutations = load()
    assert mutations
    assert problems(mutations) == []


def test_a_mutation_that_no_longer_applies_is_named() -> None:
    first, second = load()[:2]
    assert problems([first, first]) == [f"{first.name}: the name is given twice"]
    gone = second.model_copy(update={"old": "no such text", "tests": ["tests/test_mutations.py::test_none"]})
    assert problems([gone]) == [
        f"{gone.name}: `old` occurs 0 times in {gone.file}, not once",
        f"{gone.name}: tests/test_mutations.py has no test_none",
    ]
