"""The stages of a run: what each depends on, what it reads and where it writes.

Snakemake's rules and `kava STAGE` at a prompt take their paths and parameters from here, so both do the same.
"""

import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from kava.config.benchmark import REPORT_BYTES, REPORT_ROTATED, REPORT_TOKENS, codecs_for_report
from kava.config.code import code_digest, metrics_digest
from kava.config.identity import ANSWERS, TOKENIZER, data_identity, display_name, model_identity
from kava.config.schema import Config, ModelSettings
from kava.config.training import Distill, Pretrain
from kava.errors import UserError
from kava.files import canonical_json, read_json, sha256_json

TOKENS_FORMAT = 3
STORE_FORMAT = 2
# Of top-k logits, in the key of stores that hold some: since 2 they are of the tokenizer's tokens, without padded rows.
TOPK_FORMAT = 2
BENCH_FORMAT = 1
# Bytes; file systems take 255, of which kind, codec and key need some.
LONGEST_NAME = 200
REFERENCES = ("teacher", "student_base")


@dataclass(frozen=True)
class Job:
    """One run of one stage.

    Attributes
    ----------
    stage
        Module of `kava.stages`.
    spec
        Everything the result depends on, as JSON values; a change of it is a reason to run again.
    inputs
        Option name → file made by an earlier stage.
    output
        The file that is written last and atomically: the manifest, or the report.
    """

    stage: str
    spec: dict[str, Any]
    output: Path
    inputs: dict[str, Path] = field(default_factory=dict)

    @property
    def params(self) -> str:
        """The spec as one canonical JSON string, for Snakemake's `params`."""
        return canonical_json(self.spec)


@dataclass(frozen=True)
class Runtime:
    """What changes how a stage runs, or where it finds what its spec names by content, and not what it makes.

    It never is a reason to run again, so it reaches stages through the environment and not through `params`: rules
    that are read through `ancient()` would otherwise run alone, and what depends on them would be left as it is.

    Attributes
    ----------
    device, tracker
        As configured.
    teacher, student, data
        Settings with the places where models and data lie.
    execution
        Stage → those of its settings that are marked `How`: checkpoints on disk and of activations, compiled layers.
    vram_budget_gib
        GPU memory that a stage may take.
    evaluation
        As configured, for stages that look ahead; what an evaluation does stands in its spec.
    """

    device: str
    tracker: str
    teacher: dict[str, Any]
    student: dict[str, Any]
    data: dict[str, Any]
    execution: dict[str, dict[str, Any]]
    vram_budget_gib: float
    evaluation: dict[str, Any]

    @classmethod
    def of(cls, config: Config) -> "Runtime":
        return cls(
            device=config.device,
            tracker=config.tracker,
            teacher=config.teacher.model_dump(),
            student=config.student.model_dump(),
            data=config.data.model_dump(),
            execution={
                stage: settings.model_dump(include=settings.how())
                for stage, settings in (("pretrain", config.pretrain), ("distill", config.distill))
            },
            vram_budget_gib=config.vram_budget_gib,
            evaluation=config.evaluation.model_dump(),
        )

    @property
    def sources(self) -> dict[str, dict[str, Any]]:
        """Settings of the teacher, of the student before distillation and of the data, for a model card."""
        return {"teacher": self.teacher, "student": self.student, "data": self.data}

    def processes(self, job: Job) -> int:
        """In how many processes a job runs: several only in training, and only where there are steps."""
        settings = job.spec[job.stage] if job.stage in self.execution else {}
        return settings["num_processes"] if settings.get("steps") else 1


def for_another_process(job: Job, runtime: Runtime) -> str:
    """A job and how to run it as JSON; `from_another_process` reads it."""
    return json.dumps({"job": asdict(job), "runtime": asdict(runtime)}, default=str)


def from_another_process(text: str) -> tuple[Job, Runtime]:
    """What `for_another_process` wrote."""
    given = json.loads(text)
    job = given["job"]
    inputs = {name: Path(path) for name, path in job["inputs"].items()}
    return Job(job["stage"], job["spec"], Path(job["output"]), inputs), Runtime(**given["runtime"])


class Jobs:
    """All jobs of one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = Path("results")
        self.experiment = self.results / config.experiment
        self.cache = Path(config.cache_dir)

    @cached_property
    def tokenize(self) -> Job:
        config = self.config
        key = {
            "format_version": TOKENS_FORMAT,
            "data": data_identity(config.data),
            "template": config.template,
            "max_length": config.max_length,
            "student_reasoning": config.student_reasoning,
            "tokenizer": model_identity(config.teacher, TOKENIZER),
        }
        if config.chat or config.data.may_be_chat:
            tokenizer = model_identity(config.teacher, (*TOKENIZER, "chat_template.jinja"))
            key |= {"chat": config.chat and config.chat.model_dump(), "tokenizer": tokenizer}
        folder = _keyed(self.cache / "tokens", config.data.kind, key)
        return Job("tokenize", {"key": key}, folder / "manifest.json")

    @cached_property
    def extract(self) -> Job:
        config = self.config
        key = {"format_version": STORE_FORMAT, **self._teacher_and_tokens, **config.kv.model_dump()}
        if config.kv.signals.topk_logits:
            key["topk_format"] = TOPK_FORMAT
        name = f"{_short_name(config.teacher)}-{config.kv.codec.kind}"
        folder = _keyed(self.cache / "teacher_kv", name, key)
        return Job(
            "extract",
            {"key": key},
            folder / "manifest.json",
            {"tokens": self.tokenize.output},
        )

    def extract_part(self, part: int | str) -> Job:
        """Every n-th shard of the store, for n = `extract_jobs` jobs beside each other; `extract` then seals it."""
        job = self.extract
        output = job.output.parent / "parts" / f"{part}-of-{self.config.extract_jobs}.json"
        return Job("extract", job.spec, output, job.inputs)

    def pretrain(self, arm: str, seed: int) -> Job:
        settings = self.config.pretrain.model_dump(exclude=Pretrain.how())
        if not self.config.arms[arm].pretrain_projector:
            settings = {"steps": 0} | {name: settings[name] for name in ("batch_size", "log_every")}
        spec = self._training(arm, seed, "pretrain") | {"pretrain": settings}
        folder = self._folder(arm, seed) / "projector"
        inputs = {"tokens": self.tokenize.output, "store": self.extract.output}
        return Job("pretrain", spec, folder / "manifest.json", inputs)

    def distill(self, arm: str, seed: int) -> Job:
        spec = self._training(arm, seed, "distill") | {
            "distill": self.config.distill.model_dump(exclude=Distill.how()),
            **self.config.student.model_dump(include={"export_dtype", "lora"}),
        }
        folder = self._folder(arm, seed) / "student"
        inputs = {"tokens": self.tokenize.output}
        if self.config.arms[arm].reads_store:
            inputs["store"] = self.extract.output
        if self.config.arms[arm].aligner:
            inputs["projector"] = self.pretrain(arm, seed).output
        return Job("distill", spec, folder / "manifest.json", inputs)

    def measure(self, arm: str, seed: int) -> Job:
        """Alignment of a finished student by today's metrics."""
        student = self.distill(arm, seed)
        if "projector" not in student.inputs:
            raise UserError(f"arm {arm} has no aligner, so that there is no alignment to measure")
        inputs = {"tokens": self.tokenize.output, "store": self.extract.output, "student": student.output}
        return Job("measure", {"metrics": metrics_digest()}, student.output.with_name("alignment.json"), inputs)

    def is_measured_otherwise(self, arm: str, seed: int) -> bool:
        """Whether a student that will not be trained anew has figures by other metrics than today's."""
        job = self.distill(arm, seed)
        if "projector" not in job.inputs or not job.output.is_file():
            return False
        manifest = read_json(job.output)
        measured = manifest.get("measured", {}).get("metrics", metrics_digest())
        return canonical_json(manifest["spec"]) == job.params and measured != metrics_digest()

    def evaluate(self, arm: str, seed: int) -> Job:
        spec = {"key": {"evaluation": self.config.evaluation.model_dump()}}
        inputs = {"tokens": self.tokenize.output, "student": self.distill(arm, seed).output}
        return Job("evaluate", spec, self._folder(arm, seed) / "evaluation" / "manifest.json", inputs)

    def reference(self, role: str) -> Job:
        """Evaluation of the untrained `teacher` or `student_base`; it depends on no arm, so it is shared."""
        if role not in REFERENCES:
            raise UserError(f"unknown reference {role!r}; allowed: {', '.join(REFERENCES)}")
        settings: ModelSettings = self.config.teacher if role == "teacher" else self.config.student
        how = self.config.teacher.precision if role == "teacher" else {}
        key = {
            "model": model_identity(settings, ANSWERS) | how,
            "tokens": as_the_teacher_reads(self.tokenize.spec["key"]),
            "evaluation": self.config.evaluation.model_dump(),
        }
        folder = _keyed(self.cache / "references", f"{role}-{_short_name(settings)}", key)
        return Job(
            "evaluate", {"key": key, "reference": role}, folder / "manifest.json", {"tokens": self.tokenize.output}
        )

    @cached_property
    def bench(self) -> Job:
        """Size and fidelity of every codec on a few of the run's tokens; it depends on no arm, so it is shared."""
        kv = self.config.kv.model_dump()
        key = {
            "format_version": BENCH_FORMAT,
            "store_format": STORE_FORMAT,
            **self._teacher_and_tokens,
            "read": {name: kv[name] for name in ("keys", "batch_tokens")},
            "codecs": codecs_for_report(kv["codec"]),
            "measured_tokens": REPORT_TOKENS,
            "measured_bytes": REPORT_BYTES,
            "rotated_channels": REPORT_ROTATED,
        }
        folder = _keyed(self.cache / "bench", _short_name(self.config.teacher), key)
        return Job("bench_store", {"key": key}, folder / "store.json", {"tokens": self.tokenize.output})

    @cached_property
    def report(self) -> Job:
        config = self.config
        inputs: dict[str, Path] = {role: self.reference(role).output for role in REFERENCES}
        inputs["tokens"] = self.tokenize.output
        inputs["store"] = self.extract.output
        if config.report.codecs:
            inputs["bench"] = self.bench.output
        for arm, settings in config.arms.items():
            for seed in config.seeds:
                run = f"{arm}/seed-{seed}"
                inputs[f"{run}/evaluation"] = self.evaluate(arm, seed).output
                inputs[f"{run}/student"] = self.distill(arm, seed).output
                if settings.aligner:
                    inputs[f"{run}/projector"] = self.pretrain(arm, seed).output
                if self.is_measured_otherwise(arm, seed):
                    inputs[f"{run}/alignment"] = self.measure(arm, seed).output
        spec = config.model_dump(exclude=Config.how())
        spec |= {"comparisons": [list(pair) for pair in config.declared_comparisons], "controls": config.controls}
        return Job("report", spec, self.results / "ab_report.html", inputs)

    def _folder(self, arm: str, seed: int) -> Path:
        return self.experiment / arm / f"seed-{seed}"

    @cached_property
    def _student(self) -> dict[str, Any]:
        return model_identity(self.config.student, ANSWERS)

    @property
    def _teacher_and_tokens(self) -> dict[str, Any]:
        """What the teacher's KV of the training data depends on; not the test questions."""
        teacher, tokens = self.config.teacher, as_the_teacher_reads(self.tokenize.spec["key"])
        return {
            "teacher": model_identity(teacher) | teacher.precision,
            "tokens": tokens | {"data": {name: tokens["data"][name] for name in ("source", "train")}},
        }

    def _training(self, arm: str, seed: int, stage: str) -> dict[str, Any]:
        if arm not in self.config.arms:
            raise UserError(f"unknown arm {arm!r}; arms are: {', '.join(self.config.arms)}")
        if seed not in self.config.seeds:
            raise UserError(f"seed {seed} is not configured; seeds are: {', '.join(map(str, self.config.seeds))}")
        return {
            "name": arm,
            "arm": self.config.arms[arm].model_dump(),
            "seed": seed,
            "student": self._student,
            "code": code_digest(stage),
        }


def as_the_teacher_reads(tokens: dict[str, Any]) -> dict[str, Any]:
    """Key of a token set without the setting that changes neither the teacher's ids nor the test questions."""
    return {name: value for name, value in tokens.items() if name != "student_reasoning"}


def _short_name(settings: ModelSettings) -> str:
    """Name of a model as part of a folder's: no braces, Snakemake's wildcards, and with room for what follows."""
    name = re.split("[/:]", display_name(settings.model))[-1].lower()
    return re.sub(r"[{}]", "_", name).encode()[:LONGEST_NAME].decode(errors="ignore")


def _keyed(parent: Path, name: str, key: dict[str, Any]) -> Path:
    return parent / f"{name}-{sha256_json(key)[:16]}"
