"""What tests of commands share: a folder of their own, and the one sentence of a command that fails."""

from pathlib import Path

import pytest

from kava.cli import main


@pytest.fixture
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KAVA_CACHE", raising=False)


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Error of a command that must fail with one line and status 1."""
    assert main([*arguments]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if "error:" in line]
    return line
