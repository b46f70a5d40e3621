"""Tokenizers that users bring: every way to begin, to end and to split a text, and files that cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXTS = (
    "Question: How many apples are there in 2 bags of 3?\nAnswer: 2*3=<<2*3=6>>6 apples.\n#### 6",
    "Question: Ann has 10 pens and 4 more. How many?\nAnswer: 10+4=<<10+4=14>>14 in all.\n#### 14",
    "0 1 2 3 4 5 6 7 8 9 . , - + * / = < > ? ! : # \n",
)
UNK, BOS, EOS, PAD = "<unk>", "<s>", "</s>", "<pad>"
SPECIAL = [UNK, BOS, EOS, PAD]
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 32, "head_dim": 8, "intermediate_size": 48, "max_position_embeddings": 512,
}  # fmt: skip


def byte_level(folder: Path) -> Path:
    """As GPT-2 and Qwen: bytes, and no token at either end."""
    return _save(_byte_level(), folder)


def bos_adding(folder: Path) -> Path:
    """As Llama 3: a start token before every text."""
    return _save(_ending(_byte_level(), f"{BOS} $A"), folder)


def eos_appending(folder: Path) -> Path:
    """As T5 and many a fine-tuned Llama: the end token after every text."""
    return _save(_ending(_byte_level(), f"$A {EOS}"), folder)


def bos_and_eos(folder: Path) -> Path:
    """Both."""
    return _save(_ending(_byte_level(), f"{BOS} $A {EOS}"), folder)


def other_end(folder: Path) -> Path:
    """As BERT: what follows a text is not the token that ends an answer."""
    return _save(_ending(_byte_level(), f"{BOS} $A {PAD}"), folder)


def llama_adding_eos(folder: Path) -> Path:
    """`add_eos_token: true` beside the class of Llama, which splits a text in a way of its own."""
    own = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": True}
    return _save(_ending(_sentencepiece(), f"{BOS} $A {EOS}"), folder, **own)


def sentencepiece(folder: Path) -> Path:
    """As Llama 2: a space before every text, bytes for what it does not know."""
    return _save(_ending(_sentencepiece(), f"{BOS} $A"), folder)


def unigram(folder: Path) -> Path:
    """As T5: pieces of a unigram model, and an end token after every text."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token=UNK, show_progress=False, initial_alphabet=["\n"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return _save(_ending(tokenizer, f"$A {EOS}"), folder)


def word_level(folder: Path) -> Path:
    """Whole words, white space dropped; `#` is a word."""
    return _save(_word_level(SPECIAL), folder)


def word_level_without_unknown(folder: Path) -> Path:
    """Whole words, with no token for a word that it does not know."""
    return _save(_word_level([EOS]), folder, unk_token=None, bos_token=None, pad_token=None)


def without_marks(folder: Path) -> Path:
    """As TinyStories' own: `#` is no token, and becomes the unknown one."""
    tokenizer = _byte_level(text.replace("#", "") for text in TEXTS)
    state = json.loads(tokenizer.to_str())
    hashes = [token for token in state["model"]["vocab"] if "#" in token]
    for token in hashes:
        state["model"]["vocab"][token.replace("#", "\u0001")] = state["model"]["vocab"].pop(token)
    state["model"]["unk_token"] = UNK
    return _save(Tokenizer.from_str(json.dumps(state)), folder)


def dropping_marks(folder: Path) -> Path:
    """`#` is removed before anything is split."""
    return _normalising(normalizers.Replace("#", ""), folder)


def without_digits(folder: Path) -> Path:
    """Every digit becomes the same one."""
    return _normalising(normalizers.Replace(Regex("[0-9]"), "0"), folder)


def without_eights(folder: Path) -> Path:
    """One digit is missing."""
    return _normalising(normalizers.Replace("8", ""), folder)


def lower_case(folder: Path) -> Path:
    """Letters lose their case: harmless for marks and numbers."""
    return _normalising(normalizers.Lowercase(), folder)


# Each can write all of GSM8K's form.
GOOD: dict[str, Callable[[Path], Path]] = {
    build.__name__: build
    for build in (
        byte_level, bos_adding, eos_appending, bos_and_eos, other_end, llama_adding_eos, sentencepiece, unigram,
        word_level, lower_case,
    )
}  # fmt: skip


def only_sentencepiece_model(folder: Path) -> Path:
    """`tokenizer.model` alone, as old Llamas have it."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    _write(folder / "config.json", CONFIG | {"vocab_size": 1})
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", "eos_token": EOS, "bos_token": BOS})
    return folder


def unknown_class(folder: Path) -> Path:
    """`vocab.json` and `merges.txt` of a class that nobody has."""
    _as_vocabulary_and_merges(byte_level(folder))
    _change(folder / "tokenizer_config.json", tokenizer_class="NoSuchTokenizer")
    return folder


def slow(folder: Path) -> Path:
    """A class in Python alone, which knows no offsets."""
    _as_vocabulary_and_merges(byte_level(folder))
    _change(folder / "tokenizer_config.json", tokenizer_class="CTRLTokenizer")
    return folder


def truncated(folder: Path) -> Path:
    """`tokenizer.json` was not copied to its end."""
    byte_level(folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text[: len(text) // 2], encoding="utf-8")
    return folder


def pointer(folder: Path) -> Path:
    """`tokenizer.json` is what Git LFS leaves where it was not fetched."""
    byte_level(folder)
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 11422166\n"
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    return folder


def another_file(folder: Path) -> Path:
    """`tokenizer.json` is JSON, and no tokenizer."""
    byte_level(folder)
    (folder / "tokenizer.json").write_text('{"error": "not found"}', encoding="utf-8")
    return folder


def damaged_settings(folder: Path) -> Path:
    """`tokenizer_config.json` is no JSON."""
    byte_level(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": ', encoding="utf-8")
    return folder


def without_model(folder: Path) -> Path:
    """`tokenizer.json` has lost its vocabulary."""
    path = byte_level(folder) / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    del state["model"]
    _write(path, state)
    return folder


def unknown_model(folder: Path) -> Path:
    """`tokenizer.json` of a version to come."""
    _change(byte_level(folder) / "tokenizer.json", model={"type": "Later", "vocab": {}})
    return folder


def settings_of_another_kind(folder: Path) -> Path:
    """`tokenizer_config.json` is a list."""
    _write(byte_level(folder) / "tokenizer_config.json", [])
    return folder


def end_that_is_no_text(folder: Path) -> Path:
    """`eos_token` is a number."""
    _change(byte_level(folder) / "tokenizer_config.json", eos_token=2)
    return folder


def without_end(folder: Path) -> Path:
    """No token ends an answer."""
    byte_level(folder)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNK})
    return folder


UNREADABLE: dict[str, Callable[[Path], Path]] = {
    build.__name__: build
    for build in (
        only_sentencepiece_model, unknown_class, slow, truncated, pointer, another_file, without_model, unknown_model,
        damaged_settings, settings_of_another_kind, end_that_is_no_text, without_end,
    )
}  # fmt: skip


def configure(folder: Path, **settings: Any) -> None:
    """Change settings of the model that a tokenizer lies beside."""
    _change(folder / "config.json", **settings)


def _byte_level(texts: Any = TEXTS) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _normalising(normalizer: Any, folder: Path) -> Path:
    tokenizer = _byte_level()
    tokenizer.normalizer = normalizer
    return _save(tokenizer, folder)


def _sentencepiece() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token=UNK, byte_fallback=True, fuse_unk=True))
    # Learnt word by word; the file then holds no splitting, as those that are converted from `tokenizer.model`.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*SPECIAL, *bytes_], show_progress=False)
    tokenizer.train_from_iterator(TEXTS, trainer)
    # Its bytes are no special tokens: a text that spells one out is not meant.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    state["pre_tokenizer"] = None
    spaces = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    state["normalizer"] = json.loads(normalizers.Sequence(spaces).__getstate__())
    return Tokenizer.from_str(json.dumps(state))


def _word_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation(), pre_tokenizers.Digits(individual_digits=True)]
    )
    tokenizer.train_from_iterator(TEXTS, trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    return tokenizer


def _ending(tokenizer: Tokenizer, single: str) -> Tokenizer:
    special = [(token, tokenizer.token_to_id(token)) for token in SPECIAL if token in single]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return tokenizer


def _save(tokenizer: Tokenizer, folder: Path, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNK, "bos_token": BOS, "eos_token": EOS,
        "pad_token": PAD,
    } | settings  # fmt: skip
    _write(folder / "tokenizer_config.json", {name: value for name, value in settings.items() if value is not None})
    _write(folder / "config.json", CONFIG | {"vocab_size": tokenizer.get_vocab_size()})
    return folder


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _change(path: Path, **settings: Any) -> None:
    _write(path, json.loads(path.read_text(encoding="utf-8")) | settings)


def _as_vocabulary_and_merges(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    _write(folder / "vocab.json", model["vocab"])
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(merges, encoding="utf-8")
    (folder / "tokenizer.json").unlink()
