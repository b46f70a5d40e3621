"""Data sets, and text → token ids with a segment per token."""

from kava.config.schema import DemoData, Gsm8kData
from kava.data import demo, gsm8k


def load_splits(data: DemoData | Gsm8kData) -> dict[str, list[dict[str, str]]]:
    """Rows `{question, answer}` of the splits train, validation and test."""
    if isinstance(data, Gsm8kData):
        return gsm8k.load_splits(data)
    sizes = {"train": data.train, "validation": data.validation, "test": data.test}
    return {split: demo.generate(split, count, data.seed) for split, count in sizes.items()}
