"""What a run is: the pydantic models of `config.yaml`, with every default and its reason.

The JSON schema (`workflow/schemas/config.schema.json`) and the table of settings (`docs/configuration.md`) are
generated from these models by `kava config --write-docs`; a test fails when they drift.
"""

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from kava.config.arms import STRUCTURED, Arm
from kava.config.base import How, Name, Place, Positive, Seed, Settings, cache_from_environment
from kava.config.data import Data
from kava.config.kv import (
    BudgetSelection,
    KvStore,
    RkvImportance,
    RkvSelection,
    RkvWindowImportance,
    RkvWindowSelection,
    ScopedSelection,
)
from kava.config.models import ModelSettings, Student, Teacher
from kava.config.names import check_names
from kava.config.signals import check_signals
from kava.config.training import Distill, Pretrain, Pretraining

Tracker = Literal["none", "tensorboard", "wandb", "trackio"]
# Of every run, the models that are judged and not trained.
REFERENCES = ("teacher", "student_base")


class Chat(Settings):
    """The prompt of the template as the user's turn, the answer as the assistant's; for teacher and student alike."""

    system: str | None = Field(None, description="the system's turn; null: what the chat template has by itself")


class Evaluation(Settings):
    batch_size: Positive = Field(16, description="questions per generate call, and examples per scored forward")
    max_new_tokens: Positive = Field(256, description="longest answer in tokens")
    generate: bool = Field(
        True,
        description="have answers written and marked; false: judge by the likelihood of the gold answers alone, which "
        "takes seconds. Of matter where data.kind has marks",
    )
    teacher: Literal["generate", "likelihood"] = Field(
        "generate",
        description="generate: the teacher is judged as students are; likelihood: by the likelihood of the gold "
        "answers alone, and it writes none, which a teacher that is streamed could not",
        exclude_if=lambda how: how == "generate",
    )
    at_steps: list[Positive] = Field(
        default=[],
        description="optimizer steps, increasing, after which the student is kept as it is then, and judged by the "
        "validation questions; a whole model each on disk",
    )

    def of_teacher(self) -> Self:
        """As the teacher is judged."""
        return self.of_student().model_copy(update={"generate": self.generate and self.teacher == "generate"})

    def of_student(self) -> Self:
        """As students are judged."""
        return self.model_copy(update={"teacher": "generate"})

    @field_validator("at_steps")
    @classmethod
    def _increasing(cls, steps: list[int]) -> list[int]:
        if steps != sorted(set(steps)):
            raise ValueError(f"at_steps {steps} do not increase; name each step once, the first one first")
        return steps


def _check_template(template: str) -> None:
    """Only plain fields, since evaluation asks by the harness's own template language, which knows no other."""
    try:
        fields = [field for field in Formatter().parse(template) if field[1] is not None]
    except ValueError as error:
        raise ValueError(
            f"template {template!r} has a brace that is not closed or not opened ({error}); write {{{{ and }}}} for "
            "braces that are text"
        ) from None
    for _, name, form, conversion in fields:
        if name in ("question", "answer") and (form or conversion or f"{{{name}}}" not in template):
            raise ValueError(
                f"template {template!r} changes how {name} is written, in training and not in evaluation; write "
                f"{{{name}}} alone"
            )
    if not template.endswith("{answer}") or sorted(str(name) for _, name, _, _ in fields) != ["answer", "question"]:
        raise ValueError(
            f"template {template!r} must contain {{question}} once and end in {{answer}}, and no other field, "
            "so that the prompt is what stands before the answer; write {{ and }} for braces that are text"
        )


class Report(Settings):
    codecs: bool = Field(
        False,
        description="measure size and fidelity of every codec on a few of the run's tokens (`bench_store`), for a "
        "chart and a table of the report; `transform` only where the teacher has at most 1,024 channels of K",
    )


class Config(Settings):
    """One experiment: a teacher store, arms, seeds, and the report over them."""

    preset: str = Field("demo", description="file of kava/config/presets/ that every other key overrides")
    experiment: Name = Field("demo", description="name of the folder results/<experiment>/")
    notes: str = Field("", description="text for results/<experiment>/record.yaml; changes no result")
    cache_dir: Annotated[Place, How] = Field(
        default_factory=lambda: cache_from_environment() or "results",
        description="folder where token sets and teacher stores live; `~` and `$VARIABLES` are replaced; may be "
        "shared; default: $KAVA_CACHE, or results",
    )
    extract_jobs: Annotated[Positive, How] = Field(
        1, description="extraction jobs that share a store's shards, one GPU each"
    )
    teacher: Teacher
    student: Student
    data: Data
    template: str = Field(
        default_factory=lambda given: given["data"].template,
        description="text of one example; must end in {answer}, and braces that are text are written twice; default: "
        "`Question: {question}\\nAnswer: {answer}`, of kind text `{question}{answer}`: prompt and response as they are",
    )
    chat: Chat | None = Field(
        None, description="speak by the chat template of the teacher's tokenizer; null: the template as it stands"
    )
    student_reasoning: Literal["full", "equations"] = Field(
        "full", description="equations: the student reads only the <<…>> of the reasoning, the teacher all of it"
    )
    max_length: Positive = Field(512, description="longer examples are dropped and counted, never cut")
    kv: KvStore = KvStore()
    pretrain: Pretraining = Pretrain()
    distill: Distill = Distill()
    evaluation: Evaluation = Evaluation()
    report: Report = Report()
    arms: dict[Name, Arm] = Field(min_length=1, description="name → arm; null removes an arm of the preset")
    references: dict[Name, ModelSettings] = Field(
        default={},
        description="name → a further model that is judged as it is, as the base student is, and never trained: a line "
        "of the report; its tokenizer has to be the teacher's",
    )
    seeds: list[Seed] = Field(
        min_length=1, description="every arm is trained once with each seed, from 0 to 4294967295 (2**32 - 1)"
    )
    comparisons: list[tuple[str, str]] | None = Field(
        None, description="declared pairs [a, b]; null: structured against flat, then every KV arm against controls"
    )
    tracker: Annotated[Tracker, How] = Field("none", description="besides metrics.jsonl; an optional package")
    device: Annotated[Literal["auto", "cpu", "cuda"], How] = "auto"
    vram_budget_gib: Annotated[float, How] = Field(
        8, gt=1, description="memory of the GPU that a stage may take; torch's allocator gets 1 GiB less"
    )

    @model_validator(mode="after")
    def _check_across_fields(self) -> Self:
        _check_template(self.template)
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat a value; each seed is one run of every arm")
        if late := [step for step in self.evaluation.at_steps if step > self.distill.steps]:
            raise ValueError(
                f"evaluation.at_steps has {late[0]}, and distill.steps is {self.distill.steps}; remove it, or train "
                "for longer"
            )
        if taken := [name for name in (*REFERENCES, "student", "data") if name in self.references]:
            raise ValueError(f"references.{taken[0]} has the name of what every run has; choose another")
        check_names(self.experiment, self.cache_dir, self.arms)
        if not self.data.has_reasoning:
            self._check_without_reasoning()
        for name, arm in self.arms.items():
            self._check_selection_on_reading(name, arm)
            check_signals(f"arms.{name}", arm, self.kv.signals, self.student_reasoning)
            self.pretrain.check(name, arm)
        self._check_comparisons(self.comparisons or [])
        return self

    def _check_without_reasoning(self) -> None:
        """What needs the tokens of a reasoning, or their end, would be refused by the first example of a run."""
        rows = f"rows of data.kind: {self.data.kind} have no reasoning apart from the answer"
        if self.student_reasoning != "full":
            raise ValueError(f"student_reasoning: {self.student_reasoning}, but {rows}; set student_reasoning: full")
        chosen = {"kv.select": self.kv.select, "kv.signals.importance": self.kv.signals.importance}
        chosen |= {f"arms.{name}.select": arm.select for name, arm in self.arms.items()}
        for where, settings in chosen.items():
            if (
                isinstance(settings, BudgetSelection | RkvImportance | RkvWindowImportance)
                and settings.candidates == "reasoning"
            ):
                raise ValueError(f"{where}.candidates: reasoning, but {rows}; set {where}.candidates: all")
        if "reasoning" in self.kv.signals.topk_segments:
            raise ValueError(
                f"kv.signals.topk_segments: {self.kv.signals.topk_segments}, but {rows}; set topk_segments: [answer]"
            )
        for name, arm in self.arms.items():
            if arm.auxiliary.codi:
                raise ValueError(
                    f"arms.{name}.auxiliary.codi reads where the reasoning ends, but {rows}; set auxiliary.codi: null"
                )
            if set(arm.segments) == {"reasoning"}:
                raise ValueError(f"arms.{name}.segments: [reasoning], but {rows}; set segments: [prompt, answer]")

    def _check_comparisons(self, pairs: list[tuple[str, str]]) -> None:
        for pair in pairs:
            for name in pair:
                if name not in self.arms:
                    raise ValueError(f"comparisons name the arm {name!r}; arms are: {', '.join(self.arms)}")
        twice = [pair for i, pair in enumerate(pairs) if set(pair) in map(set, pairs[:i])]
        same = [pair for pair in pairs if pair[0] == pair[1]]
        if wrong := same + twice:
            raise ValueError(
                f"comparisons hold {list(wrong[0])}, {'an arm and itself' if same else 'two arms more than once'}; "
                "remove it, since every comparison makes the others' adjusted p-values larger"
            )

    def _check_selection_on_reading(self, name: str, arm: Arm) -> None:
        """A store that cannot serve an arm's selection would be found out hours after it was extracted."""
        select, where = arm.select, f"arms.{name}.select"
        reads_kv = arm.aligner or arm.auxiliary.cka
        if reads_kv and isinstance(self.kv.select, ScopedSelection) and self.kv.select.scope == "head":
            raise ValueError(
                f"kv.select {self.kv.select.kind} with scope: head keeps other tokens in each head, and arms.{name} "
                "compares KV token by token; set scope: example"
            )
        if reads_kv and self.student_reasoning != "full" and self.kv.keys == "post_rope":
            raise ValueError(
                f"student_reasoning: {self.student_reasoning} moves keys to other positions, and kv.keys: post_rope "
                "stores them rotated to their own; set kv.keys: pre_rope"
            )
        if select is None or select.kind == "full":
            if self.student_reasoning != "full" and self.kv.select.kind != "full" and reads_kv:
                raise ValueError(
                    f"student_reasoning: {self.student_reasoning} interpolates between neighbouring tokens, and "
                    f"kv.select {self.kv.select.kind} drops some; set kv.select: {{kind: full}}"
                )
            return
        if self.student_reasoning != "full":
            raise ValueError(
                f"student_reasoning: {self.student_reasoning} interpolates between neighbouring tokens, and {where} "
                "drops some; remove it"
            )
        if self.kv.select.kind != "full":
            raise ValueError(
                f"{where} chooses from all tokens, and kv.select keeps some; set kv.select: {{kind: full}}"
            )
        if isinstance(select, ScopedSelection) and select.scope == "head":
            raise ValueError(f"{where}.scope is head, and KV is compared token by token; set scope: example")
        if isinstance(select, RkvSelection | RkvWindowSelection) and self.kv.signals.importance != select.scores:
            wanted = select.scores.model_dump()
            raise ValueError(f"{where} needs the scores that kv.signals.importance: {wanted} stores")

    def reference(self, role: str) -> ModelSettings:
        """A model that is judged and not trained: of `REFERENCES`, or of `references`."""
        return {"teacher": self.teacher, "student_base": self.student, **self.references}[role]

    @property
    def models(self) -> dict[str, ModelSettings]:
        """All models that a run reads, by their settings' names."""
        return {"teacher": self.teacher, "student": self.student, **self.references}

    @property
    def control_arms(self) -> list[str]:
        """Arms that a KV arm has to beat."""
        return [name for name, arm in self.arms.items() if arm.is_control]

    @property
    def declared_comparisons(self) -> list[tuple[str, str]]:
        """Pairs (a, b) that the report tests, the primary one first."""
        if self.comparisons is not None:
            return self.comparisons
        controls = self.control_arms
        treated = [name for name in self.arms if name not in controls]
        kinds = {name: aligner.kind for name in treated if (aligner := self.arms[name].aligner)}
        structured = [name for name, kind in kinds.items() if kind in STRUCTURED]
        flat = [name for name, kind in kinds.items() if kind not in STRUCTURED]
        return [(a, b) for a in structured for b in flat] + [(a, b) for a in treated for b in controls]
