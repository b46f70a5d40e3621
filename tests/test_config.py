"""Configuration: what is merged, what is refused and how, what a key depends on."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kava.commands.config import SCHEMA_FILE, TABLE_FILE, schema_text, table_text
from kava.config import Jobs, load_config
from kava.config.job import Runtime
from kava.config.load import PRESETS, merge, parse_assignments, read_preset
from kava.config.schema import Config
from kava.errors import UserError
from kava.files import sha256_json, write_json
from kava.store.admin.inventory import Entry
from kava.store.admin.usage import Usage, token_set

REPOSITORY = Path(__file__).resolve().parents[1]


def load(*assignments: str) -> Config:
    return load_config(REPOSITORY / "config.yaml", parse_assignments(list(assignments)))


def test_generated_schema_and_documentation_are_current() -> None:
    assert SCHEMA_FILE.read_text() == schema_text(), "run `kava config --write-docs`"
    assert TABLE_FILE.read_text() == table_text(), "run `kava config --write-docs`"


@pytest.mark.parametrize("preset", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_is_valid(preset: str) -> None:
    config = load(f"preset={preset}")
    assert config.experiment == preset
    primary, other = config.declared_comparisons[0]
    assert config.arms[primary].aligner.kind == "structured"
    assert other in {
        name for name, arm in config.arms.items() if arm.is_control or (arm.aligner and arm.aligner.kind == "flat")
    }


def test_an_arm_without_kv_loss_is_a_control_whatever_it_is_called() -> None:
    config = load("arms={flat: {kv_weight: 0}, structured: {auxiliary: {cka: {}}}, sft: {auxiliary: {cka: {}}}}")
    assert config.control_arms == ["flat"]


def test_steps_of_pretraining_concern_only_arms_that_are_pretrained() -> None:
    arms = "arms={flat: {pretrain_projector: true}}"
    short, long = (Jobs(load(arms, f"pretrain.steps={steps}")) for steps in (100, 200))
    assert short.pretrain("flat", 42).params != long.pretrain("flat", 42).params
    assert short.pretrain("structured", 42).params == long.pretrain("structured", 42).params


def test_reference_preset_is_the_one_that_the_readme_promises() -> None:
    config = load("preset=qwen2.5-8gb")
    assert (config.distill.steps, config.distill.batch_size, config.distill.accumulation) == (1000, 2, 16)
    assert (config.max_length, config.distill.log_every, config.distill.save_every) == (512, 10, 200)
    assert config.seeds == [42, 43, 44]
    assert config.teacher.quantization == "nf4"
    assert {"flat", "structured", "sft", "shuffled"} <= set(config.arms)
    assert config.control_arms == ["sft", "shuffled"]
    # Its identities need no network: they are the pinned revisions.
    assert Jobs(config).extract.spec.key.teacher["revision"] == config.teacher.revision


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("distil.steps=3", "unknown key 'distil'; did you mean 'distill'"),
        ("distill.step=3", "distill: unknown key 'step'; did you mean 'steps'"),
        ("preset=dmeo", "unknown preset 'dmeo'; did you mean 'demo'"),
        ("distill.steps=0", "distill.steps: Input should be greater than 0 (got 0)"),
        ("arms={flat: {aligner: {kind: flatt}}}", "'flat', 'linear', 'flat_matched', 'structured'"),
        ("arms={structured: {loss: {kind: mse, alpha: 1}}}", "unknown key 'alpha'"),
        ("template='{answer} {question}'", "must contain {question} once and end in {answer}"),
        ("seeds=[1, 1]", "repeat a value"),
        ("comparisons=[[flat, none]]", "comparisons name the arm 'none'"),
        ("comparisons=[[flat, flat]]", "an arm and itself"),
        ("comparisons=[[flat, sft], [sft, flat]]", "two arms more than once"),
        ("arms={sft: {teacher_kv: shuffled}}", "changes nothing in an arm that reads no KV"),
        ("arms={flat: {kv_warmup_ratio: 0.5}}", "leave no step at full weight before kv_until=0.3"),
        ("arms={flat: {loss: {kind: hybrid, schedule: linear, mse: 0.5}}}", "sets the weights mse itself"),
        ("arms={flat: {loss: {kind: structural}, tensors: values}}", "compares the attention to keys"),
        ("arms={flat: {auxiliary: {cka: {warmup_ratio: 0.5, until: 0.2}}}}", "ends after until=0.2"),
        ("arms={flat: {auxiliary: {codi: {}}}}", "set kv.signals.hidden_states: true"),
        ("arms={flat: {auxiliary: {logit_kd: {}}}}", "set kv.signals.topk_logits"),
        ("arms={flat: {loss: {kind: mse, weights: importance}}}", "needs kv.signals.importance"),
        ("kv={select: {kind: random, scope: head}}", "compares KV token by token"),
        ("distill={accumulation: 3, num_processes: 2}", "accumulation=3 is no multiple of num_processes=2"),
        ("distill.steps=5", "steps=5 is no multiple of log_every=10"),
        ("teacher={quantization: int8, double_quantization: false}", "set quantization: nf4"),
        ("seeds=[-1]", "greater than or equal to 0"),
        ("template='{question} {x} {answer}'", "no other field"),
        ("arms={", "the value is not valid YAML"),
        ("no equals sign", "expected KEY=VALUE"),
    ],
)
def test_bad_configuration_is_one_sentence_that_names_the_fault(assignment: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        load(assignment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_override_of_a_kind_replaces_the_whole_mapping() -> None:
    base = {"loss": {"kind": "mercator", "alpha": 1.0}, "arms": {"a": {"x": 1}}}
    assert merge(base, {"loss": {"kind": "mse"}})["loss"] == {"kind": "mse"}
    assert merge(base, {"loss": {"alpha": 2.0}})["loss"] == {"kind": "mercator", "alpha": 2.0}


def test_null_removes_an_arm_and_snakemakes_word_for_it_too() -> None:
    for null in (None, "null"):
        config = load_config(REPOSITORY / "config.yaml", {"arms": {"flat": null}})
        assert list(config.arms) == ["structured", "sft"]
    assert load("arms={structured: {aligner: null}}").arms["structured"].aligner is None


def test_presets_build_on_presets() -> None:
    assert read_preset("demo-3seeds") == read_preset("demo") | {"experiment": "demo-3seeds", "seeds": [42, 43, 44]}


def test_store_key_depends_on_what_its_bytes_depend_on_and_on_nothing_else() -> None:
    store = Jobs(load()).extract.output
    for same in ("distill.steps=10", "experiment=other", "arms={flat: null}", "seeds=[1]", "data.test=100"):
        assert Jobs(load(same)).extract.output == store, same
    others = ("kv.codec={kind: bf16}", "data.train=999", "teacher.quantization=none", "kv.batch_tokens=512")
    for other in (*others, "teacher.double_quantization=false"):
        assert Jobs(load(other)).extract.output != store, other


def test_settings_that_came_later_are_in_no_key_at_their_defaults() -> None:
    """So that stores made before them are found."""
    key = Jobs(load()).extract.spec.key.model_dump()
    assert key["teacher"].keys() == {"files", "quantization", "dtype"}
    assert key["tokens"].keys() == {"format_version", "data", "template", "max_length", "tokenizer"}


def test_adapters_are_a_reason_to_distill_again_and_checkpointing_of_activations_is_none() -> None:
    plain, adapted, checkpointed = (
        Jobs(load(change)) for change in ("seeds=[42]", "student.lora={}", "distill.gradient_checkpointing=true")
    )
    assert plain.distill("flat", 42).params == checkpointed.distill("flat", 42).params
    assert Runtime.of(checkpointed.config).distill.gradient_checkpointing
    assert plain.distill("flat", 42).params != adapted.distill("flat", 42).params
    assert plain.pretrain("flat", 42).params == adapted.pretrain("flat", 42).params
    assert plain.reference("student_base").params == adapted.reference("student_base").params


def test_what_the_student_reads_changes_its_token_set_and_nothing_of_the_teachers() -> None:
    full, equations = Jobs(load()), Jobs(load("student_reasoning=equations"))
    assert full.tokenize.output != equations.tokenize.output
    assert full.extract.output == equations.extract.output
    assert full.bench.output == equations.bench.output
    assert full.reference("teacher").output == equations.reference("teacher").output
    # Its gold answers are those that students read.
    assert full.reference("student_base").output != equations.reference("student_base").output
        assert full.reference(role).spec == equations.reference(role).spec


def test_pruning_knows_that_both_readings_use_one_store_and_one_reference(tmp_path: Path) -> None:
    full, equations = Jobs(load()), Jobs(load("student_reasoning=equations"))

    def entry(kind: str, spec: dict) -> Entry:
        folder = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}"
        write_json(folder / "manifest.json", {"spec": spec})
        return Entry(kind, folder, True, 0, 0.0)

    of_store = sha256_json(full.extract.spec.key.tokens.model_dump())
    reference = entry("references", full.reference("teacher").spec.model_dump())
    for plan in (full, equations):
        assert token_set(entry("tokens", plan.tokenize.spec.key.model_dump())) == of_store
        used = Usage(frozenset(), {plan.tokenize.output.parent.name: ["ours"], "demo-0": ["other"]}, [])
        assert used.of(reference) == ["experiment ours"]


def test_changing_one_arm_changes_the_params_of_that_arm_alone() -> None:
    before, after = Jobs(load()), Jobs(load("arms={structured: {loss: {kind: mse}}}"))
    for stage in ("pretrain", "distill"):
        assert getattr(before, stage)("structured", 42).params != getattr(after, stage)("structured", 42).params
        assert getattr(before, stage)("flat", 42).params == getattr(after, stage)("flat", 42).params
    assert before.report.params != after.report.params


def test_key_of_a_local_model_is_its_content_and_not_its_path(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "tokenizer.json").write_text("{}")

    def key(name: str) -> Any:
        return Jobs(load(f"teacher.model={tmp_path / name}")).extract.spec.key

    assert key("one") == key("two")
    (tmp_path / "two" / "model.safetensors").write_bytes(b"other weights")
    assert key("one") != key("two")


def test_hub_models_need_a_pinned_revision() -> None:
    config = load("teacher.model=Qwen/Qwen2.5-0.5B", "teacher.revision=main")
    with pytest.raises(UserError, match="40 hex digits of a commit"):
        _ = Jobs(config).extract


@pytest.mark.parametrize(
    ("place", "named", "of_it"),
    [("teacher", "model", "revision"), ("student", "model", "trust_remote_code"), ("data", "path", "revision")],
)
def test_another_model_or_data_set_does_not_keep_the_revision_of_the_former(place: str, named: str, of_it: str) -> None:
    base = {place: {named: "a/b", of_it: "0" * 40, "train": 3}}
    assert merge(base, {place: {named: "c/d"}}) == {place: {named: "c/d", "train": 3}}
    assert merge(base, {place: {named: "c/d", of_it: "1" * 40}})[place][of_it] == "1" * 40
    for same in ({named: "a/b"}, {"train": 4}):
        assert merge(base, {place: same})[place][of_it] == "0" * 40


def test_a_model_in_place_of_a_presets_needs_a_revision_of_its_own() -> None:
    with pytest.raises(UserError, match="model someone/another needs `revision:` with the 40 hex digits"):
        _ = Jobs(load("preset=qwen2.5-8gb", "teacher.model=someone/another")).extract


@pytest.mark.parametrize(
    ("key", "value"),
    [("arms", "{structured:"), ("seeds", "[1"), ("kv", "{codec: {kind: int4}"), ("data", "{path: 'a}")],
)
def test_a_value_of_snakemakes_that_is_no_yaml_is_one_sentence(key: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"configuration: {key}=.* is not valid YAML .*; close every bracket"):
        load_config(None, {key: value})


def test_text_of_ones_own_need_not_be_yaml() -> None:
    assert load_config(None, {"notes": "[draft"}).notes == "[draft"


def test_codecs_are_measured_for_who_asks_and_change_no_other_job() -> None:
    plain, asked = Jobs(load()), Jobs(load("report.codecs=true"))
    assert "bench" not in plain.report.inputs
    assert asked.report.inputs["bench"] == plain.bench.output
    for job in ("tokenize", "extract", "bench"):
        assert getattr(plain, job) == getattr(asked, job)
    for stage in ("pretrain", "distill", "evaluate"):
        assert getattr(plain, stage)("flat", 42) == getattr(asked, stage)("flat", 42)


def test_missing_model_directory_is_named() -> None:
    with pytest.raises(UserError, match=r"\./nowhere does not exist"):
        _ = Jobs(load("teacher.model=./nowhere")).extract


def test_config_yaml_is_short_and_names_the_default_preset() -> None:
    assert yaml.safe_load((REPOSITORY / "config.yaml").read_text()) == {"preset": "demo"}


def test_the_cache_is_where_the_configuration_or_else_the_environment_says(monkeypatch) -> None:
    assert load().cache_dir == "results"
    monkeypatch.setenv("KAVA_CACHE", "/data/kava")
    assert load().cache_dir == "/data/kava"
    assert load("cache_dir=elsewhere").cache_dir == "elsewhere"


def test_where_the_cache_lies_and_how_many_jobs_fill_it_are_in_no_key() -> None:
    plain, other = Jobs(load()), Jobs(load("cache_dir=elsewhere", "extract_jobs=3"))
    assert plain.extract.spec == other.extract.spec
    assert plain.report.spec == other.report.spec


def test_two_targets_of_a_transform_are_refused_and_none_is_0_99() -> None:
    assert load("kv.codec.kind=transform").kv.codec.target_cos == 0.99  # type: ignore[union-attr]
    with pytest.raises(UserError, match="are two targets; keep one"):
        load("kv.codec={kind: transform, target_cos: 0.9, target_ratio: 0.1}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["arms.structured.select.kind=rkv"], r"needs the scores that kv\.signals\.importance"),
        (["arms.structured.select.kind=random", "arms.structured.select.scope=head"], "set scope: example"),
        (["arms.structured.select.kind=uniform", "kv.select.kind=uniform"], r"set kv\.select: \{kind: full\}"),
        (["kv.select.kind=rkv", "kv.signals.importance.kind=rkv"], "select in the arms"),
        (["kv.select={kind: random, scope: head}", "kv.codec.kind=transform"], "choose another codec"),
    ],
)
def test_a_selection_that_would_fail_after_extraction_fails_before(settings: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(*settings)


def test_arms_may_select_from_a_full_store_that_has_the_scores() -> None:
    load("kv.signals.importance.kind=rkv", "arms.structured.select={kind: rkv, budget: 8}")
    load("arms.structured.select={kind: random, budget: 8}")
