"""What the teacher finds likeliest at every token of the gold answers, and how often another model agrees.

It stands in `likeliest.jsonl` beside the manifest of the teacher's evaluation: a line per question with the tokens of
its answer, and at each the token that the teacher finds most probable there.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from kava.errors import UserError
from kava.evaluation.likelihood import AnswerScore
from kava.files import read_json, sha256_file, write_atomic

FILE = "likeliest.jsonl"

# Split → of each question, the tokens of the answer and the teacher's likeliest.
Likeliest = Mapping[str, Sequence[tuple[list[int], list[int]]]]


def write_likeliest(folder: Path, of_splits: Mapping[str, Sequence[AnswerScore]]) -> str:
    """Write what the teacher found, split → scores in the order of questions; returns the file's SHA-256."""
    lines = [
        {"split": split, "doc_id": number, "answer": score.ids.tolist(), "likeliest": score.likeliest.tolist()}
        for split, scores in of_splits.items()
        for number, score in enumerate(scores)
    ]
    write_atomic(folder / FILE, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    return sha256_file(folder / FILE)


def read_likeliest(manifest: Path, questions_sha256: str) -> Likeliest:
    """What `write_likeliest` wrote beside the manifest of the teacher's evaluation.

    Raises
    ------
    UserError
        The file is not there, or not the one of the manifest; or the teacher was asked other questions.
    """
    evaluated = read_json(manifest)
    path, recorded = manifest.parent / FILE, evaluated.get("likeliest_sha256")
    if evaluated.get("questions_sha256") != questions_sha256:
        raise UserError(f"{manifest} is of other questions; give the teacher's evaluation of the same token set")
    if recorded is None or not path.is_file() or sha256_file(path) != recorded:
        raise UserError(
            f"{path} is missing, or not what the teacher's evaluation wrote; delete {manifest} and run "
            "`kava evaluate --reference teacher`, or Snakemake"
        )
    found: dict[str, list[tuple[list[int], list[int]]]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found.setdefault(record["split"], []).append((record["answer"], record["likeliest"]))
    return found


def agreement(score: AnswerScore, teacher: tuple[list[int], list[int]]) -> float | None:
    """Share of an answer's tokens at which a model and the teacher have the same likeliest one.

    None where the teacher read another answer, as it does of a student that reads equations alone.
    """
    ids, likeliest = teacher
    if score.ids.tolist() != ids:
        return None
    return float(np.mean(score.likeliest == np.array(likeliest)))
