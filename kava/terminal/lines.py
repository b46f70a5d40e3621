"""In place of Snakemake's block per job: a line when it starts, how far it is, a line when it ends.

    12:03:15  distill structured, seed 42: started, log in results/demo/structured/seed-42/student/distill.log
    12:03:45  distill structured, seed 42: 30 s, step 210/500 arm=structured loss=0.4117
    12:04:05  distill structured, seed 42: done in 50 s (9 of 12)

Snakemake's log file, `.snakemake/log/`, has the blocks as ever, and so has the terminal with `--verbose`, in a dry run,
with `--quiet` (less) and with a logger plugin.
"""

import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from snakemake.logging import ColorizingTextHandler
from snakemake.settings.enums import Quietness
from snakemake_interface_logger_plugins.common import LogEvent

from kava.terminal.stage_log import failure, progress, result, sentence, warnings
from kava.text import duration

INTERVAL = 15.0
# So many jobs at once, those that were silent longest: a cluster may run dozens.
AT_ONCE = 2
# After so many seconds without news a line says that the job is still there; then after twice as many, and so on.
PATIENCE = 30.0
DEFAULT_HANDLER = "DefaultStreamHandler"
WIDTH = 160
UNSAID = {LogEvent.WORKFLOW_STARTED, LogEvent.RESOURCES_INFO, LogEvent.PROGRESS, LogEvent.JOB_STARTED}
# What Snakemake says of itself without an event; a person who runs KAVA can do nothing about it.
UNSAID_BEGINNINGS = (
    "Building DAG of jobs...",
    "Using shell: ",
    "Singularity containers: ignored",
    "Select jobs to execute...",
    "Shutting down, this might take some time.",
    "--keep-incomplete mode is set",
)
# Snakemake's last words on jobs that failed; ours say how to go on.
FAILED = "Exiting because a job execution failed"
STOPPED = "Terminating processes on user request"
INCOMPLETE = "At least one job did not complete successfully."
# How its long command ended, said before the job's error.
ENDED = re.compile(r"returned non-zero exit status (?P<status>\d+)|died with <Signals\.\w+: (?P<signal>\d+)>")
OF_SIGNALS = 128


@dataclass
class _Running:
    label: str
    logs: list[Path]
    started: float
    said_at: float
    said: str | None = None
    patience: float = PATIENCE


class JobLines(ColorizingTextHandler):
    """Handler of Snakemake's records that prints a line per job.

    It takes over stream, filters and formatter of the handler that it stands in for. With `log_of_failed` it prints the
    whole log of a job that failed, as `--show-failed-logs` asks, and not only why.
    """

    def __init__(
        self, like: ColorizingTextHandler, log_of_failed: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(nocolor=like.nocolor, stream=like.stream, formatter=like.formatter)
        self.filters = list(like.filters)
        self.name = like.name
        self._log_of_failed = log_of_failed
        self._clock = clock
        self._running: dict[int, _Running] = {}
        self._failed: dict[int, _Running] = {}
        self._ended: list[str] = []
        self._stopped = False
        self._done, self._total = 0, 0
        self._watch: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Print what is to be said of a record: nothing, our line, or what Snakemake says."""
        facts = record.__dict__
        event = facts.get("event")
        if event == LogEvent.JOB_INFO and facts["log"]:
            self._start(facts)
        elif event == LogEvent.JOB_FINISHED and facts["job_id"] in self._running:
            self._finish(facts["job_id"])
        elif event == LogEvent.JOB_ERROR and facts["jobid"] in self._running:
            self._fail(facts)
        elif event in (LogEvent.JOB_INFO, LogEvent.JOB_FINISHED) or event in UNSAID:
            return  # `all`, which does nothing
        elif event == LogEvent.RUN_INFO:
            self._total = sum(count for rule, count in facts["stats"].items() if rule not in ("all", "total"))
            super().emit(record)
        elif event == LogEvent.ERROR and self._running and ENDED.search(record.getMessage()):
            self._ended.append(record.getMessage())
        elif event == LogEvent.ERROR and (self._failed or self._stopped) and INCOMPLETE in record.getMessage():
            return
        elif event is None and self._failed and record.getMessage().startswith(FAILED):
            self._sum_up()
        elif event is None and record.getMessage().startswith(STOPPED):
            self._stopped = True
            self._write(
                "Stopping, as you asked. The same command goes on later: what is finished is kept.", self.YELLOW
            )
        elif event is not None or not record.getMessage().startswith(UNSAID_BEGINNINGS):
            super().emit(record)

    def say_progress(self) -> None:
        """A line for a few of the jobs that run, if there is anything to say."""
        left, now = AT_ONCE, self._clock()
        for job in sorted(self._running.values(), key=lambda job: job.said_at):
            said = next((line for log in job.logs if (line := progress(log))), None)
            news = said is not None and said != job.said
            if left and (news or now - job.said_at >= job.patience):
                job.patience = PATIENCE if news else 2 * job.patience
                job.said, job.said_at, left = said, now, left - 1
                self._say(f"{job.label}: {self._since(job)}" + (f", {said}" if said else ""))

    def _start(self, facts: Mapping[str, Any]) -> None:
        now = self._clock()
        job = _Running(_label(facts["rule_name"], facts["wildcards"]), list(map(Path, facts["log"])), now, now)
        self._failed.pop(facts["jobid"], None)
        self._running[facts["jobid"]] = job
        self._say(f"{job.label}: started, log in {facts['log'][0]}")
        if self._watch is None:
            self._watch = threading.Thread(target=self._follow, daemon=True, name="kava progress")
            self._watch.start()

    def _finish(self, number: int) -> None:
        job = self._running.pop(number)
        self._done += 1
        made = next((f": {line}" for log in job.logs if (line := result(log))), "")
        self._say(f"{job.label}: done in {self._since(job)} ({self._done} of {self._total}){made}", color=self.GREEN)
        for warning in [line for log in job.logs for line in warnings(log)]:
            self._say(f"{job.label}: {warning}", color=self.YELLOW, cut=False)

    def _fail(self, facts: Mapping[str, Any]) -> None:
        job = self._running.pop(facts["jobid"])
        if self._stopped:
            self._say(f"{job.label}: stopped after {self._since(job)}", self.YELLOW)
            for line in sentence(job.logs[0]):
                self._write(f"    {line}", self.YELLOW)
            return
        self._failed[facts["jobid"]] = job
        self._say(f"{job.label}: FAILED after {self._since(job)}, log in {job.logs[0]}", color=self.RED)
        more = [f"{name}: {value}" for name, value in facts["aux"].items()] + self._killed(job)
        if self._log_of_failed:
            log = job.logs[0]
            more += log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
        else:
            more += failure(job.logs[0])
        for line in more:
            self._write(f"    {line}", self.RED)

    def _killed(self, job: _Running) -> list[str]:
        """A line on the signal that ended a job, if one did; its log then does not know."""
        for message in self._ended:
            ended = ENDED.search(message)
            if ended is None or str(job.logs[0]) not in message:
                continue
            number = int(ended["signal"] or int(ended["status"]) - OF_SIGNALS)
            if number > 0:
                name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
                why = ", as the system does where memory runs out" if number == signal.SIGKILL else ""
                return [f"it was ended by {name}{why}"]
        return []

    def _sum_up(self) -> None:
        for job in self._failed.values():
            self._write(f"\nfailed: {job.label}, log in {job.logs[0]}", self.RED)
        self._write("Set right what is said above, and run the same command again: what is finished is kept.", self.RED)

    def _since(self, job: _Running) -> str:
        return duration(self._clock() - job.started)

    def _say(self, text: str, color: int | None = None, cut: bool = True) -> None:
        line = f"{time.strftime('%H:%M:%S')}  {text}"
        self._write(line[: WIDTH - 1] + "…" if cut and len(line) > WIDTH and self.is_tty else line, color)

    def _write(self, text: str, color: int | None) -> None:
        if color is not None and not self.nocolor:
            text = f"{self.COLOR_SEQ % (30 + color)}{text}{self.RESET_SEQ}"
        self.stream.write(text + self.terminator)
        self.flush()

    def _follow(self) -> None:
        while True:
            time.sleep(INTERVAL)
            with self.lock:
                self.say_progress()


def _label(rule: str, wildcards: Mapping[str, str]) -> str:
    """`distill flat, seed 42` of a rule and its wildcards."""
    words = [value if name == "arm" else f"{name} {value}" for name, value in wildcards.items()]
    return f"{rule} {', '.join(words)}".rstrip()


def show_jobs(logger: logging.Logger, settings: Any) -> None:
    """Put `JobLines` in the place of Snakemake's handler, unless its `OutputSettings` ask for another."""
    if settings.dryrun or settings.verbose or settings.debug_dag or set(settings.quiet or ()) - {Quietness.HOST}:
        return
    for handler in logger.handlers:
        if handler.name == DEFAULT_HANDLER and isinstance(handler, ColorizingTextHandler):
            logger.removeHandler(handler)
            logger.addHandler(JobLines(handler, settings.show_failed_logs))
