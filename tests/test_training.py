"""Training: gradients reach the student through its KV, data order is fixed, an interruption changes nothing."""

import json
import random
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from conftest import tiny_model

from kava.align.projector import Projector
from kava.cache.capture import Geometry, geometry
from kava.cache.codecs import KvBlock, TokenInfo
from kava.cache.reader import StoredExample
from kava.config.arms import Arm, FlatAligner, StructuredAligner
from kava.config.schema import Distill
from kava.errors import UserError
from kava.training.batches import Batches
from kava.training.calibrate import calibrate
from kava.training.loop import train
from kava.training.model import DistillationModel
from kava.training.optimizer import make_optimizer, parameter_groups
from kava.training.order import data_order, longest_first, partners
from kava.training.record import MetricsFile
from kava.training.trainer import KavaTrainer
from kava.training.watch import phase

TEACHER = Geometry(4, 2, 16)
TIMINGS = ("seconds", "data_wait")


class FakeStore:
    """Teacher KV that depends on the example alone, with a bias per channel."""

    geometry = TEACHER
    mean: ClassVar = {name: torch.full((4, 2, 16), 5.0) for name in ("keys", "values")}
    std: ClassVar = {name: torch.ones(4, 2, 16) for name in ("keys", "values")}

    scope = "example"
    keeps_every_token = True

    def __init__(self, ids: list[np.ndarray]) -> None:
        self.ids = ids
        self.examples: list[int] = []

    def tokens(self, split: str, example: int) -> TokenInfo:
        del split
        ids = torch.from_numpy(self.ids[example])
        return TokenInfo(ids, torch.arange(len(ids)), torch.zeros_like(ids))

    def read(self, split: str, example: int) -> StoredExample:
        self.examples.append(example)
        generator = torch.Generator().manual_seed(example)
        shape = (len(self.ids[example]), 4, 2, 16)
        kv = KvBlock(*(torch.randn(shape, generator=generator) + 5.0 for _ in range(2)))
        return StoredExample(kv, self.tokens(split, example))


def batches(store: bool = True, shuffle_seed: int | None = None) -> Batches:
    generator = np.random.default_rng(0)
    ids = [generator.integers(3, 61, length) for length in generator.integers(6, 20, 40)]
    segments = [np.repeat([0, 1, 2], [2, len(x) - 4, 2]) for x in ids]
    lengths = [len(x) for x in ids]
    tokens: Any = SimpleNamespace(input_ids={"train": ids}, segments={"train": segments}, lengths=lambda _: lengths)
    tokens.student_ids, tokens.student_segments = tokens.input_ids, tokens.segments
    return Batches(tokens, "train", FakeStore(ids) if store else None, None, shuffle_seed)  # type: ignore[arg-type]


STRUCTURED = StructuredAligner()


def make_model(aligner: Any = STRUCTURED, train_student: bool = True, **arm: Any) -> DistillationModel:
    student = tiny_model("qwen2")
    torch.manual_seed(0)
    settings = Arm(**{"aligner": aligner, "train_projector": True, "kv_until": 1.0} | arm).model_dump()
    projector = None
    if aligner:
        projector = Projector(settings["aligner"], TEACHER, geometry(student.config), settings["loss"]["center"])
        projector.set_teacher_statistics(FakeStore.mean, FakeStore.std)
    return DistillationModel(student, projector, settings, train_student, "pre_rope")


def measure(model: DistillationModel, batch_size: int) -> None:
    """What a phase does before it trains."""
    if model.projector is not None:
        model.eval()
        read = partial(batches().slice, range(40), batch_size)
        calibrate(model.projector, model.student, read, "pre_rope", base_student=True)


def order_of_run() -> list[int]:
    """What `run` reads."""
    return longest_first(data_order(7, 40, 64), [len(ids) for ids in batches().ids], 8)


def run(
    folder: Path, model: DistillationModel, tracker: str = "none", data: Batches | None = None, **changes: Any
) -> dict[str, Any]:
    short = {"steps": 8, "batch_size": 4, "accumulation": 2, "student_lr": 1e-3, "log_every": 2, "save_every": 4}
    settings = Distill(**short | changes).model_dump()
    measure(model, 4)
    data = data or batches(store=model.projector is not None)
    return train(model, data, settings, 7, folder, "fingerprint", "arm", torch.device("cpu"), tracker)


@pytest.mark.parametrize("aligner", [FlatAligner(), StructuredAligner()])
@pytest.mark.parametrize("center", [True, False])
def test_kv_loss_alone_gives_the_student_a_gradient(aligner: Any, center: bool) -> None:
    model = make_model(aligner, loss={"kind": "mercator", "center": center})
    batch = batches().collate([0, 1, 2])
    batch["label_mask"][0, -1] = 1
    output = model(**batch)
    assert torch.isfinite(output["loss"])
    from kava.cache.capture import KeysValues, capture

    captured, _ = capture(model.student, batch["input_ids"], batch["attention_mask"])
    projected = model.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
    model.objective.distance(captured, projected, batch["kv_weight"], model.projector, 0.0).backward()
    for layer in model.student.model.layers:
        for name in ("k_proj", "v_proj"):
            assert layer.self_attn.get_submodule(name).weight.grad.abs().sum() > 0
    assert model.student.model.embed_tokens.weight.grad.abs().sum() > 0


def test_padding_changes_no_part_of_the_loss() -> None:
    model = make_model().eval()
    batch = batches().collate([3, 4])
    padded = {
        name: torch.nn.functional.pad(tensor, (0, 0, 0, 5) if "teacher" in name else (0, 5))
        for name, tensor in batch.items()
    }
    padded["teacher_keys"][..., -5:, :] = 1e4
    for (name, plain), longer in zip(model(**batch).items(), model(**padded).values(), strict=True):
        torch.testing.assert_close(longer, plain, rtol=1e-5, atol=1e-6, msg=name)


def test_cross_entropy_equals_the_models_own_on_reasoning_and_answer() -> None:
    model = make_model(None).eval()
    batch = batches(store=False).collate([0, 5, 9])
    labels = batch["input_ids"].masked_fill(batch["label_mask"] == 0, -100)
    expected = model.student(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss
    torch.testing.assert_close(model(**batch)["loss"], expected, rtol=1e-5, atol=1e-6)


def test_labels_are_on_reasoning_answer_and_end_only() -> None:
    batch = batches(store=False).collate([0])
    assert batch["label_mask"][0].tolist() == [0, 0] + [1] * (batch["input_ids"].shape[1] - 2)


def test_pretraining_moves_the_projector_and_not_the_student(tmp_path: Path) -> None:
    model = make_model(train_student=False)
    student = {name: p.clone() for name, p in model.student.named_parameters()}
    projector = {name: p.clone() for name, p in model.projector.named_parameters()}
    run(tmp_path, model)
    assert all(torch.equal(p, student[name]) for name, p in model.student.named_parameters())
    assert all(not torch.equal(p, projector[name]) for name, p in model.projector.named_parameters())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8]
    assert all(line["ce"] is None and line["student_lr"] is None for line in lines)


def test_centring_removes_the_means_of_both_sides() -> None:
    model = make_model().eval()
    measure(model, 8)
    from kava.align.projector import ChannelStatistics

    student, projected = ChannelStatistics(), ChannelStatistics()
    for batch in batches().slice(range(40), 8):
        pair = model.predict(batch)
        student.add(pair.student, pair.mask)
        projected.add(pair.projected, pair.mask)
    torch.testing.assert_close(student.mean, model.projector.student_mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.mean, model.projector.student_mean, atol=1e-4, rtol=0)


@pytest.mark.parametrize("aligner", [FlatAligner(), None])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(aligner: Any, tmp_path: Path, monkeypatch) -> None:
    whole = make_model(aligner)
    facts = run(tmp_path / "whole", whole)

    class Killed(Exception):
        pass

    def kill(trainer: KavaTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == 6:
            raise Killed
        return training_step(trainer, *args, **kwargs)

    training_step = KavaTrainer.training_step
    monkeypatch.setattr(KavaTrainer, "training_step", kill)
    with pytest.raises(Killed):
        run(tmp_path / "cut", make_model(aligner))
    monkeypatch.setattr(KavaTrainer, "training_step", training_step)
    resumed, data = make_model(aligner), batches(store=aligner is not None)
    assert run(tmp_path / "cut", resumed, data=data) == facts
    if data.store:  # what the checkpoint at step 4 of 8 has behind it is not read again
        assert data.store.examples == order_of_run()[32:]
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name

    def lines(folder: str) -> list[dict[str, Any]]:
        records = [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        return [{name: value for name, value in record.items() if name not in TIMINGS} for record in records]

    assert lines("whole") == lines("cut")


def test_a_loss_whose_time_is_over_is_not_read_for(tmp_path: Path) -> None:
    data = batches()
    run(tmp_path, make_model(kv_until=0.3), data=data)
    assert isinstance(data.store, FakeStore)
    assert data.store.examples == order_of_run()[: 3 * 8]  # steps 0, 1 and 2 of 8 are under 0.3


def test_a_batch_keeps_the_dtype_of_the_store_and_pads_with_zeros() -> None:
    data = batches()
    read = data.store.read

    def in_bf16(split: str, example: int) -> StoredExample:
        kv, info = read(split, example)
        return StoredExample(KvBlock(*(tensor.bfloat16() for tensor in kv)), info)

    data.store.read = in_bf16  # type: ignore[method-assign]
    batch = data.collate([0, 1, 2])
    for name, tensor in zip(("teacher_keys", "teacher_values"), read("train", 1).kv, strict=True):
        assert batch[name].dtype == torch.bfloat16
        own = len(data.ids[1])
        assert torch.equal(batch[name][1, :, :, :own], tensor.bfloat16().permute(1, 2, 0, 3))
        assert not batch[name][1, :, :, own:].any()
    widened = {name: x.float() if x.is_floating_point() else x for name, x in batch.items()}
    model = make_model().eval()
    assert torch.equal(model(**batch)["loss"], model(**widened)["loss"])


def test_selected_tokens_are_compared_where_they_stand() -> None:
    data = batches()
    read = data.store.read
    data.store.keeps_every_token = False  # type: ignore[misc]

    def every_third(split: str, example: int) -> StoredExample:
        kv, info = read(split, example)
        return StoredExample(KvBlock(*(x[1::3] for x in kv)), TokenInfo(*(x[1::3] for x in info)))

    data.store.read = every_third  # type: ignore[method-assign]
    whole, kept = batches().collate([0, 1]), data.collate([0, 1])
    expected = torch.zeros_like(whole["kv_mask"])
    expected[:, 1::3] = whole["kv_mask"][:, 1::3]
    assert torch.equal(kept["kv_mask"], expected)
    at_kept = expected[:, None, None, :, None].bool()
    assert torch.equal(kept["teacher_keys"], torch.where(at_kept, whole["teacher_keys"], 0.0))


def test_a_store_that_cannot_teach_token_by_token_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(FakeStore, "scope", "head")
    with pytest.raises(UserError, match="set scope: example"):
        batches()
    monkeypatch.setattr(FakeStore, "scope", "example")
    tokens = FakeStore.tokens
    monkeypatch.setattr(FakeStore, "tokens", lambda *a: tokens(*a)._replace(id=tokens(*a).id + 1))
    with pytest.raises(UserError, match="they are of other data"):
        batches()


def test_a_half_written_checkpoint_is_not_resumed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints/fingerprint/staged.partial/checkpoint-4").mkdir(parents=True)
    (tmp_path / "checkpoints/of-other-settings/checkpoint-8").mkdir(parents=True)
    run(tmp_path, make_model(None))
    assert sorted(p.name for p in (tmp_path / "checkpoints").rglob("checkpoint-*")) == ["checkpoint-4", "checkpoint-8"]
    assert not (tmp_path / "checkpoints/of-other-settings").exists()


def test_a_torn_last_line_of_the_metrics_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "seconds": 1.5}\n{"step": 4, "seconds": 3.0}\n{"step": 6, "sec')
    assert MetricsFile(path).resume_at(2) == 1.5
    assert path.read_text() == '{"step": 2, "seconds": 1.5}\n'


def test_data_order_is_one_permutation_after_the_other_and_fixed_by_the_seed() -> None:
    order = data_order(42, 10, 25)
    assert sorted(order[:10]) == sorted(order[10:20]) == list(range(10))
    assert order[:10] != order[10:20]
    random.seed(1)
    assert order == data_order(42, 10, 25) == data_order(42, 10, 30)[:25]
    assert order != data_order(43, 10, 25)


def test_every_arm_of_a_seed_sees_the_same_examples(tmp_path: Path) -> None:
    facts = [run(tmp_path / str(n), make_model(a)) for n, a in enumerate((FlatAligner(), StructuredAligner(), None))]
    for name in ("optimizer_steps", "train_tokens", "data_order_sha256"):
        assert len({fact[name] for fact in facts}) == 1


def test_shuffled_partners_are_others_of_like_length_and_each_is_used_once() -> None:
    lengths = np.random.default_rng(0).integers(20, 200, 300).tolist()
    partner = partners(lengths, 1)
    assert sorted(partner) == list(range(300))
    assert all(own != other for own, other in enumerate(partner))
    assert np.mean([abs(lengths[own] - lengths[other]) for own, other in enumerate(partner)]) < 10
    assert partners([5, 9], 0) == [1, 0]
    with pytest.raises(UserError, match="at least two"):
        partners([5], 0)


def test_shuffled_arm_reads_another_examples_kv_and_masks_what_it_lacks() -> None:
    shuffled, matched = batches(shuffle_seed=3), batches()
    example = next(i for i, other in enumerate(shuffled.source) if len(shuffled.ids[other]) < len(shuffled.ids[i]))
    batch, own = shuffled.collate([example]), matched.collate([example])
    assert torch.equal(batch["input_ids"], own["input_ids"])
    assert batch["kv_mask"].sum() == len(shuffled.ids[shuffled.source[example]]) < own["kv_mask"].sum()
    assert not torch.equal(batch["teacher_keys"], own["teacher_keys"])


def test_norms_and_biases_do_not_decay() -> None:
    model = make_model()
    decay = {id(p): g["weight_decay"] for g in parameter_groups(model, Distill().model_dump()) for p in g["params"]}
    for name, parameter in model.named_parameters():
        assert (decay[id(parameter)] == 0) == (name.endswith("bias") or "norm" in name), name


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_8bit"])
def test_each_side_has_its_learning_rate(optimizer: str, tmp_path: Path) -> None:
    run(tmp_path, make_model(), optimizer=optimizer, projector_lr=2e-3, warmup_ratio=0.0)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert line["projector_lr"] == pytest.approx(2 * line["student_lr"])


def test_8bit_adamw_of_bitsandbytes_follows_adamw() -> None:
    torch.manual_seed(0)
    target, weights = torch.randn(128, 64), []
    for kind in ("adamw", "adamw_8bit"):
        weight = torch.nn.Parameter(torch.zeros(128, 64))
        optimizer = make_optimizer(kind, [{"params": [weight], "lr": 1e-2, "weight_decay": 0.0}])
        for _ in range(150):
            optimizer.zero_grad()
            (weight - target).square().mean().backward()
            optimizer.step()
        weights.append(weight.detach())
    assert (weights[0] - weights[1]).norm() / weights[0].norm() < 0.05


def test_exported_student_stops_at_the_end_token_that_was_trained() -> None:
    from kava.stages.distill import stop_at

    student = tiny_model("qwen2")
    stop_at(student, 2)
    assert student.generation_config.eos_token_id == 2
    stop_at(student, 7)
    assert student.generation_config.eos_token_id == [2, 7]


def test_centred_cosine_is_centred_for_an_arm_whose_loss_is_not() -> None:
    both = []
    for center in (True, False):
        model = make_model(loss={"kind": "mercator", "center": center}).eval()
        measure(model, 8)
        assert model.projector.student_mean.abs().sum() > 0
        both.append(model(**batches().collate([0, 1])))
    assert both[1]["cos_sim"] != both[1]["cos_sim_centered"]
    assert both[0]["cos_sim"] != both[1]["cos_sim"]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        model.projector.aligners[0].bias.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss of arm is nan at step 2"):
        run(tmp_path, model)


def test_tensorboard_is_written_beside_the_student(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path, make_model(None), tracker="tensorboard")
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_phase_words() -> None:
    words = [phase(value) for value in (0.2, 0.5, 0.7, 0.9, 0.95)]
    assert words == ["adapting", "learning", "good", "great", "excellent"]
