"""What a person sees of a workflow's run: a line per job, how far it is, why one failed; read as a newcomer would."""

import io
import logging
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent
from workflow_runs import command

from kava.terminal import stage_log
from kava.terminal.lines import DEFAULT_HANDLER, JobLines, show_jobs
from kava.terminal.noise import NOISE, leave_out_noise
from kava.text import duration

BAR = "\rextract:   9%|▊    | 483/5637 [00:12<02:16, 37.68tok/s]\rextract:  50%|██   | 2818/5637 [00:40<00:40, 70tok/s]"
OF_STEPS = "teacher KV from results/teacher_kv/x\nstep 10/500 arm=flat loss=0.9\nstep 20/500 arm=flat loss=0.7419\n"
STATS = {"distill": 2, "all": 1, "total": 3}
EXIT = "returned non-zero exit status"
COMMAND = "python -m kava.stages.distill --spec '{\"key\": …}' > {log} 2>&1"


class Terminal:
    """Snakemake's logger with its handler for the terminal, and what stands there."""

    def __init__(self, **settings: object) -> None:
        told = {"dryrun": False, "verbose": False, "debug_dag": False, "quiet": None, "show_failed_logs": False}
        self.settings = SimpleNamespace(**told | settings)
        self.stream = io.StringIO()
        self.logger = logging.Logger("snakemake of a test", logging.INFO)
        shown = DefaultFilter(self.settings.quiet, False, False, bool(self.settings.dryrun), printshellcmds=False)
        handler = ColorizingTextHandler(stream=self.stream, formatter=DefaultFormatter(), filter=shown)
        handler.name = DEFAULT_HANDLER
        self.logger.addHandler(handler)
        show_jobs(self.logger, self.settings)

    @property
    def handler(self) -> JobLines:
        (handler,) = self.logger.handlers
        assert isinstance(handler, JobLines)
        return handler

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[str]:
        """Without the time of day."""
        return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in self.text.splitlines()]

    def start(self, number: int, arm: str, log: Path) -> None:
        self.logger.info(
            "", extra={"event": LogEvent.JOB_INFO, "jobid": number, "rule_name": "distill", "log": [str(log)],
                       "wildcards": {"arm": arm, "seed": "42"}, "rule_msg": None, "local": True, "input": ["tokens"],
                       "output": ["manifest"], "benchmark": None, "reason": "Missing output files", "priority": 0,
                       "resources": {"mem_mb": 16000}, "threads": 1, "is_checkpoint": False},
        )  # fmt: skip

    def finish(self, number: int) -> None:
        self.logger.info("", extra={"event": LogEvent.JOB_FINISHED, "job_id": number})
        self.logger.info(None, extra={"event": LogEvent.PROGRESS, "done": 1, "total": 3})

    def fail(self, number: int, log: Path, how: str = f"{EXIT} 1", summary: bool = True) -> None:
        ended = f"Command '{COMMAND.replace('{log}', str(log))}' {how}."
        self.logger.error(f"RuleException:\n{ended}", extra={"event": LogEvent.ERROR, "exception": "RuleException"})
        self.logger.error(
            "", extra={"event": LogEvent.JOB_ERROR, "jobid": number, "rule_name": "distill", "log": [str(log)],
                       "aux": {}, "shellcmd": COMMAND},
        )  # fmt: skip
        if not summary:
            return
        self.logger.error("Exiting because a job execution failed. Look above for error messages")
        incomplete = "WorkflowError:\nAt least one job did not complete successfully."
        self.logger.error(incomplete, extra={"event": LogEvent.ERROR, "exception": "WorkflowError"})


@pytest.fixture(autouse=True)
def _progress_when_a_test_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kava.terminal.lines.INTERVAL", 3600.0)


@pytest.fixture
def terminal() -> Terminal:
    """At the start of a run of two jobs and `all`."""
    shown = Terminal()
    shown.logger.info("Job stats:", extra={"event": LogEvent.RUN_INFO, "stats": STATS})
    shown.stream.seek(0)
    shown.stream.truncate()
    return shown


def test_a_job_is_a_line_at_its_start_and_one_at_its_end(terminal: Terminal, tmp_path: Path) -> None:
    log = tmp_path / "distill.log"
    for noise in ("Building DAG of jobs...", "Select jobs to execute...", "Using shell: /usr/bin/bash"):
        terminal.logger.info(noise)
    terminal.logger.info("Provided cores: 1", extra={"event": LogEvent.RESOURCES_INFO})
    terminal.logger.info("Execute 1 jobs...", extra={"event": LogEvent.JOB_STARTED})
    terminal.start(7, "flat", log)
    log.write_text(OF_STEPS)
    terminal.finish(7)
    assert terminal.lines == [
        f"distill flat, seed 42: started, log in {log}",
        "distill flat, seed 42: done in 0 s (1 of 2)",
    ]


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (OF_STEPS, "step 20/500 arm=flat loss=0.7419"),
        (f"store x: 12 of 12 shards to extract\n{BAR}", "2818 of 5637, 00:40 left"),
        (f"noise of a library\n{BAR}\nmore noise\n", "2818 of 5637, 00:40 left"),
        ("  0%|          | 1/500 [00:15<2:09:29, 15.57s/it]", "1 of 500"),
        ("\rx: 100%|██████████| 12/12 [00:01<00:00, 10it/s]\n", None),
        ("\r  0%|          | 0/12 [00:00<?, ?it/s]", "0 of 12"),
        ("waiting for process 12 of host, which works in x\n", "waiting for process 12 of host, which works in x"),
        ("loading weights\n", None),
        ("", None),
        (None, None),
    ],
)
def test_progress_is_the_newest_tokens_steps_or_questions(tmp_path: Path, log: str | None, said: str | None) -> None:
    path = tmp_path / "stage.log"
    if log is not None:
        path.write_text(log)
    assert stage_log.progress(path) == said


def test_progress_is_a_line_when_it_changes_and_ever_more_rarely_without(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, log = [0.0], tmp_path / "distill.log"
    monkeypatch.setattr(terminal.handler, "_clock", lambda: now[0])
    terminal.start(7, "flat", log)
    log.write_text(OF_STEPS)
    for _ in range(20):
        now[0] += 15
        terminal.handler.say_progress()
    of_steps = "step 20/500 arm=flat loss=0.7419"
    told = [f"distill flat, seed 42: {duration(after)}, {of_steps}" for after in (15, 15 + 30, 15 + 30 + 60, 225)]
    assert terminal.lines[1:] == told
    log.write_text("step 30/500 arm=flat loss=0.7\n")
    terminal.handler.say_progress()
    assert terminal.lines[-1] == "distill flat, seed 42: 5 min 00 s, step 30/500 arm=flat loss=0.7"


def test_many_jobs_take_turns(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(terminal.handler, "_clock", lambda: now[0])
    for number in range(6):
        terminal.start(number, f"arm{number}", tmp_path / f"{number}.log")
    for step in range(3):
        now[0] += 15
        for number in range(6):
            (tmp_path / f"{number}.log").write_text(f"step {step}/9\n")
        terminal.handler.say_progress()
    assert [line.split(",")[0] for line in terminal.lines[6:]] == [f"distill arm{number}" for number in range(6)]


def test_figures_and_warnings_of_a_finished_stage_are_shown(terminal: Terminal, tmp_path: Path) -> None:
    log = tmp_path / "evaluate.log"
    terminal.start(1, "sft", log)
    log.write_text("strict match 0.0000, flexible extract 0.0000, n 12\nwarning: a teacher\nwarning: a teacher\n")
    terminal.finish(1)
    assert terminal.lines[1:] == [
        "distill sft, seed 42: done in 0 s (1 of 2): strict match 0.0000, flexible extract 0.0000, n 12",
        "distill sft, seed 42: warning: a teacher",
    ]


SENTENCE = "kava distill: error: arms.flat has no steps; set some"


OUT_OF_MEMORY = "it was ended by SIGKILL, as the system does where memory runs out"


@pytest.mark.parametrize(
    ("log", "how", "said"),
    [
        (f"step 1/2\n{SENTENCE}\n", f"{EXIT} 1", [SENTENCE]),
        (f"kava distill (process 1): error: no GPU\n{SENTENCE}\n", f"{EXIT} 1",
         ["kava distill (process 1): error: no GPU", SENTENCE]),
        ("Traceback (most recent call last):\n  File x\nKeyError: 'a'\n", f"{EXIT} 1",
         ["Traceback (most recent call last):", "  File x", "KeyError: 'a'"]),
        ("", f"{EXIT} 1", ["its log is empty: it was killed, or could not start"]),
        ("step 1/2\n", f"{EXIT} 137", [OUT_OF_MEMORY, "step 1/2"]),
        ("step 1/2\n", "died with <Signals.SIGKILL: 9>", [OUT_OF_MEMORY, "step 1/2"]),
        ("step 1/2\n", "died with <Signals.SIGINT: 2>", ["it was ended by SIGINT", "step 1/2"]),
    ],
)  # fmt: skip
def test_a_failed_job_says_why_and_how_to_go_on(
    terminal: Terminal, tmp_path: Path, log: str, how: str, said: list[str]
) -> None:
    path = tmp_path / "distill.log"
    terminal.start(7, "flat", path)
    path.write_text(log)
    terminal.fail(7, path, how)
    assert terminal.lines[1:] == [
        f"distill flat, seed 42: FAILED after 0 s, log in {path}",
        *(f"    {line}" for line in said),
        "",
        f"failed: distill flat, seed 42, log in {path}",
        "Set right what is said above, and run the same command again: what is finished is kept.",
    ]
    assert "--spec" not in terminal.text


def test_who_stops_a_run_sees_no_failure(terminal: Terminal, tmp_path: Path) -> None:
    for number, text in ((1, f"{SENTENCE}\n"), (2, "Traceback\nKeyboardInterrupt\n")):
        terminal.start(number, f"arm{number}", tmp_path / f"{number}.log")
        (tmp_path / f"{number}.log").write_text(text)
    terminal.logger.info("Terminating processes on user request, this might take some time.")
    for number in (1, 2):
        terminal.fail(number, tmp_path / f"{number}.log", "died with <Signals.SIGINT: 2>", summary=False)
    incomplete = "WorkflowError:\nAt least one job did not complete successfully."
    terminal.logger.error(incomplete, extra={"event": LogEvent.ERROR, "exception": "WorkflowError"})
    assert terminal.lines[2:] == [
        "Stopping, as you asked. The same command goes on later: what is finished is kept.",
        "distill arm1, seed 42: stopped after 0 s",
        f"    {SENTENCE}",
        "distill arm2, seed 42: stopped after 0 s",
    ]


def test_the_whole_log_of_a_failed_job_is_shown_on_demand(tmp_path: Path) -> None:
    terminal, log = Terminal(show_failed_logs=True), tmp_path / "distill.log"
    terminal.start(7, "flat", log)
    log.write_text(f"first line\n{SENTENCE}\n")
    terminal.fail(7, log)
    assert "    first line" in terminal.lines


@pytest.mark.parametrize(
    "asked", [{"dryrun": True}, {"verbose": True}, {"debug_dag": True}, {"quiet": {Quietness.RULES}}]
)
def test_who_asks_for_snakemakes_own_output_has_it(asked: dict) -> None:
    terminal = Terminal(**asked)
    assert not isinstance(terminal.logger.handlers[0], JobLines)
    assert isinstance(Terminal(quiet={Quietness.HOST}).handler, JobLines)


def test_a_logger_plugin_is_left_alone() -> None:
    logger = logging.Logger("snakemake with a plugin")
    logger.addHandler(plugin := logging.NullHandler())
    show_jobs(logger, Terminal().settings)
    assert logger.handlers == [plugin]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (80, "1 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_libraries_say_on_every_run_is_left_out_and_nothing_else(caplog) -> None:
    leave_out_noise()
    for name, text in NOISE.items():
        logging.getLogger(name).warning("%s and so on", text)
        logging.getLogger(name).warning("something of its own")
    assert [record.getMessage() for record in caplog.records] == ["something of its own"] * len(NOISE)


@pytest.mark.slow
def test_a_plain_command_shows_the_sentence_of_a_stage_that_fails(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path, settings={"max_length": 4}), capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "    kava tokenize: error: every train example is longer than max_length=4; raise it\n" in said
    assert re.search(r"failed: tokenize, log in results/tokens/\S+/tokenize.log\n", said)
    for hidden in ("--spec", "resources:", "SNAKEMAKE", "Traceback"):
        assert hidden not in said
    (whole,) = (tmp_path / ".snakemake/log").glob("*.log")
    assert "resources:" in whole.read_text()  # Snakemake's own log has all of it
