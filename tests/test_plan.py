"""What a run would take, told before it runs: against real allocations, against the budget, and to a reader."""

import gc
import json
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from command_fixtures import in_a_folder_of_its_own  # noqa: F401
from conftest import tiny_model
from torch._subclasses import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from kava.cli import main
from kava.config.arms import Arm
from kava.config.job import Runtime
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY, load_config
from kava.config.models import Teacher
from kava.device import GIB
from kava.errors import UserError
from kava.kv import Geometry
from kava.losses import cross_entropy
from kava.models.load import load_teacher
from kava.plan import check, trace
from kava.plan.geometry import read_geometry
from kava.plan.memory import of_training, state_bytes
from kava.plan.needs import ExtractionNeed
from kava.training.optimizer import make_optimizer
from kava.training.signals.base import TeacherShape
from kava.training.student import prepare_student

CONFIG = str(REPOSITORY / "config.yaml")
TEACHER = TeacherShape(Geometry(6, 2, 24), 96, "int8", top=8, token_hidden_states=range(6))
GEOMETRY = {"num_hidden_layers": 4, "hidden_size": 64, "head_dim": 16, "intermediate_size": 160, "vocab_size": 1999}
SETTINGS = trace.StepSettings(batch_size=4)
TOKENS = 60
ARMS: dict[str, dict[str, Any]] = {
    "flat": {"aligner": {"kind": "flat", "dropout": 0.0}, "train_projector": True},
    "structured": {"aligner": {"kind": "structured"}},
    "attention": {"aligner": {"kind": "structured"}, "loss": {"kind": "structural"}},
    "auxiliary": {"aligner": None, "auxiliary": {"codi": {}, "logit_kd": {}, "cka": {}, "hidden": {}}},
    "sft": {"aligner": None},
}


pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def arm(name: str) -> Arm:
    return Arm.model_validate(ARMS[name])


def allocated(run: Any) -> int:
    """Most bytes that a function holds at once beyond what was there, as torch's CPU allocator reports them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def step(model: Any, name: str, settings: trace.StepSettings, stage: str) -> None:
    """The step itself, with nothing that counts beside it."""
    module, batch = trace.training_model(model, TEACHER, arm(name), settings, stage, TOKENS)
    trace.run_step(module, batch, settings)


def without_weights(parts: dict[str, int]) -> int:
    return sum(parts.values()) - parts["weights"]


@pytest.mark.parametrize(
    ("name", "stage", "precision"),
    [
        ("flat", "pretrain", "float32"),
        ("flat", "distill", "float32"),
        ("structured", "distill", "float32"),
        ("attention", "distill", "float32"),
        ("auxiliary", "distill", "float32"),
        ("sft", "distill", "float32"),
        ("structured", "distill", "bfloat16"),
    ],
)
def test_a_planned_step_takes_what_the_same_step_allocates(name: str, stage: str, precision: str) -> None:
    model, settings = tiny_model("qwen2", **GEOMETRY), SETTINGS.model_copy(update={"precision": precision})
    planned = trace.trace_training(model.config, TEACHER, arm(name), settings, stage, TOKENS)
    real = allocated(lambda: step(model, name, settings, stage))
    assert without_weights(planned.parts) == pytest.approx(real, rel=0.05)


# In fp32 the pieces' gradients of the matrix do not all add up in place, which the plan takes for granted.
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 0.15), ("bfloat16", 0.05)])
def test_a_planned_step_that_is_made_to_fit_takes_what_the_same_step_allocates(
    precision: str, tolerance: float, monkeypatch
) -> None:
    """Checkpointed layers, logits in pieces, and the two gradients of a tied matrix, which dwarf all else."""
    monkeypatch.setattr(cross_entropy, "LOGITS_AT_ONCE", 20 * 9973)
    model = tiny_model("qwen2", **GEOMETRY | {"vocab_size": 9973, "tie_word_embeddings": True})
    settings = SETTINGS.model_copy(update={"precision": precision, "gradient_checkpointing": True})
    planned = trace.trace_training(model.config, TEACHER, arm("structured"), settings, "distill", TOKENS)
    prepare_student(model, None, True)
    real = allocated(lambda: step(model, "structured", settings, "distill"))
    assert without_weights(planned.parts) == pytest.approx(real, rel=tolerance)


@pytest.mark.parametrize("wanted", [{}, {"hidden": True}, {"blocks": 3}], ids=str)
def test_a_planned_extraction_takes_what_the_same_forward_allocates(wanted: dict[str, Any]) -> None:
    model = tiny_model("qwen2", **GEOMETRY)
    planned = trace.trace_forward(model.config, torch.float32, 4, TOKENS, **wanted)
    real = allocated(lambda: trace.forward(model, 4, TOKENS, "pre_rope", **wanted))
    assert without_weights(planned.parts) == pytest.approx(real, rel=0.05)


def test_weights_gradients_and_trained_tensors_are_those_of_the_model() -> None:
    model = tiny_model("qwen2", **GEOMETRY)
    count = sum(p.numel() for p in model.parameters())
    planned = trace.trace_training(model.config, TEACHER, arm("sft"), SETTINGS, "distill", TOKENS)
    assert planned.parts["gradients"] == 4 * count
    assert planned.parts["weights"] == pytest.approx(4 * count, rel=0.01)  # and the buffers of RoPE
    assert sum(planned.trained["student"]) == count
    assert planned.trained["projector"] == []
    frozen = trace.trace_training(model.config, TEACHER, arm("flat"), SETTINGS, "pretrain", TOKENS)
    assert frozen.trained["student"] == []
    assert "gradients" not in frozen.parts


def test_a_plan_draws_no_random_numbers_and_leaves_no_fake_tensors() -> None:
    config = tiny_model("qwen2", **GEOMETRY).config
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trace.trace_training(config, TEACHER, arm("flat"), SETTINGS, "distill", TOKENS)
    assert torch.equal(torch.rand(3), expected)
    with FakeTensorMode():
        pass  # modes nest only if the plan has left its own


@pytest.mark.parametrize("kind", ["adamw", "adamw_8bit"])
def test_optimizer_states_are_those_that_a_step_makes(kind: str) -> None:
    tensors = [torch.nn.Parameter(torch.ones(shape)) for shape in ((300, 257), (4096,), (4095,), (7,))]
    optimizer = make_optimizer(kind, [{"params": tensors, "lr": 1e-3}])
    for tensor in tensors:
        tensor.grad = torch.ones_like(tensor)
    optimizer.step()
    moments = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
    real = sum(v.nbytes for state in optimizer.state.values() for name, v in state.items() if name in moments)
    assert state_bytes(kind, [tensor.numel() for tensor in tensors])[0] == real


def test_paged_states_count_and_are_told_apart() -> None:
    total, paged = state_bytes("paged_adamw_8bit", [1_000_000, 5000])
    assert total == state_bytes("adamw_8bit", [1_000_000, 5000])[0]
    assert paged == 2_000_000


def plan(capsys, *arguments: str) -> tuple[int, dict[str, Any]]:
    status = main(["plan", "--configfile", CONFIG, "--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_the_demo_fits_and_the_plan_says_so(capsys) -> None:
    status, found = plan(capsys)
    assert (status, found["fits"], found["vram_budget_gib"]) == (0, True, 8)
    assert set(found["stages"]) == {"extract", "pretrain", "distill", "evaluate_teacher", "evaluate_student"}
    for stage in found["stages"].values():
        assert stage["peak_gib"] == pytest.approx(sum(stage["parts"].values()), abs=0.01)
        assert stage["parts"]["cuda_context"] == pytest.approx(0.45)
    assert set(found["stages"]["distill"]["arms"]) == {"flat", "structured", "sft"}
    assert found["tokens"] == {"examples": 1100, "count": 79_007, "known": False}
    # The demo's store has 37.5 MB, of which entropy coding has taken a part.
    assert 0.0375 < found["disk"]["store_gb"] < 0.05
    assert {"checkpoints_gb", "free_gb"} < found["disk"].keys()


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["ablation", "ablation-signal"])
def test_every_kind_of_arm_can_be_planned(capsys, preset: str) -> None:
    status, found = plan(capsys, "--preset", preset)
    assert status == 0
    assert set(found["stages"]["distill"]["arms"]) == set(load_config(None, {"preset": preset}).arms)


@pytest.mark.slow
def test_the_reference_preset_is_planned_stage_by_stage(capsys) -> None:
    status, found = plan(capsys, "--preset", "qwen2.5-8gb")
    stages = found["stages"]
    assert status == int(not found["fits"])
    assert found["fits"] == all(stage["fits"] for stage in stages.values())
    assert stages["extract"]["parts"]["weights"] == pytest.approx(1.06, abs=0.02)  # NF4, the embedding in bf16
    distill = stages["distill"]
    assert set(distill["arms"]) == {"flat", "structured", "sft", "shuffled"}
    assert distill["arm"] == "flat"
    assert distill["arms"]["shuffled"] == distill["arms"]["structured"]
    assert distill["parts"]["weights"] == pytest.approx(494_032_768 * 4 / GIB, abs=0.01)
    # 146,849,792 weights, gradients, and two 8-bit moments.
    assert distill["parts"]["projector"] == pytest.approx(146_849_792 * 10.03 / GIB, abs=0.02)
    assert 4 < distill["peak_gib"] < 12
    assert distill["fits"] or any(mend["fits"] for mend in distill["mends"])
    # 1,390,694 tokens, 14,336 values each, 8.75 bits per value, and a few bytes per token for ids and segments.
    assert found["disk"]["store_gb"] == pytest.approx(21.8, abs=0.1)
    assert found["tokens"] == {"examples": 7473, "count": 1_390_694, "known": False}


def test_a_budget_that_is_too_small_is_refused_with_the_number_and_the_mend(capsys) -> None:
    assert main(["plan", "--configfile", CONFIG, "--set", "vram_budget_gib=1.05"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "distill of flat needs 0.1" in shown
    assert "GiB of torch's allocator, which is capped at 0.05 GiB (vram_budget_gib: 1.05)" in shown
    assert "distill.batch_size: 16, distill.accumulation: 2" in shown


def test_a_stage_on_a_gpu_stops_at_its_start_and_one_on_a_cpu_does_not(monkeypatch) -> None:
    config = load_config(CONFIG, {"vram_budget_gib": 1.05})
    made = Jobs(config)
    job, runtime = made.distill("sft", 42), Runtime.of(config)
    job.inputs["tokens"].parent.mkdir(parents=True)
    job.inputs["tokens"].write_text(json.dumps({"spec": made.tokenize.spec.key.model_dump()}))
    check.check_fits(job, runtime)
    monkeypatch.setattr(check, "choose_device", lambda _: torch.device("cuda"))
    with pytest.raises(UserError, match=r"distill of sft needs .* capped at 0\.05 GiB .*`distill\.batch_size: 16"):
        check.check_fits(job, runtime)
    check.check_fits(job, Runtime.of(load_config(CONFIG)))


def test_every_stage_has_a_need(monkeypatch) -> None:
    made = Jobs(load_config(CONFIG))
    monkeypatch.setattr(
        check, "read_json", lambda _: {"spec": made.tokenize.spec.key.model_dump() | made.extract.spec.key.model_dump()}
    )
    jobs = [made.extract, made.pretrain("flat", 42), made.distill("flat", 42), made.evaluate("flat", 42)]
    jobs += [made.reference(role) for role in ("teacher", "student_base")]
    for job in jobs:
        _, need = check.need_of(job, Runtime.of(made.config))
        assert 0.45 * GIB < need.memory().peak < GIB, job.stage


def test_nf4_takes_4_127_bits_of_the_layers_matrices_alone() -> None:
    source = load_config(None, {"preset": "qwen2.5-8gb"}).teacher
    kv = load_config(CONFIG).kv.model_copy(update={"batch_tokens": 8})
    counts = trace.parameter_counts(read_geometry(source))
    weights = ExtractionNeed(source, 8, kv).memory().parts["weights"]
    assert weights == pytest.approx(counts.linear * 4.127 / 8 + (counts.all - counts.linear) * 2, rel=1e-4)


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
@pytest.mark.parametrize(
    "how", [{"quantization": "nf4"}, {"quantization": "nf4", "double_quantization": False}, {"quantization": "int8"}]
)
def test_planned_weights_of_a_quantised_teacher_are_those_that_bitsandbytes_makes(
    tmp_path: Path, family: str, how: dict[str, Any]
) -> None:
    wide = {"n_embd": 256} if family == "gpt2" else {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
    tiny_model(family, **wide).save_pretrained(tmp_path)
    source = Teacher(**{"model": str(tmp_path), "dtype": "bfloat16", **how})
    gc.collect()
    teacher = load_teacher(source, torch.device("cpu"))
    real = sum(p.nbytes for p in teacher.parameters())
    for module in teacher.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            state = module.weight.quant_state
            real += state.absmax.nbytes + (state.state2.absmax.nbytes if state.nested else 0)
        elif isinstance(module, bitsandbytes.nn.Linear8bitLt):
            real += module.weight.SCB.nbytes
    kv = load_config(CONFIG).kv.model_copy(update={"batch_tokens": 8})
    planned = ExtractionNeed(source, 8, kv).memory().parts["weights"]
    assert planned == pytest.approx(real, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"student": {"model": "nobody/unheard-of", "revision": "0" * 40}}, "fetch its config.json with `hf download"),
        ({"student": {"model": "./missing"}}, "model directory ./missing does not exist"),
        ({"vram_budget_gib": 0.5}, "vram_budget_gib: Input should be greater than 1"),
        ({"preset": "qwen2.5-80gb"}, "unknown preset 'qwen2.5-80gb'; did you mean 'qwen2.5-8gb'"),
    ],
)
def test_bad_input_is_one_sentence(capsys, settings: dict[str, Any], message: str) -> None:
    given = [word for name, value in settings.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    assert main(["plan", "--configfile", CONFIG, *given]) == 1
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.out == ""
    assert len(shown.err.strip().splitlines()) == 1


def test_several_processes_have_buckets_as_large_as_the_gradients() -> None:
    config = tiny_model("qwen2", **GEOMETRY).config
    traced = trace.trace_training(config, TEACHER, arm("sft"), SETTINGS, "distill", TOKENS)
    alone, two = (of_training(traced, "adamw", 2, processes) for processes in (1, 2))
    assert two.parts["buckets"] == alone.parts["gradients"]
    assert two.peak - alone.peak == two.parts["buckets"]
