"""GPU, bitsandbytes, memory and disk."""

import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants

from kava.config.jobs import Jobs
from kava.config.schema import Config
from kava.device import GIB
from kava.doctor.check import Check, fail, ok, warning
from kava.doctor.cpu_time import parameters, roughly, run_seconds
from kava.errors import UserError
from kava.files import nearest_folder
from kava.text import first_line, size

# Bytes per parameter of a student that is trained on the CPU: fp32 weight, gradient and both moments.
TRAINED = 16
# NF4 against the same weights dequantised: products of bf16 or fp32 of 64 terms, relative to the largest.
TOLERANCE = 0.02
# Seconds of a run on a CPU from which on somebody may want to know before it starts.
LONG = 12 * 3600
WITH_CUDA = "python -m pip install --force-reinstall --constraint constraints.txt torch"


def gpu(config: Config) -> list[Check]:
    """torch and CUDA; the GPU with its driver and free memory, where there is one."""
    name = "torch"
    built = torch.version.cuda
    version = ok(name, f"{torch.__version__}, {f'for CUDA {built}' if built else 'built without CUDA'}")
    if config.device == "cpu":
        return [version, _on_cpu(config, "not needed: device is cpu", "set device: auto on a machine with a GPU")]
    if torch.cuda.is_available():
        return [version, _memory(config)]
    return [version, _without_gpu(config, built)]


def _without_gpu(config: Config, built: str | None) -> Check:
    driver = _driver()
    if driver is None:
        message, fix = "no NVIDIA GPU that a driver shows", "run this on a machine with one"
    elif built is None:
        message, fix = f"driver {driver}, and torch is built without CUDA", f"install the build with it, `{WITH_CUDA}`"
    else:
        message, fix = f"driver {driver}, and no GPU that torch sees", "look with `nvidia-smi`"
    if config.device == "cuda":
        return fail("gpu", f"{message}, and device is cuda", f"{fix}, or set device: cpu")
    stages = {"pretrain": config.pretrain.as_phase(), "distill": config.distill}
    paged = [stage for stage, settings in stages.items() if settings.optimizer == "paged_adamw_8bit"]
    if paged:
        return fail("gpu", f"{message}, and paged_adamw_8bit in {' and '.join(paged)} needs one", fix)
    return _on_cpu(config, message if driver else "none, and this runs on the CPU", fix)


def _on_cpu(config: Config, message: str, fix: str) -> Check:
    """How long the run takes there; a warning if that is half a day or more."""
    seconds = run_seconds(config)
    if seconds is None:
        return ok("gpu", message)
    message = f"{message}; the run takes {roughly(seconds)} on this CPU, by its operations and a measured rate"
    return ok("gpu", message) if seconds < LONG else warning("gpu", message, fix)


def _memory(config: Config) -> Check:
    free, total = torch.cuda.mem_get_info()
    message = f"{torch.cuda.get_device_name()}, driver {_driver()}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    budget = config.vram_budget_gib
    if total / GIB < budget - 1:
        return fail("gpu", f"{message}, and vram_budget_gib is {budget:g}", "set what there is, and see `kava plan`")
    # A card that is sold as 8 GB has a little less, and shows some of it to a screen.
    if free / GIB < budget - 1:
        return fail("gpu", f"{message}, and {budget - 1:g} are torch's share", "end what `nvidia-smi` lists")
    return ok("gpu", message)


def _driver() -> str | None:
    from pynvml import NVMLError, nvmlInit, nvmlSystemGetDriverVersion

    try:
        nvmlInit()
        return str(nvmlSystemGetDriverVersion())
    except NVMLError:
        return None


def bitsandbytes(config: Config) -> Check:
    """Multiply by a matrix in NF4 on the device of the run, and compare with the same matrix dequantised."""
    name = "bitsandbytes"
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    try:
        error = matmul_error(device)
    except Exception as raised:  # whatever a library with its own binaries may raise
        message = f"4-bit matmul fails on {device} ({first_line(raised)})"
    else:
        if error < TOLERANCE:
            return ok(name, f"4-bit matmul on {device} agrees with dequantised weights to {error:.1e}")
        message = f"4-bit matmul on {device} is wrong by {error:.2g}"
    fix = "run `python -m bitsandbytes` to see what is wrong"
    without = ["teacher.quantization: none"] if config.teacher.quantization != "none" else []
    for stage, settings in (("pretrain", config.pretrain.as_phase()), ("distill", config.distill)):
        without += [f"{stage}.optimizer: adamw"] if "8bit" in settings.optimizer else []
    if without:
        return fail(name, message, f"{fix}, or set {' and '.join(without)}")
    return warning(name, f"{message}, and nothing here needs it", fix)


def matmul_error(device: str) -> float:
    """Largest error of a product by NF4 weights, over its largest value; the same weights dequantised are right."""
    import bitsandbytes as bnb

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(128, 64, generator=generator).to(device, torch.bfloat16)
    rows = torch.randn(8, 64, generator=generator).to(device, torch.bfloat16)
    codes, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    product = bnb.matmul_4bit(rows, codes.t(), quant_state=state).float()
    expected = rows.float() @ bnb.functional.dequantize_4bit(codes, state).float().t()
    return float((product - expected).abs().max() / expected.abs().max())


def disk(jobs: Jobs, to_come: int | None) -> list[Check]:
    """Free space of each filesystem that a run writes to, against what it takes there; one line for each.

    `to_come` is what is still to be downloaded, in bytes; None if it is not known.
    """
    from kava.plan.overview import disk_alone

    try:
        needed = disk_alone(jobs)
    except UserError:
        return [_unknown("disk")]
    takes = [
        (jobs.cache, 0 if needed.store_is_there else needed.store),
        (jobs.results, needed.checkpoints + needed.models),
        (Path(constants.HF_HUB_CACHE), to_come or 0),
    ]
    together: dict[int, Counter[Path]] = {}
    for folder, count in takes:
        if count:
            together.setdefault(nearest_folder(folder).stat().st_dev, Counter())[folder] += count
    return [_space(of_device) for of_device in together.values()]


def _space(takes: Mapping[Path, int]) -> Check:
    total, free = sum(takes.values()), shutil.disk_usage(nearest_folder(next(iter(takes)))).free
    message = f"{size(total)} needed in {' and '.join(map(str, takes))}, {size(free)} free"
    if total > free:
        fix = "make room, or point cache_dir (the store) or HF_HOME (downloads) to another disk; `kava plan` says what"
        return fail("disk", message, f"{fix} takes how much")
    return ok("disk", message)


def _unknown(name: str) -> Check:
    return warning(name, "not known what is needed", "fix or fetch the models above, then run this again")


def memory(jobs: Jobs) -> Check:
    """RAM against the weights that a stage reads, or the student that it trains on the CPU."""
    config = jobs.config
    try:
        teacher, student = parameters(config)
    except UserError:
        return _unknown("memory")
    there = psutil.virtual_memory()
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    needed = 2 * teacher if on_gpu else max(4 * teacher, TRAINED * student)
    message = f"{size(there.available)} of {size(there.total)} of RAM free, {size(needed)} needed"
    if needed > there.total:
        return fail("memory", message, "use a machine with more, or smaller models")
    if needed > there.available:
        return warning("memory", message, "end other programs")
    return ok("memory", message)
