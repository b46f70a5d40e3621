"""GGUF files as llama.cpp's converter writes them: of a model directory, with the layout of its family."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

Arrays = dict[str, np.ndarray]
# Names of weights in a directory → in a GGUF file.
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
CONTROL, NORMAL, BYTE = 3, 1, 6


def write_gguf(
    folder: Path, file: Path, kind: str = "F32", *, split: str = "gpt-2", tensors: Arrays | None = None, **fields: Any
) -> Path:
    """Write the model and the byte-level tokenizer of a directory.

    Parameters
    ----------
    folder
        Of a Llama or Qwen2.
    file
        To write.
    kind
        Of the matrices: F32, Q8_0 or Q4_1; vectors are F32.
    split
        `tokenizer.ggml.pre`.
    tensors
        To add, or to put in place of the model's, in the file's names.
    fields
        To add, with `__` for dots; a value of None takes one out.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = json.loads((folder / "config.json").read_text())
    family, head_dim = config["model_type"], config["hidden_size"] // config["num_attention_heads"]
    settings = {
        "general.license": "apache-2.0",
        f"{family}.block_count": config["num_hidden_layers"],
        f"{family}.context_length": config["max_position_embeddings"],
        f"{family}.embedding_length": config["hidden_size"],
        f"{family}.feed_forward_length": config["intermediate_size"],
        f"{family}.attention.head_count": config["num_attention_heads"],
        f"{family}.attention.head_count_kv": config["num_key_value_heads"],
        f"{family}.attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        f"{family}.rope.freq_base": config["rope_parameters"]["rope_theta"],
        f"{family}.vocab_size": config["vocab_size"],
        **({"llama.rope.dimension_count": head_dim} if family == "llama" else {}),
        **_tokenizer(folder, split),
        **{name.replace("__", "."): value for name, value in fields.items()},
    }
    writer = GGUFWriter(file, family)
    for name, value in settings.items():
        _add(writer, name, value)
    for name, weights in (gguf_tensors(folder) | (tensors or {})).items():
        if kind == "F32" or weights.ndim == 1:
            writer.add_tensor(name, weights)
        else:
            quantised = GGMLQuantizationType[kind]
            writer.add_tensor(name, quantize(weights, quantised), raw_dtype=quantised)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def gguf_tensors(folder: Path) -> Arrays:
    """Weights of a directory in the names and the layout of a GGUF file."""
    config, tensors = json.loads((folder / "config.json").read_text()), {}
    for name, weights in load_file(folder / "model.safetensors").items():
        module, _, what = name.rpartition(".")
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            tensors[f"blk.{layer}.{NAMES[part]}.{what}"] = rotated_pairs(weights, part, config)
        else:
            tensors[f"{NAMES[module]}.{what}"] = weights
    return tensors


def rotated_pairs(weights: np.ndarray, part: str, config: dict[str, Any]) -> np.ndarray:
    """Rows of a Llama's queries and keys: the two halves of a head become neighbours; others as they are."""
    heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}
    if config["model_type"] != "llama" or part not in heads:
        return weights
    dim = len(weights) // config[heads[part]]
    rows = [
        start + place for start in range(0, len(weights), dim) for i in range(dim // 2) for place in (i, i + dim // 2)
    ]
    return weights[rows]


def _tokenizer(folder: Path, split: str) -> dict[str, Any]:
    state = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    own = json.loads((folder / "tokenizer_config.json").read_text())
    vocabulary = state["model"]["vocab"] | {token["content"]: token["id"] for token in state["added_tokens"]}
    special = {token["content"] for token in state["added_tokens"]}
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    ids = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if token in special else NORMAL for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in state["model"]["merges"]],
        **{f"tokenizer.ggml.{name}_token_id": vocabulary[own[token]] for name, token in ids.items() if own.get(token)},
    }


def _add(writer: Any, name: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def read_blocks(data: np.ndarray, kind: str) -> np.ndarray:
    """What the bytes of quantised rows stand for, number by number, as the format's page says it.

    Q8_0 is a half `d` and 32 signed bytes, each `d·q`; Q4_1 is halves `d` and `m` and 16 bytes, `d·q + m`, of which the
    low four bits are the first 16 numbers and the high ones the others.
    """
    rows = []
    width = {"Q8_0": 34, "Q4_1": 20}[kind]
    for row in data:
        numbers: list[np.float32] = []
        for start in range(0, len(row), width):
            block = row[start : start + width].tobytes()
            d = np.float32(np.frombuffer(block[:2], np.float16)[0])
            if kind == "Q8_0":
                numbers += [d * np.float32(q) for q in np.frombuffer(block[2:], np.int8)]
            else:
                m = np.float32(np.frombuffer(block[2:4], np.float16)[0])
                codes = [byte & 15 for byte in block[4:]] + [byte >> 4 for byte in block[4:]]
                numbers += [d * np.float32(q) + m for q in codes]
        rows.append(numbers)
    return np.array(rows, dtype=np.float32)
