"""Measure the alignment of a finished student anew, after the metrics have changed."""

from kava.align.projector import Projector
from kava.config.arms import Arm
from kava.config.job import Job, Runtime
from kava.config.specs import MeasureSpec
from kava.data.tokens import TokenSet
from kava.device import use_device
from kava.files import read_json, sha256_file, write_json
from kava.models.load import load_student
from kava.store.reader import StoreReader
from kava.training.batches import stored_batches
from kava.training.model import DistillationModel
from kava.training.phase import judge, measure_alignment


def run(job: Job[MeasureSpec], runtime: Runtime) -> None:
    """Write `alignment.json` beside a student: what `distill` would now find, for the manifest that it names."""
    manifest, folder = job.inputs["student"], job.inputs["student"].parent
    spec = read_json(manifest)["spec"]
    device = use_device(runtime)
    tokens, store = TokenSet(job.inputs["tokens"]), StoreReader(job.inputs["store"], device)
    student = load_student(runtime.student.model_copy(update={"model": str(folder)}), device)
    projector, arm = Projector.load(folder / "projector"), Arm.model_validate(spec["arm"])
    model = DistillationModel(student, projector, arm, False, store.keys_form)
    training, held_out = (stored_batches(tokens, split, store) for split in ("train", "validation"))
    alignment = measure_alignment(model.to(device), training, held_out, spec["distill"]["batch_size"])
    warnings = judge(alignment, spec["arm"])
    measured = {"alignment": alignment, "measured": {"metrics": job.spec.metrics, "warnings": warnings}}
    write_json(
        job.output, {"stage": "measure", "spec": job.spec.model_dump(), "student": sha256_file(manifest), **measured}
    )
