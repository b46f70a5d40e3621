"""Presets of models of the hub: geometries that are known, revisions that are pinned, and a plan that fits."""

import json

import pytest

from kava.cli import main
from kava.config.jobs import Jobs
from kava.config.load import REPOSITORY, load_config
from kava.config.models import ModelSettings
from kava.plan.geometry import PACKAGED, read_geometry
from kava.plan.trace import parameter_counts

CONFIG = str(REPOSITORY / "config.yaml")

# Parameters as their makers publish them.
PARAMETERS = {
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "openai-community/gpt2": 124_439_808,
    "openai-community/gpt2-medium": 354_823_168,
}


@pytest.mark.parametrize("model", PARAMETERS)
def test_packaged_geometries_have_the_models_parameter_counts(model: str) -> None:
    config = read_geometry(ModelSettings(model=model, revision="0" * 40))
    counts = parameter_counts(config)
    assert counts.all == PARAMETERS[model]
    # The embedding, which is the head too, is not quantised.
    assert counts.linear <= counts.all - config.vocab_size * config.hidden_size


# Presets whose models lie on the hub.
HUB_PRESETS = ("qwen2.5-8gb", "qwen2.5-8gb-oom", "qwen2.5-rkv", "gpt2", "llama")


def test_every_presets_models_are_known_and_pinned_without_a_download() -> None:
    for preset in HUB_PRESETS:
        config = load_config(None, {"preset": preset})
        assert {config.teacher.model, config.student.model} <= PARAMETERS.keys() <= PACKAGED.keys()
        assert Jobs(config).report.inputs


@pytest.mark.slow
@pytest.mark.parametrize("preset", HUB_PRESETS[1:])
def test_every_preset_fits_8_gib(capsys, preset: str) -> None:
    # Without the arms that take less, each of which is a trace of seconds.
    arms = "arms={structured: null, shuffled: null, sft: null}"
    status = main(["plan", "--configfile", CONFIG, "--json", "--preset", preset, "--set", arms])
    found = json.loads(capsys.readouterr().out)
    assert (status, found["vram_budget_gib"]) == (0, 8)
    assert found["disk"]["store_gb"] < 25
