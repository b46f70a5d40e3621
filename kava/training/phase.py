"""Set up and run a training phase: pretraining the projector, or distilling the student."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from kava.align.layers import settle
from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.config.base import Settings
from kava.config.code import metrics_digest
from kava.config.job import Job, Runtime
from kava.config.specs import DistillSpec, PretrainSpec
from kava.config.training import ClosedForm, Distill
from kava.data.fit import embedding_rows, no_tokens, require_a_row_for_each_token, require_fit
from kava.data.tokens import TokenSet, vocabulary_sha256
from kava.device import use_device
from kava.errors import UserError
from kava.files import sha256_file, sha256_json
from kava.kv import TENSORS
from kava.losses import signals_read
from kava.losses.hidden import Hidden, with_layers
from kava.models.capture import geometry
from kava.models.load import load_model_config, load_student, load_tokenizer
from kava.store.reader import StoreReader
from kava.training.at_steps import AtSteps
from kava.training.batches import Batches, stored_batches
from kava.training.calibrate import CALIBRATION_EXAMPLES, calibrate, calibrate_hidden
from kava.training.closed_form import solve
from kava.training.journal import TrainingRun
from kava.training.loop import train
from kava.training.measure import judge, measure_alignment
from kava.training.model import DistillationModel
from kava.training.signals import from_store
from kava.training.signals.base import StoredSplit, TeacherSignals
from kava.training.student import prepare_student, student_dtype

log = logging.getLogger("kava")

MakeTeacher = Callable[[DistillationModel, StoredSplit], TeacherSignals]
# Of the student that is trained, and its tokenizer.
MakeAtSteps = Callable[[Any, Any], AtSteps]


def stored_teacher(_model: DistillationModel, stored: StoredSplit) -> TeacherSignals:
    """What a phase reads of the teacher."""
    return from_store(stored)


def run_phase(
    job: Job[PretrainSpec] | Job[DistillSpec],
    runtime: Runtime,
    make_teacher: MakeTeacher = stored_teacher,
    make_at_steps: MakeAtSteps | None = None,
) -> tuple[DistillationModel, Any, dict[str, Any]]:
    """Train and measure.

    Parameters
    ----------
    job
        Of stage `pretrain` (the student is frozen) or `distill`.
    runtime
        Device, tracker, where the student lies, how often to save.
    make_teacher
        What the steps read of the teacher, given the model and where it is stored; a benchmark has a live one.
    make_at_steps
        What writes the student at some steps, given it and its tokenizer; None writes nothing.

    Returns
    -------
    DistillationModel, tokenizer, dict
        The trained model, the student's tokenizer, and the manifest without the hashes of exported files; of a
        projector that was solved for it has the `seconds`, which are to stand in `cost.json`.
    """
    stage, spec, inputs = job.stage, job.spec, job.inputs
    arm, seed = spec.arm, spec.seed
    settings, lora = runtime.settings(job), spec.lora if isinstance(spec, DistillSpec) else None
    device = use_device(runtime)
    tokens = TokenSet(inputs["tokens"])
    tokenizer = load_tokenizer(runtime.student)
    if vocabulary_sha256(tokenizer) != tokens.manifest["vocabulary_sha256"]:
        raise UserError(
            f"the student's tokenizer {runtime.student.model} is not the one of the token set {inputs['tokens']}; "
            "choose a student with the teacher's tokenizer"
        )
    left_out = _rows_left_out(runtime, tokens, tokenizer, arm)
    store = StoreReader(inputs["store"], device, arm.select) if "store" in inputs else None
    if store:
        log.info("teacher KV from %s", inputs["store"].parent)
    trained = stage == "distill"
    dtype = student_dtype(lora, settings.precision) if isinstance(settings, Distill) else torch.float32
    student = load_student(runtime.student, device, dtype)
    if store:
        stored = store.contents.signals.token_hidden_states or ()
        arm = with_layers(arm, student.config, store.geometry.layers, stored)
    torch.manual_seed(seed)
    if isinstance(settings, Distill):
        prepare_student(student, lora, settings.gradient_checkpointing, settings.compile_layers)
    projector = _projector(stage, arm, inputs, store, student)
    # Keys that nobody compares are left as they are: their family's RoPE need not be known.
    keys = store.keys_form if store and "kv" in signals_read(arm) else "post_rope"
    width = store.contents.hidden_width if store else None
    model = DistillationModel(student, projector, arm, trained, keys, width, left_out).to(device)
    shuffled = seed if arm.teacher_kv == "shuffled" else None
    teacher = make_teacher(model, StoredSplit(store, tokens, "train", arm, shuffled)) if store else None
    batches = Batches(tokens, "train", teacher)
    for auxiliary in model.auxiliary:
        if isinstance(auxiliary, Hidden):
            model.eval()
            first = range(min(CALIBRATION_EXAMPLES, len(batches)))
            calibrate_hidden(auxiliary, student, partial(batches.slice, first, settings.batch_size))
    measured: dict[str, Batches] = {}
    if projector is not None:
        # Whatever an arm selects is measured on all tokens of the store: its figures stand beside the other arms'.
        whole = store.whole() if store else None
        measured = {split: stored_batches(tokens, split, whole) for split in ("train", "validation")}
        model.eval()
        first = range(min(CALIBRATION_EXAMPLES, len(measured["train"])))
        read = partial(measured["train"].slice, first, settings.batch_size)
        calibrate(projector, student, read, keys, base_student=not trained)
    run = TrainingRun(job.output.parent, run_fingerprint(spec, inputs), spec.name, seed, device, runtime.tracker)
    if isinstance(settings, ClosedForm):
        facts = solve(model, batches, settings, run)
    else:
        facts = train(model, batches, settings, run, make_at_steps(student, tokenizer) if make_at_steps else None)
    alignment, warnings = None, facts.pop("warnings")
    if projector is not None:
        alignment = measure_alignment(model, measured["train"], measured["validation"], settings.batch_size)
        said = judge(alignment, arm.model_dump() if trained else None)
        facts["measured"], warnings = {"metrics": metrics_digest(), "warnings": said}, warnings + said
        facts["cka"] = dict(zip(TENSORS, projector.cka.tolist(), strict=True))
    manifest = {
        "stage": stage,
        "spec": spec.model_dump(),
        # By name, which holds the key: `kava store prune` asks who uses what.
        "inputs": {name: inputs[name].parent.name for name in ("tokens", "store") if name in inputs},
        "initial_student_sha256": sha256_json(spec.student),
        "alignment": alignment,
        "warnings": warnings,
        **facts,
    }
    return model, tokenizer, manifest


def run_fingerprint(spec: Settings, inputs: dict[str, Path]) -> str:
    """Hash of a stage's spec and of the manifests that it reads."""
    return sha256_json([spec.model_dump(), {name: sha256_file(path) for name, path in inputs.items()}])[:16]


def _rows_left_out(runtime: Runtime, tokens: TokenSet, tokenizer: Any, arm: Arm) -> torch.Tensor | None:
    """Check that the student can read the data; rows of its head that losses on logits leave out, None for none."""
    name, config = runtime.student.model, load_model_config(runtime.student)
    require_fit("student", name, config, tokens.student_reach)
    rows = embedding_rows(config)
    if rows is None or "topk_logits" not in signals_read(arm):
        return None
    require_a_row_for_each_token(name, tokenizer, rows)
    left_out = no_tokens(tokenizer, rows)
    if left_out is not None:
        log.info("logit_kd leaves out %d of the head's %d rows, which are no tokens", int(left_out.sum()), rows)
    return None if left_out is None else torch.from_numpy(left_out)


def _projector(
    stage: str, arm: Arm, inputs: dict[str, Path], store: StoreReader | None, student: Any
) -> Projector | None:
    if arm.aligner is None:
        return None
    assert store is not None, "an arm with an aligner reads a store"
    if stage == "distill":
        return Projector.load(inputs["projector"].parent)
    projector = Projector(
        settle(arm.aligner, student.config), store.geometry, geometry(student.config), arm.loss.center
    )
    projector.set_teacher_statistics(store.mean, store.std)
    return projector
