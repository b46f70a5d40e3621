"""The stages of a run: what each depends on, what it reads and where it writes.

Snakemake's rules and `kava STAGE` at a prompt take their paths and parameters from here, so both do the same.
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kava.config.answers import TeacherAnswers
from kava.config.base import Settings
from kava.config.benchmark import REPORT_BYTES, REPORT_ROTATED, REPORT_TOKENS, codecs_for_report
from kava.config.code import code_digest, metrics_digest
from kava.config.identity import ANSWERS, TOKENIZER, data_identity, model_identity, short_name
from kava.config.job import Job
from kava.config.schema import REFERENCES, Config
from kava.config.specs import (
    BenchKey,
    BenchSpec,
    DataIdentity,
    DistillSpec,
    EvaluateSpec,
    EvaluationKey,
    ExtractSpec,
    MeasureSpec,
    NoPretraining,
    PretrainSpec,
    ReportSpec,
    StoreKey,
    TeacherReading,
    TeacherTokens,
    TokenizeSpec,
    TokensKey,
    WriteKey,
    WriteSpec,
)
from kava.config.training import ClosedForm, Pretrain
from kava.errors import UserError
from kava.files import canonical_json, read_json, sha256_json

ANSWERS_FORMAT = 1
TOKENS_FORMAT = 3
STORE_FORMAT = 2
# Of top-k logits, in the key of stores that hold some: since 2 they are of the tokenizer's tokens, without padded rows.
TOPK_FORMAT = 2
BENCH_FORMAT = 1
# Of the numbers that an evaluation finds: since 1 the likelihood of gold answers, and agreement with the teacher.
SCORES_FORMAT = 1


class Jobs:
    """All jobs of one configuration."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.results = Path("results")
        self.experiment = self.results / config.experiment
        self.cache = Path(config.cache_dir)

    @cached_property
    def write(self) -> Job[WriteSpec] | None:
        """The teacher's answers to the training questions; None where those of the data are read."""
        config, answers = self.config, self.config.data.answers
        if not isinstance(answers, TeacherAnswers):
            return None
        template, chat = config.template, config.chat
        files = (*ANSWERS, "chat_template.jinja") if self._with_chat else ANSWERS
        key = WriteKey(
            format_version=ANSWERS_FORMAT,
            teacher=model_identity(config.teacher, files) | config.teacher.precision,
            data=self._training_data,
            template=template,
            chat=chat,
            answers=answers,
        )
        folder = _keyed(self.cache / "answers", short_name(config.teacher), key)
        return Job("write", WriteSpec(key=key), folder / "manifest.json")

    @cached_property
    def tokenize(self) -> Job[TokenizeSpec]:
        config, write, with_chat = self.config, self.write, self._with_chat
        key = TokensKey(
            format_version=TOKENS_FORMAT,
            data=self._data,
            template=config.template,
            max_length=config.max_length,
            student_reasoning=config.student_reasoning,
            tokenizer=model_identity(config.teacher, (*TOKENIZER, "chat_template.jinja") if with_chat else TOKENIZER),
            chat=config.chat,
            answers=write.spec.key if write else None,
        )
        folder = _keyed(self.cache / "tokens", config.data.kind, key)
        inputs = {"answers": write.output} if write else {}
        return Job("tokenize", TokenizeSpec(key=key), folder / "manifest.json", inputs)

    @cached_property
    def extract(self) -> Job[ExtractSpec]:
        config = self.config
        key = StoreKey(
            **config.kv.model_dump(),
            format_version=STORE_FORMAT,
            teacher=self._teacher,
            tokens=self._training_tokens,
            topk_format=TOPK_FORMAT if config.kv.signals.topk_logits else None,
        )
        name = f"{short_name(config.teacher)}-{config.kv.codec.kind}"
        folder = _keyed(self.cache / "teacher_kv", name, key)
        return Job("extract", ExtractSpec(key=key), folder / "manifest.json", {"tokens": self.tokenize.output})

    def extract_part(self, part: int | str) -> Job[ExtractSpec]:
        """Every n-th shard of the store, for n = `extract_jobs` jobs beside each other; `extract` then seals it."""
        job = self.extract
        return replace(job, output=job.output.parent / "parts" / f"{part}-of-{self.config.extract_jobs}.json")

    def pretrain(self, arm: str, seed: int) -> Job[PretrainSpec]:
        settings: Pretrain | ClosedForm | NoPretraining = self.config.pretrain.without_how()
        if not self.config.arms[self._known(arm, seed)].pretrain_projector:
            settings = NoPretraining.in_place_of(self.config.pretrain)
        spec = PretrainSpec(**self._training(arm, seed, "pretrain"), pretrain=settings)
        folder = self._folder(arm, seed) / "projector"
        inputs = {"tokens": self.tokenize.output, "store": self.extract.output}
        return Job("pretrain", spec, folder / "manifest.json", inputs)

    def distill(self, arm: str, seed: int) -> Job[DistillSpec]:
        student = self.config.student
        spec = DistillSpec(
            **self._training(arm, seed, "distill"),
            distill=self.config.distill.without_how(),
            export_dtype=student.export_dtype,
            lora=student.lora,
            at_steps=self.config.evaluation.at_steps or None,
        )
        folder = self._folder(arm, seed) / "student"
        inputs = {"tokens": self.tokenize.output}
        if spec.arm.reads_store:
            inputs["store"] = self.extract.output
        if spec.arm.aligner:
            inputs["projector"] = self.pretrain(arm, seed).output
        return Job("distill", spec, folder / "manifest.json", inputs)

    def measure(self, arm: str, seed: int) -> Job[MeasureSpec]:
        """Alignment of a finished student by today's metrics."""
        student = self.distill(arm, seed)
        if "projector" not in student.inputs:
            raise UserError(f"arm {arm} has no aligner, so that there is no alignment to measure")
        inputs = {"tokens": self.tokenize.output, "store": self.extract.output, "student": student.output}
        spec = MeasureSpec(metrics=metrics_digest())
        return Job("measure", spec, student.output.with_name("alignment.json"), inputs)

    def is_measured_otherwise(self, arm: str, seed: int) -> bool:
        """Whether a student that will not be trained anew has figures by other metrics than today's."""
        job = self.distill(arm, seed)
        if "projector" not in job.inputs or not job.output.is_file():
            return False
        manifest = read_json(job.output)
        measured = manifest.get("measured", {}).get("metrics", metrics_digest())
        return canonical_json(manifest["spec"]) == job.params and measured != metrics_digest()

    def evaluate(self, arm: str, seed: int) -> Job[EvaluateSpec]:
        evaluation = self.config.evaluation.of_student()
        spec = EvaluateSpec(key=EvaluationKey(scores=SCORES_FORMAT, evaluation=evaluation))
        teacher = self.reference("teacher").output
        inputs = {"tokens": self.tokenize.output, "student": self.distill(arm, seed).output, "teacher": teacher}
        return Job("evaluate", spec, self._folder(arm, seed) / "evaluation" / "manifest.json", inputs)

    @property
    def references(self) -> tuple[str, ...]:
        """Models that are judged and not trained, the teacher first."""
        return (*REFERENCES, *self.config.references)

    def reference(self, role: str) -> Job[EvaluateSpec]:
        """Evaluation of an untrained model of `references`; it depends on no arm, so it is shared."""
        if role not in self.references:
            raise UserError(f"unknown reference {role!r}; allowed: {', '.join(self.references)}")
        settings, evaluation = self.config.reference(role), self.config.evaluation
        evaluation = evaluation.of_teacher() if role == "teacher" else evaluation.of_student()
        inputs, beside_the_teacher = {"tokens": self.tokenize.output}, {}
        if role != "teacher":
            teacher, reasoning = self.reference("teacher"), self.config.student_reasoning
            inputs["teacher"] = teacher.output
            beside_the_teacher = {"teacher": sha256_json(teacher.spec.key.model_dump())}
            beside_the_teacher |= {"student_reasoning": reasoning} if reasoning != "full" else {}
        key = EvaluationKey(
            scores=SCORES_FORMAT,
            model=self._judged(role),
            tokens=self.tokenize.spec.key.as_the_teacher_reads(),
            evaluation=evaluation.model_copy(update={"at_steps": []}),
            validation=True if self.config.evaluation.at_steps else None,
            **beside_the_teacher,
        )
        folder = _keyed(self.cache / "references", f"{role}-{short_name(settings)}", key)
        spec = EvaluateSpec(key=key, reference=role)
        return Job("evaluate", spec, folder / "manifest.json", inputs)

    @cached_property
    def bench(self) -> Job[BenchSpec]:
        """Size and fidelity of every codec on a few of the run's tokens; it depends on no arm, so it is shared."""
        kv = self.config.kv
        key = BenchKey(
            format_version=BENCH_FORMAT,
            store_format=STORE_FORMAT,
            teacher=self._teacher,
            tokens=self._training_tokens,
            read=TeacherReading(keys=kv.keys, batch_tokens=kv.batch_tokens),
            codecs=codecs_for_report(kv.codec),
            measured_tokens=REPORT_TOKENS,
            measured_bytes=REPORT_BYTES,
            rotated_channels=REPORT_ROTATED,
        )
        folder = _keyed(self.cache / "bench", short_name(self.config.teacher), key)
        return Job("bench_store", BenchSpec(key=key), folder / "store.json", {"tokens": self.tokenize.output})

    @cached_property
    def report(self) -> Job[ReportSpec]:
        config = self.config
        inputs: dict[str, Path] = {role: self.reference(role).output for role in REFERENCES}
        inputs |= {f"reference/{name}": self.reference(name).output for name in self.config.references}
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
        declared = {"comparisons": config.declared_comparisons, "controls": config.control_arms}
        spec = ReportSpec(**config.model_dump(exclude=config.how()) | declared)
        return Job("report", spec, self.results / "ab_report.html", inputs)

    def _folder(self, arm: str, seed: int) -> Path:
        return self.experiment / arm / f"seed-{seed}"

    @cached_property
    def _data(self) -> DataIdentity:
        return DataIdentity(**data_identity(self.config.data))

    @property
    def _training_data(self) -> DataIdentity:
        return self._data.model_copy(update={"test": None})

    @property
    def _with_chat(self) -> bool:
        """Whether the chat template words the rows."""
        return self.config.chat is not None or self.config.data.may_be_chat

    def _judged(self, role: str) -> dict[str, Any]:
        """What the answers of a reference depend on of its model."""
        if role == "student_base":
            return self._student
        how = self.config.teacher.precision if role == "teacher" else {}
        return model_identity(self.config.reference(role), ANSWERS) | how

    @cached_property
    def _student(self) -> dict[str, Any]:
        student = self.config.student
        cut = student.model_dump(mode="json", include={"keep_layers"}, exclude_none=True)
        return model_identity(student, ANSWERS) | cut

    @cached_property
    def _teacher(self) -> dict[str, Any]:
        """What the teacher's KV depends on besides the tokens."""
        return model_identity(self.config.teacher) | self.config.teacher.precision

    @property
    def _training_tokens(self) -> TeacherTokens:
        """What the teacher reads of the training data, on which test questions have no bearing."""
        tokens = self.tokenize.spec.key.as_the_teacher_reads()
        return tokens.model_copy(update={"data": self._training_data})

    def _known(self, arm: str, seed: int) -> str:
        """The arm, which is configured, as the seed is."""
        if arm not in self.config.arms:
            raise UserError(f"unknown arm {arm!r}; arms are: {', '.join(self.config.arms)}")
        if seed not in self.config.seeds:
            raise UserError(f"seed {seed} is not configured; seeds are: {', '.join(map(str, self.config.seeds))}")
        return arm

    def _training(self, arm: str, seed: int, stage: str) -> dict[str, Any]:
        return {
            "name": self._known(arm, seed),
            "arm": self.config.arms[arm],
            "seed": seed,
            "student": self._student,
            "code": code_digest(stage),
        }


def _keyed(parent: Path, name: str, key: Settings) -> Path:
    return parent / f"{name}-{sha256_json(key.model_dump())[:16]}"
