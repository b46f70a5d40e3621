"""The projector: one aligner for keys and one for values, the channel statistics around them, and its file format."""

from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from kava.align import make_aligner
from kava.config.arms import Aligner as AlignerSettings
from kava.errors import UserError
from kava.files import read_json, write_json
from kava.kv import TENSORS, Geometry, KeysValues

# Channels that hardly vary would be blown up to unit variance.
STD_FLOOR = 1e-4


class Projector(nn.Module):
    """Teacher KV in, student KV out.

    The teacher's channels are standardised first: Qwen2 keys carry constant biases of hundreds, and a LayerNorm over
    all channels would see little else. With `center`, the output is shifted by fixed means so that the aligners
    predict how the student's KV varies, not where it sits.

    Parameters
    ----------
    settings
        Of the aligner.
    teacher, student
        KV geometries.
    center
        Shift the output by the fixed means.

    Attributes
    ----------
    student_mean, student_std
        Channel statistics of the base student, `[2, L_s, H_s, 1, D_s]`; index 0 keys, 1 values.
    output_mean
        Channel means of the aligners' own output at the start of the phase, same shape.
    output_scale
        Factor per layer and head, `[2, L_s, H_s, 1, 1]`, that gives a drawn aligner's output the spread of the base
        student: by initialisation alone it is 0.17 for `flat` and 1.0 for `structured`, and losses that see magnitude
        would compare that.
    cka
        CKA of the base student's layers with the teacher's, `[2, L_s, L_t]`.
    """

    teacher_mean: Tensor
    teacher_std: Tensor
    student_mean: Tensor
    student_std: Tensor
    output_mean: Tensor
    output_scale: Tensor
    cka: Tensor

    def __init__(self, settings: AlignerSettings, teacher: Geometry, student: Geometry, center: bool = True) -> None:
        super().__init__()
        self.settings, self.teacher, self.student, self.center = settings, teacher, student, center
        self._each_aligner = [make_aligner(settings, teacher, student) for _ in TENSORS]
        self.aligners = nn.ModuleList(self._each_aligner)
        teacher_shape = (2, teacher.layers, teacher.kv_heads, 1, teacher.head_dim)
        student_shape = (2, student.layers, student.kv_heads, 1, student.head_dim)
        self.register_buffer("teacher_mean", torch.zeros(teacher_shape))
        self.register_buffer("teacher_std", torch.ones(teacher_shape))
        self.register_buffer("student_mean", torch.zeros(student_shape))
        self.register_buffer("student_std", torch.ones(student_shape))
        self.register_buffer("output_mean", torch.zeros(student_shape))
        self.register_buffer("output_scale", torch.ones(2, student.layers, student.kv_heads, 1, 1))
        self.register_buffer("cka", torch.zeros(2, student.layers, teacher.layers))

    def set_teacher_statistics(self, mean: dict[str, Tensor], std: dict[str, Tensor]) -> None:
        """Take the store's channel statistics, `{"keys", "values"}` → `[L_t, H_t, D_t]`."""
        self.teacher_mean.copy_(torch.stack([mean[name] for name in TENSORS]).unsqueeze(-2))
        self.teacher_std.copy_(torch.stack([std[name] for name in TENSORS]).unsqueeze(-2).clamp(min=STD_FLOOR))
        for aligner, of_tensor in zip(self._each_aligner, self.teacher_mean, strict=True):
            aligner.set_teacher_mean(of_tensor)

    def set_student_statistics(self, mean: Tensor, std: Tensor, cka: Tensor) -> None:
        """Take what was measured of the base student, shaped as the attributes."""
        self.student_mean.copy_(mean)
        self.student_std.copy_(std.clamp(min=STD_FLOOR))
        self.cka.copy_(cka)
        for aligner, similarity in zip(self._each_aligner, self.cka, strict=True):
            aligner.set_layer_similarity(similarity)

    def set_output_statistics(self, mean: Tensor, std: Tensor | None) -> None:
        """Take the statistics of `raw`, shaped as the attributes; std only of an aligner as it was drawn."""
        self.output_mean.copy_(mean)
        if std is not None and not self.shares_coordinates:
            student, drawn = _spread(self.student_std), _spread(std)
            self.output_scale.copy_(student / drawn.clamp(min=STD_FLOOR))

    def leave_output(self) -> None:
        """Take the aligners' output as it is, since they were solved for what the student has about its means."""
        self.output_mean.zero_()
        self.output_scale.fill_(1)

    def forward(self, teacher: KeysValues) -> KeysValues:
        """Project teacher KV `[B, L_t, H_t, T, D_t]` to the student's coordinates `[B, L_s, H_s, T, D_s]`."""
        projected = []
        for i, raw in enumerate(self.raw(teacher)):
            if self.center:
                projected.append(self.output_scale[i] * (raw - self.output_mean[i]) + self.student_mean[i])
            else:
                projected.append(self.output_scale[i] * raw)
        return KeysValues(*projected)

    def raw(self, teacher: KeysValues) -> list[Tensor]:
        """The aligners' own output."""
        return [aligner(tensor) for aligner, tensor in zip(self.aligners, self.inputs(teacher), strict=True)]

    def inputs(self, teacher: KeysValues) -> Iterator[Tensor]:
        """What the aligners read: teacher KV that is standardised, or centred where coordinates are shared."""
        return (self._plain(tensor, i) for i, tensor in enumerate(teacher))

    def _plain(self, tensor_BLHTD: Tensor, i: int) -> Tensor:
        centred = tensor_BLHTD - self.teacher_mean[i]
        return centred if self.shares_coordinates else centred / self.teacher_std[i]

    @property
    def shares_coordinates(self) -> bool:
        """Of the aligners, see there."""
        return all(aligner.shares_coordinates for aligner in self._each_aligner)

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.parameters())

    def save(self, folder: Path) -> None:
        """Write `projector.safetensors` and `config.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous().cpu() for name, tensor in self.state_dict().items()},
                  folder / "projector.safetensors")  # fmt: skip
        write_json(
            folder / "config.json",
            {
                "aligner": self.settings.model_dump(),
                "teacher": self.teacher.to_dict(),
                "student": self.student.to_dict(),
                "center": self.center,
            },
        )

    @classmethod
    def load(cls, folder: Path) -> "Projector":
        """Read what `save` wrote; `UserError` if the folder holds no projector."""
        config = read_json(folder / "config.json")
        if "aligner" not in config:
            raise UserError(f"{folder} holds no projector; give the folder of a pretrain or distill stage")
        teacher, student = Geometry(**config["teacher"]), Geometry(**config["student"])
        settings: AlignerSettings = TypeAdapter(AlignerSettings).validate_python(config["aligner"])
        projector = cls(settings, teacher, student, config["center"])
        projector.load_state_dict(load_file(folder / "projector.safetensors"))
        return projector


def _spread(std: Tensor) -> Tensor:
    """Root mean square over the channels of each layer and head."""
    return std.square().mean(-1, keepdim=True).sqrt()
