"""How a phase is wired: what seed, store, arm and projector of a job reach, by the real stages on tiny models."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from conftest import tiny_model
from safetensors.torch import load_file

import kava.demo
from kava.align.projector import Projector
from kava.bench.workspace import BenchJobs, free, quiet
from kava.config.job import Job, Runtime
from kava.config.load import REPOSITORY, load_config
from kava.config.models import ModelSettings
from kava.config.training import ClosedForm
from kava.data import tokenize
from kava.data.tokens import Segment, TokenSet
from kava.errors import UserError
from kava.files import read_json
from kava.kv import TENSORS, KeysValues
from kava.metrics import Pair, alignment_metrics
from kava.models.capture import capture
from kava.models.load import load_tokenizer, second_model_allowed
from kava.store.reader import StoreReader
from kava.teacher import extract
from kava.training import distill, measure, phase, pretrain
from kava.training.batches import Batches, stored_batches
from kava.training.finish import finish
from kava.training.order import partners

TRAIN, HELD_OUT = 20, 4
STEPS = {"steps": 2, "batch_size": 4, "accumulation": 1, "log_every": 1, "precision": "float32"}
SEEDS = (1, 4)
OF_ALIGNMENT = ("alignment", "measured", "warnings")
STRUCTURED = {"kind": "structured"}
ARMS: dict[str, Any] = {
    "sft": {"aligner": None},
    "fitted": {"aligner": STRUCTURED, "pretrain_projector": True},
    "flat": {"aligner": {"kind": "flat", "dropout": 0.5}, "train_projector": True},
    "raw": {"aligner": STRUCTURED, "loss": {"kind": "mse", "center": False}},
    "few": {"aligner": STRUCTURED, "select": {"kind": "random", "budget": 3}},
    "shuffled": {"aligner": STRUCTURED, "teacher_kv": "shuffled"},
}


class Phase(NamedTuple):
    """What a phase made, and what it trained on."""

    model: Any
    manifest: dict[str, Any]
    batches: Batches


class World:
    """A token set and a store on disk, and the jobs of every arm over them."""

    def __init__(self, folder: Path, kv: dict[str, Any] | None = None) -> None:
        demo = {"model": str(Path(kava.demo.__file__).parent / "teacher")}
        tokenizer = load_tokenizer(ModelSettings(**demo))
        models = {}
        for role, layers in (("teacher", 3), ("student", 2)):
            shape = {"vocab_size": len(tokenizer), "num_hidden_layers": layers, "max_position_embeddings": 256}
            # Of another end token than the one that is trained.
            model = tiny_model("qwen2", **shape, eos_token_id=5)
            for layer in model.model.layers:  # as trained models have it: constant biases on keys
                torch.nn.init.normal_(layer.self_attn.k_proj.bias, std=2.0)
            model.save_pretrained(folder / role)
            tokenizer.save_pretrained(folder / role)
            models[role] = {"model": str(folder / role)}
        settings: dict[str, Any] = {
            "teacher": models["teacher"] | {"quantization": "none"},
            "student": models["student"] | {"lora": {"rank": 2}, "export_dtype": "bfloat16"},
            "data": {"train": TRAIN, "validation": HELD_OUT, "test": 2},
            "arms": ARMS | {"structured": None},
            "kv": {"keys": "post_rope"} | (kv or {}),
            "pretrain": STEPS,
            "distill": STEPS | {"student_lr": 1e-3},
            "seeds": list(SEEDS),
            "device": "cpu",
        }
        config = load_config(REPOSITORY / "config.yaml", settings)
        self.plan, self.runtime = BenchJobs(config, folder), Runtime.of(config)
        with quiet(), second_model_allowed():
            tokenize.run(self.plan.tokenize, self.runtime)
            extract.run(self.plan.extract, self.runtime)
        self.tokens = TokenSet(self.plan.tokenize.output)

        self.store = StoreReader(self.plan.extract.output)
        self.phases: dict[tuple[str, int], Phase] = {}

    def run(self, job: Job) -> Phase:
        """A phase of its own, in the folder of its job."""
        batches: list[Batches] = []

        def noted(tokens: TokenSet, split: str, teacher: Any) -> Batches:
            batches.append(Batches(tokens, split, teacher))
            return batches[0]

        job.output.parent.mkdir(parents=True, exist_ok=True)
        with quiet(), second_model_allowed(), pytest.MonkeyPatch.context() as patch:
            patch.setattr(phase, "Batches", noted)
            model, _, manifest = phase.run_phase(job, self.runtime)
        return Phase(model, manifest, batches[0])

    def projector(self, arm: str, seed: int = SEEDS[0]) -> Job:
        """The job of a projector, which is made if it is not there."""
        job = self.plan.pretrain(arm, seed)
        if not job.output.is_file():
            with quiet(), second_model_allowed():
                pretrain.run(job, self.runtime)
        return job

    def distill(self, arm: str, seed: int = SEEDS[0]) -> Job:
        self.projector(arm, seed)
        return self.plan.distill(arm, seed)

    def distilled(self, arm: str, seed: int = SEEDS[0]) -> Phase:
        """The distillation of an arm, done once."""
        if (arm, seed) not in self.phases:
            self.phases[arm, seed] = self.run(self.distill(arm, seed))
        return self.phases[arm, seed]

    def kv(self, example: int) -> KeysValues:
        """Teacher KV of a training example, `[1, L, H, T, D]`, float32."""
        return KeysValues(*(x.float().permute(1, 2, 0, 3)[None] for x in self.store.read("train", example).kv))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("world"))
    yield world
    # Tests of other files look whether a model is resident.
    world.phases.clear()
    free(torch.device("cpu"))


def test_a_seed_draws_another_projector_and_another_order(world: World) -> None:
    first, second = (Projector.load(world.projector("raw", seed).output.parent).state_dict() for seed in SEEDS)
    assert not torch.equal(first["aligners.0.projection"], second["aligners.0.projection"])
    again = world.run(replace(world.plan.pretrain("raw", SEEDS[0]), output=world.plan.results / "again/manifest.json"))
    assert all(torch.equal(first[name], tensor) for name, tensor in again.model.projector.state_dict().items())
    orders = [world.distilled("shuffled", seed).manifest["data_order_sha256"] for seed in SEEDS]
    assert orders[0] != orders[1]


@pytest.mark.parametrize(("arm", "seed"), [("fitted", SEEDS[0]), ("shuffled", SEEDS[0]), ("shuffled", SEEDS[1])])
def test_the_shuffled_control_reads_its_partners_kv_and_another_arm_its_own(arm: str, seed: int, world: World) -> None:
    sources = list(range(TRAIN))
    if arm == "shuffled":
        sources = partners(world.tokens.lengths("train"), seed)
        assert sources != partners(world.tokens.lengths("train"), 0)
        assert sources != partners(world.tokens.lengths("train"), sum(SEEDS) - seed)
    batches = world.distilled(arm, seed).batches
    for example, source in enumerate(sources):
        batch = batches.collate([example])
        assert torch.equal(batch["input_ids"][0], torch.from_numpy(world.tokens.input_ids["train"][example]))
        covered = int(batch["kv_mask"].sum())
        for found, expected in zip((batch["teacher_keys"], batch["teacher_values"]), world.kv(source), strict=True):
            assert covered == min(batch["input_ids"].shape[1], expected.shape[-2])
            assert torch.equal(found[..., :covered, :].float(), expected[..., :covered, :])


def test_an_arms_selection_reaches_the_batches_and_not_the_alignment(world: World) -> None:
    model, manifest, batches = world.distilled("few")
    batch = batches.collate(list(range(TRAIN)))
    reasoning = (batch["segments"] == Segment.REASONING).sum(1)
    assert batch["kv_mask"].sum(1).tolist() == reasoning.clamp(max=3).tolist()
    assert manifest["alignment"] == alignment(world, model)


def alignment(world: World, model: Any) -> dict[str, Any]:
    """Scores of a model on the held-out examples, read and predicted without the help of a phase."""
    model.eval()

    def predict(batch: Any) -> Pair:
        captured, _ = capture(model.student, batch["input_ids"], batch["attention_mask"], "post_rope")
        teacher = KeysValues(batch["teacher_keys"], batch["teacher_values"])
        return Pair(captured, model.projector(teacher), batch["input_ids"], batch["kv_mask"])

    whole = [stored_batches(world.tokens, split, world.store) for split in ("train", "validation")]
    return alignment_metrics(predict, *(batches.slice(range(len(batches)), 4) for batches in whole))


@pytest.mark.parametrize("arm", ["flat", "raw"])
def test_alignment_is_that_of_the_trained_model_on_the_held_out_examples(arm: str, world: World) -> None:
    model, manifest, _ = world.distilled(arm)
    assert manifest["alignment"] == alignment(world, model)


def test_other_held_out_kv_changes_the_alignment_and_nothing_that_is_trained(world: World, monkeypatch: Any) -> None:
    job = world.distill("fitted")
    model, manifest, _ = world.distilled("fitted")
    read = StoreReader.read

    def other(store: StoreReader, split: str, example: int) -> Any:
        found = read(store, split, example)
        if split == "validation":
            found = found._replace(kv=found.kv._replace(values=found.kv.values.flip(0)))
        return found

    monkeypatch.setattr(StoreReader, "read", other)
    again, changed, _ = world.run(replace(job, output=world.plan.results / "other/manifest.json"))
    weights = again.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert all(manifest["alignment"][name] != changed["alignment"][name] for name in ("cos_sim_centered", "r2"))
    assert {name: value for name, value in changed.items() if name not in OF_ALIGNMENT} == {
        name: value for name, value in manifest.items() if name not in OF_ALIGNMENT
    }


def test_a_pretrained_projector_is_distilled_with_as_it_is(world: World) -> None:
    fitted = Projector.load(world.projector("fitted").output.parent).state_dict()
    drawn = Projector.load(world.projector("raw").output.parent).state_dict()
    assert not torch.equal(fitted["aligners.0.projection"], drawn["aligners.0.projection"])
    used = world.distilled("fitted").model.projector.state_dict()
    # Means of what it gives now are taken anew, since only pretraining has moved it.
    assert [name for name in used if not torch.equal(used[name], fitted[name])] == ["output_mean"]


@pytest.mark.parametrize("arm", ["flat", "raw"])
def test_a_solved_projector_is_distilled_with_as_it_is_and_says_what_it_took(arm: str, world: World) -> None:
    job = world.projector(arm)
    spec = job.spec.model_copy(update={"pretrain": ClosedForm(batch_size=4)})
    solved = replace(job, spec=spec, output=world.plan.results / f"solved/{arm}/manifest.json")
    solved.output.parent.mkdir(parents=True)
    with quiet(), second_model_allowed():
        pretrain.run(solved, world.runtime)
    manifest, cost, folder = (
        read_json(solved.output),
        read_json(solved.output.with_name("cost.json")),
        solved.output.parent,
    )
    drawn = read_json(job.output)
    assert manifest.keys() == drawn.keys()
    assert manifest["spec"]["pretrain"] == ClosedForm(batch_size=4).model_dump()
    assert manifest["optimizer_steps"] == 0
    assert manifest["train_tokens"] == sum(world.tokens.lengths("train"))
    assert manifest["alignment"]["r2"] > drawn["alignment"]["r2"]
    assert cost["seconds"] > 0 == read_json(job.output.with_name("cost.json"))["seconds"]
    assert (folder / "metrics.jsonl").read_text() == ""
    fitted, next_job = Projector.load(folder).state_dict(), world.distill(arm)
    after = replace(
        next_job, inputs=next_job.inputs | {"projector": solved.output}, output=folder / "student/manifest.json"
    )
    used = world.run(after).model.projector.state_dict()
    if arm == "raw":  # which leaves its projector alone
        assert [name for name in used if not torch.equal(used[name], fitted[name])] == ["output_mean"]


@pytest.mark.parametrize("arm", ["flat", "raw"])
def test_a_drawn_projector_has_the_statistics_of_store_and_base_student(arm: str, world: World) -> None:
    projector = Projector.load(world.projector(arm).output.parent).eval()
    assert projector.center == (arm == "flat")
    for i, name in enumerate(TENSORS):
        torch.testing.assert_close(projector.teacher_mean[i].squeeze(-2), world.store.mean[name])
        torch.testing.assert_close(projector.teacher_std[i].squeeze(-2), world.store.std[name].clamp(min=1e-4))
    with torch.no_grad():
        output = [projector(world.kv(example)) for example in range(TRAIN)]
    for i in range(2):
        rows = torch.cat([of_example[i][0].transpose(1, 2).flatten(2, 3) for of_example in output], 1)
        rows = rows.double()  # [L, tokens, H · D]
        spread = (rows - rows.mean(1, keepdim=True)).square().mean(1).unflatten(-1, (2, 8)).mean(-1).sqrt()
        torch.testing.assert_close(
            spread, projector.student_std[i].double().square().mean((-1, -2)).sqrt(), atol=1e-4, rtol=1e-3
        )
        if arm == "flat":
            mean = rows.mean(1).unflatten(-1, (2, 8))
            torch.testing.assert_close(mean, projector.student_mean[i, :, :, 0].double(), atol=1e-4, rtol=1e-3)
    assert (projector.student_mean[0].abs() > 0.5).any()


def test_warnings_of_training_and_of_alignment_reach_the_manifest(world: World, monkeypatch: Any) -> None:
    job = replace(world.distill("fitted"), output=world.plan.results / "warned/manifest.json")
    train = phase.train
    monkeypatch.setattr(phase, "train", lambda *args: train(*args) | {"warnings": ["slow"]})
    monkeypatch.setattr(measure, "warnings_for", lambda _: ["collapse"])
    warned = world.run(job).manifest["warnings"]
    assert warned[:2] == ["slow", "collapse"]
    assert [sentence[:13] for sentence in warned[2:]] == ["inert KV loss"]  # two steps teach nothing


def test_a_student_with_another_vocabulary_is_refused(world: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(phase, "vocabulary_sha256", lambda _: "another")
    with pytest.raises(UserError, match="tokenizer"):
        world.run(world.plan.distill("sft", SEEDS[0]))


def test_the_export_is_a_plain_model_in_its_dtype_that_stops_and_has_its_projector(world: World) -> None:
    job = world.distill("flat")
    with quiet(), second_model_allowed():
        distill.run(job, world.runtime)
    folder = job.output.parent

    exported, base = (
        load_file(folder / "model.safetensors"),
        load_file(Path(world.runtime.student.model) / "model.safetensors"),
    )
    assert exported.keys() == base.keys()
    assert {tensor.dtype for tensor in exported.values()} == {torch.bfloat16}
    name = "model.layers.0.self_attn.q_proj.weight"
    assert (exported[name].float() - base[name]).abs().max() > 1e-4  # the adapters are in it
    end = world.tokens.manifest["end_token_id"]
    assert end in read_json(folder / "generation_config.json")["eos_token_id"]
    trained = Projector.load(folder / "projector").state_dict()
    before = Projector.load(job.inputs["projector"].parent).state_dict()
    assert any(not torch.equal(trained[name], before[name]) for name in trained if name.startswith("aligners"))
    assert set(read_json(job.output)["files"]) >= {"model.safetensors", "projector/projector.safetensors"}


def test_the_cost_is_that_of_the_whole_phase(tmp_path: Path) -> None:
    lines = [
        {"seconds": 4.0, "data_wait": 0.5, "device_memory_mib": 3.0},
        {"seconds": 9.0, "data_wait": 0.2, "device_memory_mib": 7.0},
        {"seconds": 10.0, "data_wait": 0.0, "device_memory_mib": 5.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finish(tmp_path / "manifest.json", {}, [], torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    cost = read_json(tmp_path / "cost.json")
    assert (cost["seconds"], cost["device_memory_mib"]) == (10.0, 7.0)
    assert cost["data_wait_share"] == pytest.approx((0.5 * 4 + 0.2 * 5) / 10)
