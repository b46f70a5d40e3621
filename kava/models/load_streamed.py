"""Load a teacher whose weights stay on the disk."""

from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import BitsAndBytesConfig
from transformers.quantizers import AutoHfQuantizer

from kava.config.models import Teacher
from kava.errors import UserError
from kava.models.capture import NO_ROPE, ROTATE_HALF
from kava.models.cut import layers_of
from kava.models.load import (
    becomes_resident,
    build,
    check_model,
    load_model_config,
    quantization_of,
    require_alone,
)
from kava.models.on_disk import weights_fault
from kava.models.source import folder_of, require_sound
from kava.models.streamed import Convert, StreamedModel

# Families of which a test shows that they give the same bits so.
STREAMED = ROTATE_HALF + NO_ROPE


def stream_teacher(source: Teacher, device: torch.device, head: bool) -> StreamedModel:
    """The frozen teacher with its weights on the disk, for forwards of which many run together.

    Parameters
    ----------
    source, device
        As of `load_teacher`.
    head
        Whether forwards will want its head.

    Raises
    ------
    UserError
        Its family was not shown to give the same numbers so, or its weights cannot be read one by one.
    """
    require_alone(source)
    check_model(source)
    config, dtype = load_model_config(source), getattr(torch, source.dtype)
    if config.model_type not in STREAMED:
        raise UserError(
            f"models of type {config.model_type!r} were not shown to give the same numbers layer by layer (shown: "
            f"{', '.join(STREAMED)}); set teacher.placement: resident"
        )
    folder = folder_of(source)
    if folder is None:
        raise UserError(f"{source.model} is not on this machine as a whole; get it first with `kava fetch`")
    require_sound("model", source, weights_fault(folder, f"copy the file to {folder}"))
    with init_empty_weights(include_buffers=False), torch.random.fork_rng(devices=[]):
        model = build(config, dtype=dtype)
    model.name_or_path = source.model
    convert = _converter(model, device, quantization_of(source, dtype))
    model.eval().requires_grad_(False)  # bitsandbytes' modules, too
    streamed = StreamedModel(model, folder, device, convert, head)
    if device.type == "cpu" and source.quantization == "nf4":
        from kava.models.nf4 import serve_any_shape  # imports bitsandbytes

        for layer in layers_of(model)[1]:
            layer.register_forward_pre_hook(lambda filled, _: serve_any_shape(filled))
    becomes_resident(model)
    return streamed


def _converter(model: Any, device: torch.device, quantization: BitsAndBytesConfig | None) -> Convert:
    """What `from_pretrained` makes of each tensor of a checkpoint; modules that hold codes take their places here."""
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    quantizer = None
    if quantization:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model=model, dtype=model.dtype, device_map={"": device}, checkpoint_files=[])

    def convert(name: str, stored: Tensor) -> Tensor:
        # A copy: a layer that is mapped from its file would be read from the disk while it computes.
        tensor = stored.to(dtypes[name], copy=True).to(device)
        if quantizer and quantizer.param_needs_quantization(model, name):
            return quantizer.get_quantize_ops().convert({name: tensor}, model=model, full_layer_name=name)[name]
        return nn.Parameter(tensor, requires_grad=False)

    return convert
