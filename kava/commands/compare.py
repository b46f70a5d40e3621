"""Compare finished experiments in one report, from their records; without folders, make the report of this run.

    kava report results/exp-a results/exp-b
    kava report results/exp-a ../other-checkout/results/exp-a --output both.html
    kava report results/exp-a                                   # results/exp-a/report.html

Folders come first, and each holds a record.yaml, which the report of its experiment has written. The first experiment
is what the others are compared with, arm by arm of the same name, beside what each of them declares.
"""

import argparse
import sys
from pathlib import Path

from kava.commandline import option, run_command


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0].startswith("-"):
        from kava.stages.report import main as report_of_one

        return report_of_one(words)
    folders = option("folders", nargs="+", type=Path, metavar="DIR", help="results/<experiment> of a finished run")
    output = option(
        "--output", type=Path, help="the page; its numbers go into .json beside it (default: "
        "results/comparison.html, of one experiment report.html in its folder)"
    )  # fmt: skip
    return run_command("kava report", __doc__, words, _compare, folders, output)


def _compare(arguments: argparse.Namespace) -> None:
    """Write the page and its numbers, and print the verdict."""
    from kava.errors import UserError
    from kava.files import write_atomic, write_json
    from kava.provenance import command
    from kava.report.across import report_across
    from kava.report.page.render import render_html
    from kava.report.record import read_record

    folders, output = arguments.folders, arguments.output
    if output is None:
        output = folders[0] / "report.html" if len(folders) == 1 else Path("results/comparison.html")
    if output.suffix != ".html":
        raise UserError(f"--output {output} must end in .html; the numbers are written beside it as .json")
    try:
        report = report_across([read_record(folder) for folder in folders], command())
    except FileNotFoundError as error:
        missing = Path(error.filename)
        raise UserError(
            f"the folder {missing.parent} has no {missing.name}; restore it, or run the experiment again: what is "
            "there is kept"
        ) from None
    write_json(output.with_suffix(".json"), report.to_dict())
    write_atomic(output, render_html(report))
    print(report.verdict.sentence)
    for sentence in report.fairness.mismatches:
        print(f"unequal: {sentence}")
    print(output)
