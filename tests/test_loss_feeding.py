"""How losses are fed: which tokens, layers, tensors and coordinates reach each formula, by hand in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from conftest import tiny_model
from scipy.special import log_softmax, softmax
from test_batches import ANSWER, PROMPT, arm, stores, teacher, token_set  # noqa: F401

from kava.align.projector import Projector
from kava.cka import linear_cka
from kava.config.arms import Arm, MseLoss
from kava.kv import Geometry, KeysValues
from kava.models.capture import capture, geometry, observed_attention
from kava.store.reader import StoreReader
from kava.training.batches import stored_batches
from kava.training.kv import KvObjective
from kava.training.model import WHOLE, DistillationModel

GEOMETRY = Geometry(2, 2, 4)
AUXILIARIES = {"codi": {}, "logit_kd": {}, "cka": {}, "hidden": {"layers": [0, 2]}}
EXAMPLES = [0, 1, 3, 5]


def prepared(manifest: Any, settings: Arm, layers: int = 2, train_student: bool = True) -> Any:
    """Model and batches of an arm; the projector's statistics are made up and far from 0 and 1."""
    store = StoreReader(manifest, select=settings.select)
    student = tiny_model("qwen2", max_position_embeddings=128, num_hidden_layers=layers)
    for layer in student.model.layers:
        torch.nn.init.normal_(layer.self_attn.k_proj.bias)
    projector = None
    if settings.aligner:
        projector = Projector(settings.aligner, store.geometry, geometry(student.config), settings.loss.center)
        projector.set_teacher_statistics(store.mean, store.std)
        make_up(projector)
    shuffled = 3 if settings.teacher_kv == "shuffled" else None
    batches = stored_batches(token_set(), "train", store, settings, shuffled)
    return DistillationModel(student, projector, settings, train_student, "pre_rope", 32).eval(), batches


def make_up(projector: Projector) -> None:
    generator = torch.Generator().manual_seed(5)
    projector.student_mean.copy_(3 * torch.randn(projector.student_mean.shape, generator=generator))
    projector.student_std.copy_(0.3 + 2 * torch.rand(projector.student_std.shape, generator=generator))


def wide(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def cosine_distance(student: np.ndarray, projected: np.ndarray, weight: np.ndarray) -> float:
    """1 − weighted mean cosine of `[B, L, H, T, D]`."""
    norms = np.linalg.norm(student, axis=-1) * np.linalg.norm(projected, axis=-1)
    cosines = ((student * projected).sum(-1) / norms).mean((1, 2))
    return float(1 - (weight * cosines).sum() / weight.sum())


def objective_by_hand(
    loss: Any, tensors: str, student: Any, projected: Any, weight: np.ndarray, projector: Projector
) -> float:
    found = []
    for i in {"both": (0, 1), "keys": (0,), "values": (1,)}[tensors]:
        s, p = wide(student[i]), wide(projected[i])
        if loss.center:
            s, p = s - wide(projector.student_mean[i]), p - wide(projector.student_mean[i])
        if loss.standardize:
            s, p = s / wide(projector.student_std[i]), p / wide(projector.student_std[i])
        found.append(cosine_distance(s, p, weight))
    return sum(found) / len(found)


@pytest.mark.parametrize("tensors", ["both", "keys", "values"])
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_kv_objective_compares_both_sides_in_the_same_coordinates(
    standardize: bool, center: bool, tensors: str
) -> None:
    loss = {"kind": "structural", "attention": 0, "center": center, "standardize": standardize}
    settings = arm(loss=loss, tensors=tensors)
    assert settings.aligner
    projector = Projector(settings.aligner, Geometry(3, 2, 4), GEOMETRY)
    make_up(projector)
    generator = torch.Generator().manual_seed(1)
    student, projected = (
        KeysValues(*(torch.randn(2, 2, 2, 5, 4, generator=generator) + shift for shift in (1.0, 4.0))) for _ in range(2)
    )
    weight = torch.tensor([[1.0, 0.5, 2.0, 0.0, 1.0], [1.0, 1.0, 0.0, 0.0, 0.0]])
    found = KvObjective(settings).distance(student, projected, weight, projector, 1.0)
    by_hand = objective_by_hand(settings.loss, tensors, student, projected, wide(weight), projector)
    assert float(found) == pytest.approx(by_hand, rel=1e-5)


def test_importance_weighs_the_named_segments_alone_and_is_that_of_the_example_itself(stores: Any) -> None:  # noqa: F811
    for teacher_kv in ("matched", "shuffled"):
        loss = {"kind": "structural", "attention": 0, "weights": "importance"}
        settings = arm(loss=loss, segments=["prompt", "reasoning"], teacher_kv=teacher_kv)
        model, batches = prepared(stores["full"], settings)
        batch = batches.collate(EXAMPLES)
        expected = torch.zeros(batch["input_ids"].shape, dtype=torch.float64)
        for row, example in enumerate(EXAMPLES):
            n = len(batches.ids[example])
            scores = StoreReader(stores["full"]).scores("train", example).importance.double()[PROMPT : n - ANSWER]
            expected[row, :PROMPT] = 1.0
            expected[row, PROMPT : n - ANSWER] = scores / scores.mean()
        expected *= batch["kv_mask"]
        torch.testing.assert_close(batch["kv_weight"].double(), expected, rtol=1e-5, atol=1e-6)
        # What a share of a step is told by, too.
        counts = batches.counts(EXAMPLES)
        assert counts["kv"] == pytest.approx(float(expected.sum()), rel=1e-5)
        assert counts["covered"] == int(batch["kv_mask"].sum())
        student, _ = capture(model.student, batch["input_ids"], batch["attention_mask"])
        projected = model.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
        by_hand = objective_by_hand(settings.loss, "both", student, projected, expected.numpy(), model.projector)
        assert float(model(**batch)["kv"]) == pytest.approx(by_hand, rel=1e-4)


def turned(keys: np.ndarray, base: float) -> np.ndarray:
    """RoPE by complex numbers, `[…, T, D]`."""
    half = keys.shape[-1] // 2
    angle = np.arange(keys.shape[-2])[:, None] * base ** (-np.arange(half) / half)
    complexes = (keys[..., :half] + 1j * keys[..., half:]) * np.exp(1j * angle)
    return np.concatenate([complexes.real, complexes.imag], -1)


def test_attention_kl_is_of_rotated_keys_where_the_teacher_has_them_in_the_models_scaling(
    stores: Any,  # noqa: F811
) -> None:
    # A selection leaves tokens without teacher KV between those that have it, which later queries would see.
    select = {"kind": "uniform", "budget": 6}
    settings = arm(loss={"kind": "structural", "attention": 0.25}, select=select, kv_weight=2.0)
    model, batches = prepared(stores["full"], settings)
    batch = batches.collate(EXAMPLES)
    assert int(batch["kv_mask"].sum()) < int(batch["attention_mask"].sum())
    seen: list[Any] = []
    with observed_attention(model.student, lambda _, q, k, __: seen.append((wide(q), wide(k)))), torch.no_grad():
        model.student(batch["input_ids"], attention_mask=batch["attention_mask"])
    projected = model.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
    keys = turned(wide(projected.keys), model.student.config.rope_parameters["rope_theta"])
    mask, weight = wide(batch["kv_mask"]).astype(bool), wide(batch["kv_weight"])
    total = 0.0
    for layer, (queries, own) in enumerate(seen):
        for b, head, t in np.ndindex(*queries.shape[:3]):
            visible = [j for j in range(t + 1) if mask[b, j]]
            if not weight[b, t] or not visible:
                continue
            q = queries[b, head, t] / np.sqrt(8)
            log_s, log_p = (log_softmax(side[b, head // 2][visible] @ q) for side in (own, keys[:, layer]))
            total += weight[b, t] * float(np.exp(log_p) @ (log_p - log_s))
    expected = total / (weight.sum() * len(seen) * 4)
    output = model(**batch)
    assert expected > 0.01
    assert float(output["attention"]) == pytest.approx(expected, rel=1e-3)
    torch.testing.assert_close(output["loss"], output["ce"] + 2 * (output["kv"] + 0.25 * output["attention"]))


def test_attention_kl_gives_keys_a_gradient_and_queries_none() -> None:
    generator = torch.Generator().manual_seed(1)
    queries, keys = (torch.randn(2, heads, 5, 4, generator=generator, requires_grad=True) for heads in (4, 2))
    projected, mask = torch.randn(2, 1, 2, 5, 4, generator=generator, requires_grad=True), torch.ones(2, 5)
    objective = KvObjective(arm(loss={"kind": "structural"}))
    objective.attention([(queries, keys, 0.5)], projected, mask, mask).backward()
    assert queries.grad is None
    assert keys.grad is not None
    assert keys.grad.abs().sum() > 0
    assert projected.grad is not None
    # Twice the factor is half the temperature.
    both = [objective.attention([(queries, keys, scale)], projected, mask, mask) for scale in (0.5, 1.0)]
    doubled = objective.attention([(2 * queries, keys, 0.5)], projected, mask, mask)
    assert both[0] != both[1]
    torch.testing.assert_close(doubled, both[1])


def test_auxiliaries_of_a_student_that_is_the_teacher_are_zero(stores: Any, teacher: Any) -> None:  # noqa: F811
    settings = arm(None, auxiliary=AUXILIARIES | {"hidden": {"layers": [0, 1, 2]}})
    model = DistillationModel(teacher, None, settings, True, "pre_rope", 32).eval()
    batches = stored_batches(token_set(), "train", StoreReader(stores["full"]), settings)
    with torch.no_grad():
        output = model(**batches.collate(EXAMPLES))
    # The store rounds to 8 bits of mantissa.
    assert 0 <= float(output["codi"]) < 1e-4
    assert abs(float(output["logit_kd"])) < 1e-4
    assert abs(float(output["cka"])) < 1e-3
    assert abs(float(output["hidden"])) < 1e-4


def test_auxiliaries_of_a_shallower_student_are_those_by_hand(stores: Any) -> None:  # noqa: F811
    weights = {"codi": 0.5, "logit_kd": 2.0, "cka": 3.0}
    auxiliary = {name: {"weight": weight} for name, weight in weights.items()}
    settings = arm(None, auxiliary=auxiliary, teacher_kv="shuffled")
    model, batches = prepared(stores["full"], settings)
    store, batch = StoreReader(stores["full"]), batches.collate(EXAMPLES)
    assert int(batch["kv_mask"].sum()) < int(batch["attention_mask"].sum())
    with torch.no_grad():
        output = model(**batch)
        inner = model.student(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
        kv, _ = capture(model.student, batch["input_ids"], batch["attention_mask"])
    first = [len(batches.ids[example]) - ANSWER for example in EXAMPLES]  # tokens before the answer

    # codi: the student's embeddings and two layers against the teacher's at 0, round(1.5) = 2 and 3 of 0 … 3.
    distances = []
    for ours, theirs in ((0, 0), (1, 2), (2, 3)):
        s = np.stack([wide(inner.hidden_states[ours][row, n - 1]) for row, n in enumerate(first)])
        t = np.stack([wide(store.hidden_states("train", example)[theirs]) for example in EXAMPLES])
        error = np.abs(s - t)
        distances.append(np.where(error < 1, error**2 / 2, error - 0.5).mean() / t.std())
    assert float(output["codi"]) == pytest.approx(np.mean(distances), rel=1e-4)

    # logit_kd: the logits that predict each token of the answer.
    divergences = []
    for row, (example, n) in enumerate(zip(EXAMPLES, first, strict=True)):
        ids, logprobs = store.topk_logits("train", example)
        for place in range(ANSWER):
            student = softmax(wide(inner.logits[row, n + place - 1]))
            t = np.exp(wide(logprobs[place]))
            t, s = np.append(t, 1 - t.sum()), student[ids[place].numpy()]
            s = np.append(s, 1 - s.sum())
            divergences.append(float((t * np.log(t / s)).sum()))
    assert float(output["logit_kd"]) == pytest.approx(np.mean(divergences), rel=1e-3)

    # cka: the student's two layers against the teacher's first and last, where there is teacher KV.
    there, found = batch["kv_mask"].bool(), []
    for ours, theirs in zip(kv, (batch["teacher_keys"], batch["teacher_values"]), strict=True):
        for layer, of_teacher in ((0, 0), (1, 2)):
            sides = (x.double().transpose(1, 2).flatten(2)[there] for x in (ours[:, layer], theirs[:, of_teacher]))
            found.append(1 - float(linear_cka(*sides)))
    assert float(output["cka"]) == pytest.approx(np.mean(found), rel=1e-3)

    expected = output["ce"] + sum(weight * output[name] for name, weight in weights.items())
    torch.testing.assert_close(output["loss"], expected)


def test_each_part_is_weighed_by_its_own_share_of_the_step(stores: Any) -> None:  # noqa: F811
    settings = arm(loss={"kind": "structural"}, kv_weight=0.3, auxiliary=AUXILIARIES)
    model, batches = prepared(stores["full"], settings)
    batch = batches.collate(EXAMPLES)
    shares = {"labels": 0.5, "kv": 0.25, "covered": 0.75, "examples": 0.125, "predicted": 0.0625, "tokens": 0.375}
    share_of = {
        "ce": "labels",
        "kv": "kv",
        "attention": "kv",
        "codi": "examples",
        "logit_kd": "predicted",
        "hidden": "tokens",
    }
    share_of |= dict.fromkeys(("cka", "cos_sim", "cos_sim_centered", "magnitude"), "covered")
    with torch.no_grad():
        whole, part = model(shares=WHOLE, **batch), model(shares=shares, **batch)
    for name, share in share_of.items():
        torch.testing.assert_close(part[name], shares[share] * whole[name])
    expected = part["ce"] + 0.3 * (part["kv"] + part["attention"]) + sum(part[name] for name in AUXILIARIES)
    torch.testing.assert_close(part["loss"], expected)


def test_schedules_are_those_of_their_own_loss_and_of_distillation_alone(stores: Any) -> None:  # noqa: F811
    auxiliary = {"codi": {"weight": 2.0, "warmup_ratio": 0.5}, "cka": {"weight": 4.0, "until": 0.6}}
    settings = arm(kv_weight=3.0, kv_warmup_ratio=0.1, kv_decay_ratio=0.4, kv_until=0.8, auxiliary=auxiliary)
    model, _ = prepared(stores["full"], settings)
    expected = {
        0.0: {"cka": 4.0},
        0.05: {"kv": 1.5, "codi": 0.2, "cka": 4.0},
        0.3: {"kv": 3.0, "codi": 1.2, "cka": 4.0},
        0.7: {"kv": 0.75, "codi": 2.0},
        0.9: {"codi": 2.0},
    }
    for progress, weights in expected.items():
        assert model.weights(progress) == pytest.approx(weights)
    fitting, _ = prepared(stores["full"], settings, train_student=False)
    assert all(fitting.weights(progress) == {"kv": 1.0} for progress in expected)


def test_the_running_cosine_that_is_called_centred_is(stores: Any) -> None:  # noqa: F811
    model, batches = prepared(stores["full"], arm(teacher_kv="shuffled"))
    batch = batches.collate(EXAMPLES)
    with torch.no_grad():
        output = model(**batch)
        student, _ = capture(model.student, batch["input_ids"], batch["attention_mask"])
        projected = model.projector(KeysValues(batch["teacher_keys"], batch["teacher_values"]))
    mask = wide(batch["kv_mask"])
    for name, center in (("cos_sim", False), ("cos_sim_centered", True)):
        loss = MseLoss(center=center)
        by_hand = 1 - objective_by_hand(loss, "both", student, projected, mask, model.projector)
        assert float(output[name]) == pytest.approx(by_hand, rel=1e-4)
