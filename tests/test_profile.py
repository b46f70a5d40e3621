"""A profile tells, before anything is trained, what a cosine would mean for a teacher and a student."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from kava.cli import main
from kava.config.load import REPOSITORY
from kava.errors import UserError
from kava.kv import KeysValues
from kava.metrics import Pair, alignment_metrics
from kava.profile.measure import Sample, constant_floor, describe, effective_rank, measure, score
from kava.profile.probe import Halves, LinearProbe
from kava.profile.show import as_text, sentences

EXAMPLES, LENGTH = 40, 15
TOKENS = EXAMPLES * LENGTH


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def of_examples() -> torch.Tensor:
    return torch.arange(EXAMPLES).repeat_interleave(LENGTH)


HALVES = Halves.by_example(of_examples())


def test_norms_are_those_of_the_vectors() -> None:
    x = normal(50, 2, 3, 4)
    expected = torch.tensor(
        [
            [sum(math.hypot(*x[token, layer, head]) for token in range(50)) / 50 for head in range(3)]
            for layer in range(2)
        ]
    )
    assert torch.tensor(describe(x)["norm"]) == pytest.approx(expected, rel=1e-6)


def test_bias_share_and_its_largest_channel_are_those_that_were_planted() -> None:
    x = normal(4000, 1, 2, 8)
    x[:, 0, 0] += torch.tensor([0.0, 0, 0, -6, 0, 2, 0, 0])
    facts = describe(x)
    # 8 channels of unit variance beside a squared bias of 36 + 4.
    assert facts["bias_share"][0] == pytest.approx([40 / 48, 0], abs=0.01)
    assert facts["largest_channel"][0][0] == 3
    assert facts["largest_channel_share"][0][0] == pytest.approx(36 / 48, abs=0.01)


def test_a_head_of_zeros_has_no_shares_and_a_constant_layer_no_rank() -> None:
    facts = describe(torch.zeros(9, 1, 1, 4))
    assert facts["norm"] == [[0.0]]
    assert facts["bias_share"] == facts["largest_channel"] == facts["largest_channel_share"] == [[None]]
    assert facts["effective_rank"] == [None]
    assert effective_rank(torch.full((9, 4), 0.1)) is None


def test_effective_rank_is_that_of_known_spectra() -> None:
    random = normal(100, 6)
    orthogonal = torch.linalg.qr(random - random.mean(0))[0]
    assert effective_rank(orthogonal + 7) == pytest.approx(6)
    assert effective_rank(orthogonal[:, :1] @ normal(1, 6)) == pytest.approx(1)
    # Variances 4, 1, 1: entropy of 2/3, 1/6, 1/6.
    entropy = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 6))
    assert effective_rank(orthogonal[:, :3] * torch.tensor([2.0, 1, 1])) == pytest.approx(math.exp(entropy))


def test_examples_are_never_cut_between_what_is_fitted_and_what_is_scored() -> None:
    example = of_examples()
    parts = [set(example[rows].tolist()) for rows in (*HALVES.folds, HALVES.score)]
    assert sum(len(part) for part in parts) == len(set.union(*parts)) == EXAMPLES
    assert torch.equal(torch.cat(HALVES.folds).sort().values, HALVES.fit.sort().values)
    assert len(HALVES.fit) == len(HALVES.score) == TOKENS / 2


@pytest.mark.parametrize("width", [10, 400])  # fewer and more features than fitted tokens
def test_the_probe_recovers_a_linear_map_and_finds_nothing_in_noise(width: int) -> None:
    signal = normal(TOKENS, 10)
    features = 50 + signal @ normal(10, width, seed=1)
    mapped = (signal @ normal(10, 2 * 4, seed=2)).unflatten(1, (2, 4)) - 30
    target = torch.stack((mapped[:, 0], normal(TOKENS, 4, seed=3)), 1)
    probe = LinearProbe(features, HALVES)
    found = score(probe.predict(target), target, HALVES)
    assert found["r2"][0] > 0.99
    assert found["cos_sim_centered"][0] > 0.99
    assert found["r2"][1] == pytest.approx(0, abs=0.03)
    assert abs(found["cos_sim_centered"][1]) < 0.1


def test_the_probe_finds_the_share_that_a_linear_map_explains() -> None:
    features = normal(TOKENS, 12)
    target = (features @ torch.linalg.qr(normal(12, 12, seed=4))[0] + normal(TOKENS, 12, seed=5)).unflatten(1, (1, 12))
    found = score(LinearProbe(features, HALVES).predict(target), target, HALVES)
    assert found["r2"][0] == pytest.approx(0.5, abs=0.04)


def test_the_floor_is_that_of_the_alignment_metrics_on_the_same_tokens() -> None:
    student = (normal(TOKENS, 2, 3, 4) + 2 * normal(1, 2, 3, 4, seed=1)).float()

    def predict(rows: torch.Tensor) -> Pair:
        captured = student[rows].permute(1, 2, 0, 3)[None]
        kv = KeysValues(captured, captured)
        return Pair(kv, kv, torch.zeros(1, len(rows), dtype=torch.long), torch.ones(1, len(rows)))

    expected = alignment_metrics(predict, [HALVES.fit], [HALVES.score])["per_head"]["cos_sim_constant"][0]
    found = [constant_floor(layer, HALVES).tolist() for layer in student.double().unbind(1)]
    assert torch.tensor(found) == pytest.approx(torch.tensor(expected), abs=1e-6)


def sample(bias: float = 0.0) -> Sample:
    """Student layer 0 is a linear map of teacher layer 2, layer 1 is noise; one head does not vary."""
    teacher = normal(TOKENS, 3, 2, 5)
    student = normal(TOKENS, 2, 2, 3, seed=1)
    student[:, 0] = (teacher[:, 2].flatten(1) @ normal(10, 6, seed=2)).unflatten(1, (2, 3))
    student += bias
    silent = student.clone()
    silent[:, 1, 1] = 3.0
    return Sample(KeysValues(teacher, teacher), KeysValues(student, silent), of_examples())


def profile(**changes: float) -> dict:
    """As the command completes it."""
    measured = measure(sample(**changes))
    measured["teacher"] |= {"model": "teacher", "channels": 30}
    measured["student"] |= {"model": "student"}
    return measured


def test_layers_of_another_depth_are_found_by_cka_and_by_the_probe_from_all_layers() -> None:
    keys = measure(sample())["pair"]["keys"]
    assert keys["ratio_layer"] == [0, 2]
    assert max(range(3), key=keys["cka"][0].__getitem__) == 2
    assert min(keys["all_layers"]["r2"][0]) > 0.99
    assert max(keys["one_layer"]["r2"][0]) < 0.1
    assert max(keys["all_layers"]["r2"][1]) < 0.1


def test_a_head_that_does_not_vary_is_null_and_named() -> None:
    values = measure(sample())["pair"]["values"]
    assert values["all_layers"]["r2"][1][1] is None
    assert values["all_layers"]["r2"][1][0] is not None
    assert "1 head of the student does not vary" in sentences(profile())[-1]


def test_a_floor_above_nine_tenths_makes_a_cosine_of_nine_tenths_meaningless() -> None:
    biased, plain = sentences(profile(bias=30.0)), sentences(profile())
    assert "raw cosine below that is worse than nothing" in biased[0]
    assert "A mean raw cosine of 0.9 is below the" in biased[1]
    assert "% of the way from a constant" in plain[1]


def test_the_text_has_a_line_per_layer_that_fits_a_terminal() -> None:
    lines = as_text(profile()).splitlines()
    assert sum(line[:2] in ("0 ", "1 ", "2 ") for line in lines) == 3 + 2 + 2
    assert max(map(len, lines)) <= 120


def test_too_few_examples_are_refused() -> None:
    few = [rows[: 3 * LENGTH] for rows in (*sample().teacher, *sample().student)]
    with pytest.raises(UserError, match="at least 4 examples, got 3"):
        measure(Sample(KeysValues(*few[:2]), KeysValues(*few[2:]), of_examples()[: 3 * LENGTH]))


SMALL = ["--configfile", str(REPOSITORY / "config.yaml"), "--set", "data={train: 20, validation: 5, test: 5}"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small store of the demo's teacher."""
    folder = tmp_path_factory.mktemp("profile")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["tokenize", *SMALL]) == 0
        assert main(["extract", *SMALL]) == 0
    return folder


@pytest.mark.slow
def test_the_command_writes_numbers_and_a_page_that_loads_nothing(results: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(results)
    assert main(["profile", *SMALL, "--tokens", "600", "--json", "profile.json"]) == 0
    told = capsys.readouterr().out
    assert "Predicting a constant scores a raw cosine of" in told
    numbers = json.loads(Path("profile.json").read_text(encoding="utf-8"))
    assert 600 <= sum(numbers["tokens"].values()) < 600 + 128
    assert len(numbers["pair"]["values"]["cka"]) == 2
    assert numbers["store"].startswith("teacher-")
    html = Path("results/demo/profile.html").read_text(encoding="utf-8")
    assert "<script" not in html
    assert "src=" not in html
    assert html.count("<svg") >= 2


def test_a_missing_store_is_one_sentence_with_the_commands_that_make_it(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *SMALL, "--preset", "demo"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "teacher_kv" in line
    assert "kava tokenize --configfile" in line
    assert "kava extract --configfile" in line
    assert "--preset demo" in line


@pytest.mark.slow
def test_a_store_that_lost_its_manifest_needs_extract_alone(results: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    shutil.copytree(results / "results" / "tokens", tmp_path / "results" / "tokens")
    monkeypatch.chdir(tmp_path)
    assert main(["profile", *SMALL]) == 1
    error = capsys.readouterr().err
    assert "make it with `kava extract" in error
    assert "kava tokenize" not in error
