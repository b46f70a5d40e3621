"""Students cut from a model: the same layers, computed independently, in every family; and the identity to them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from zoo.models import write_model

from kava.align.layers import settle
from kava.align.projector import Projector
from kava.cli import main
from kava.config.arms import Arm, IdentityAligner, StructuredAligner
from kava.config.identity import layers_named
from kava.config.models import Student
from kava.errors import UserError
from kava.kv import Geometry, KeysValues
from kava.models.capture import capture, geometry
from kava.models.cut import chosen_layers, cut_model, importance, kept_layers, layers_of, most_important
from kava.models.load import build, check_model, load_model_config, load_student
from kava.models.narrow import narrow_model

FAMILIES = ("llama", "qwen2", "qwen3", "gpt2", "gemma2", "olmo2")
IDS = torch.arange(3, 15)[None]
CPU = torch.device("cpu")


def skipping(model: Any, kept: list[int], ids: Tensor) -> Tensor:
    """Logits of a model whose other layers pass on what they read."""

    def pass_on(_layer: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        return inputs[0] if isinstance(output, Tensor) else (inputs[0], *output[1:])

    hooks = [
        layer.register_forward_hook(pass_on) for number, layer in enumerate(layers_of(model)[1]) if number not in kept
    ]
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


def deep_model(family: str, layers: int = 5) -> Any:
    sizes = {"n_layer": layers} if family == "gpt2" else {"num_hidden_layers": layers}
    return tiny_model(family, **sizes).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_student_computes_what_the_model_does_without_the_other_layers(family: str) -> None:
    model, kept = deep_model(family), [0, 2, 4]
    expected = skipping(model, kept, IDS)
    student = cut_model(model, kept, build)
    assert kept_layers(student.config) == kept
    assert geometry(student.config).layers == 3
    with torch.no_grad():
        torch.testing.assert_close(student(input_ids=IDS, use_cache=False).logits, expected, atol=1e-6, rtol=0)
        cached = student(input_ids=IDS[:, :-1], use_cache=True)
        last = student(input_ids=IDS[:, -1:], past_key_values=cached.past_key_values).logits
    torch.testing.assert_close(last[:, 0], expected[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("channels", "heads"), [(20, None), (None, 1), (31, 1)])
def test_a_narrower_model_is_the_whole_one_with_the_smallest_parts_silenced(
    family: str, channels: int | None, heads: int | None
) -> None:
    model = tiny_model(family, num_key_value_heads=2).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    student = narrow_model(model, channels, heads, build)
    for layer in layers_of(model)[1]:
        mlp, attention = layer.mlp, layer.self_attn
        if channels:
            parts = [(w.weight.double() ** 2).sum(1).sqrt() for w in (mlp.gate_proj, mlp.up_proj)]
            size = parts[0] * parts[1] * (mlp.down_proj.weight.double() ** 2).sum(0).sqrt()
            mlp.down_proj.weight.data[:, size.argsort()[: 48 - channels]] = 0
        if heads:
            norms = [
                [float(w.weight.detach()[8 * h : 8 * h + 8].norm()) for h in range(2)]
                for w in (attention.k_proj, attention.v_proj)
            ]
            smallest = min(range(2), key=lambda h: norms[0][h] * norms[1][h])
            attention.o_proj.weight.data[:, 16 * smallest : 16 * smallest + 16] = 0
    with torch.no_grad():
        expected = model(input_ids=IDS).logits
        torch.testing.assert_close(student(input_ids=IDS).logits, expected, atol=1e-5, rtol=0)
    assert geometry(student.config) == Geometry(3, heads or 2, 8)


def test_narrowing_says_what_a_family_lacks_and_how_many_there_are() -> None:
    with pytest.raises(UserError, match="MLP channels of gpt2 cannot be left out"):
        narrow_model(tiny_model("gpt2", n_inner=48), 20, None, build)
    with pytest.raises(UserError, match="3 KV heads cannot be kept of 2; give 1 to 2"):
        narrow_model(tiny_model("llama"), None, 3, build)


def test_a_cut_student_is_named_as_what_it_is() -> None:
    assert [layers_named(keep) for keep in (None, 10, (0, 3))] == ["", ", 10 of its layers", ", its layers 0, 3"]


def test_layers_are_spread_with_the_first_and_the_last_or_named() -> None:
    assert chosen_layers(10, 30, "m") == [0, 3, 6, 10, 13, 16, 19, 23, 26, 29]
    assert chosen_layers([1, 4], 30, "m") == [1, 4]
    with pytest.raises(UserError, match="31 layers of m cannot be kept, since it has 30"):
        chosen_layers(31, 30, "m")
    with pytest.raises(UserError, match="layer 30 of m cannot be kept, since it has 30, from 0 to 29"):
        chosen_layers([0, 30], 30, "m")


def test_keep_layers_loads_a_student_whose_tied_head_is_its_embedding(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", num_hidden_layers=4, tie_word_embeddings=True)
    source = Student(model=str(folder), keep_layers=[0, 3])
    check_model(source)
    assert load_model_config(source).num_hidden_layers == 2
    whole = AutoModelForCausalLM.from_pretrained(folder).eval()
    student = load_student(source, CPU)
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert all(parameter.device == CPU for parameter in student.parameters())
    with torch.no_grad():
        assert torch.equal(student(input_ids=IDS).logits, skipping(whole, [0, 3], IDS))
    student.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert again.config.kept_layers == [0, 3]
    assert torch.equal(again(input_ids=IDS).logits, student(input_ids=IDS).logits)


def test_layers_that_the_model_lacks_are_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    with pytest.raises(UserError, match=r"layer 7 of .* cannot be kept, since it has 1, from 0 to 0"):
        check_model(Student(model=str(folder), keep_layers=[0, 7]))


@pytest.mark.parametrize("keep", [[], [3, 1], [1, 1], [-1], 0])
def test_keep_layers_must_rise(keep: Any) -> None:
    with pytest.raises(ValueError, match="keep_layers"):
        Student(model="a/b", keep_layers=keep)


def test_importance_is_the_angle_between_input_and_output_of_each_layer() -> None:
    model = deep_model("llama")
    with torch.no_grad():
        layers_of(model)[1][2].mlp.down_proj.weight.zero_()
        layers_of(model)[1][2].self_attn.o_proj.weight.zero_()
        hidden = model.double()(input_ids=IDS, output_hidden_states=True).hidden_states
    scores = importance(model, IDS)
    assert scores[2] == pytest.approx(0, abs=1e-6)
    before, after = hidden[1][0], hidden[2][0]
    cosine = (before * after).sum(-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    assert scores[1] == pytest.approx(1 - float(cosine.mean()), abs=1e-5)
    assert most_important([0.9, 0.1, 0.5, 0.3], 2) == [0, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--layers", "2"],
        ["--keep-layers", "0,3"],
        ["--layers", "2", "--by", "importance", "--text", "text.txt"],
        ["--layers", "2", "--mlp-channels", "20", "--kv-heads", "1"],
    ],
)
def test_init_student_writes_a_student_that_transformers_loads(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("Tom has 3 apples. He buys 4 more.")
    write_model(tmp_path / "m", num_hidden_layers=4)
    assert main(["init-student", "--from", "m", *arguments, "--output", "s"]) == 0
    student = AutoModelForCausalLM.from_pretrained("s")
    assert student.config.num_hidden_layers == 2
    if "importance" not in arguments:
        assert student.config.kept_layers == [0, 3]
    if arguments[-1] in ("2", "0,3"):
        whole = AutoModelForCausalLM.from_pretrained("m").eval()
        assert torch.equal(student.eval()(input_ids=IDS).logits, skipping(whole, [0, 3], IDS))
    assert (tmp_path / "s" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layers", "2"], "give --from MODEL"),
        (["--from", "m", "--like", "m", "--layers", "2"], "give --from MODEL"),
        (["--from", "m"], "give --layers N"),
        (["--from", "m", "--layers", "2", "--keep-layers", "0"], "give --layers N"),
        (["--from", "m", "--keep-layers", "a"], "is no list of numbers"),
        (["--from", "m", "--keep-layers", "3,1"], "rising order"),
        (["--from", "m", "--layers", "9"], "since it has 4"),
        (["--from", "m", "--layers", "2", "--hidden", "8"], "--hidden is of --like"),
        (["--from", "m", "--layers", "2", "--by", "importance"], "goes with"),
        (["--from", "m", "--layers", "9", "--by", "importance", "--text", "t"], "cannot be kept"),
        (["--from", "m", "--layers", "2", "--by", "importance", "--text", "none"], "cannot be read"),
        (["--like", "m", "--keep-layers", "0"], "are of --from"),
        (["--like", "m", "--layers", "0"], "must be 1 at least"),
    ],
)
def test_init_student_says_what_is_wrong(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t").write_text("Tom has 3 apples.")
    write_model(tmp_path / "m", num_hidden_layers=4)
    assert main(["init-student", *arguments, "--output", "s"]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def statistics(shape: tuple[int, ...]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    mean = {name: 100 * torch.randn(shape) for name in ("keys", "values")}
    return mean, {name: 0.5 + torch.rand(shape) for name in ("keys", "values")}


STARTS = [
    IdentityAligner(layer_map={"kind": "list", "layers": [0, 2, 3]}),
    StructuredAligner(layer_map={"kind": "list", "layers": [0, 2, 3]}, dim_init="identity"),
    StructuredAligner(layer_map={"kind": "list", "layers": [0, 2, 3]}, dim_init="identity", per_head=True),
]


@pytest.mark.parametrize("settings", STARTS, ids=lambda settings: settings.kind)
@pytest.mark.parametrize("center", [True, False])
def test_identity_gives_the_teachers_own_kv_and_centred_moves_it_to_the_students_mean(
    settings: Any, center: bool
) -> None:
    teacher, student = Geometry(4, 2, 8), Geometry(3, 2, 8)
    projector = Projector(settings, teacher, student, center).eval()
    mean, std = statistics((4, 2, 8))
    projector.set_teacher_statistics(mean, std)
    kv = KeysValues(*(torch.randn(2, 4, 2, 6, 8) + mean[name].unsqueeze(-2) for name in ("keys", "values")))
    own_mean = torch.randn(2, 3, 2, 1, 8)
    projector.set_student_statistics(own_mean, torch.ones(2, 3, 2, 1, 8), torch.zeros(2, 3, 4))
    raw = torch.stack(projector.raw(kv))
    projector.set_output_statistics(raw.mean((1, 4)).unsqueeze(-2), raw.std((1, 4)).unsqueeze(-2))
    for i, (projected, stored) in enumerate(zip(projector(kv), kv, strict=True)):
        own = stored[:, [0, 2, 3]]
        if center:
            own = own - own.mean((0, 3), keepdim=True)[0] + own_mean[i]
        torch.testing.assert_close(projected, own, atol=1e-4, rtol=0)


def test_a_cut_student_starts_with_the_kv_of_its_first_layer() -> None:
    """The first kept layer reads what it read in the model, so that its KV is the model's own, to the bit."""
    model = deep_model("llama")
    mask = torch.ones_like(IDS)
    with torch.no_grad():
        theirs, _ = capture(model, IDS, mask, "pre_rope")
        student = cut_model(model, [0, 3], build)
        ours, _ = capture(student, IDS, mask, "pre_rope")
    settings = settle(IdentityAligner(), student.config)
    projector = Projector(settings, geometry(model.config), geometry(student.config), center=False)
    for own, projected in zip(ours, projector(theirs), strict=True):
        torch.testing.assert_close(own[:, 0], projected[:, 0], atol=1e-5, rtol=0)
        assert (own[:, 1] - projected[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("settings", STARTS[:2], ids=lambda settings: settings.kind)
@pytest.mark.parametrize("student", [Geometry(3, 1, 8), Geometry(3, 2, 4)])
def test_identity_between_other_geometries_is_refused(settings: Any, student: Geometry) -> None:
    with pytest.raises(UserError, match=r"takes the teacher's KV as it is, and the teacher has"):
        Projector(settings, Geometry(4, 2, 8), student)


def test_a_list_of_layers_has_one_for_each_of_the_students() -> None:
    teacher = Geometry(4, 2, 8)
    with pytest.raises(UserError, match="names 3 teacher layers, and the student has 2"):
        Projector(STARTS[0], teacher, Geometry(2, 2, 8))
    with pytest.raises(UserError, match="names the teacher's layer 3, and it has 3, from 0 to 2"):
        Projector(STARTS[0], Geometry(3, 2, 8), Geometry(3, 2, 8))


def test_kept_layers_of_a_student_that_was_not_cut_are_asked_for() -> None:
    with pytest.raises(UserError, match=r"no kept_layers; cut the student from the teacher with student.keep_layers"):
        settle(IdentityAligner(), deep_model("llama").config)


@pytest.mark.parametrize("setting", ["pretrain_projector", "train_projector"])
def test_identity_has_nothing_to_train(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting}: true, and aligner identity has no parameters"):
        Arm(aligner={"kind": "identity"}, **{setting: True})


def test_identity_start_mixes_no_heads() -> None:
    with pytest.raises(ValueError, match="set mixer_init: uniform"):
        StructuredAligner(dim_init="identity", mixer_init="random")
