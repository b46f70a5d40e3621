"""The repository itself: nothing that a command generates is tracked."""

import re
import subprocess

import pytest

from kava.config.load import REPOSITORY

GENERATED = re.compile(
    r"(^|/)(build|dist|__pycache__|\.[a-z]+_cache|\.snakemake|\.venv|[^/]+\.egg-info)/|\.(pyc|pyo|whl|log|partial)$"
)


def test_no_generated_file_is_tracked() -> None:
    listed = subprocess.run(["git", "-C", REPOSITORY, "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    assert [name for name in listed.stdout.splitlines() if GENERATED.search(name)] == []
