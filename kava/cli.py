"""The `kava` command: each stage by its name, imported only when it is called."""

import importlib
import sys

from kava.exits import INTERRUPTED, print_whatever_the_locale

COMMANDS = {
    "doctor": ("kava.commands.doctor", "whether this machine can run a preset, and what to do about it"),
    "fetch": ("kava.commands.fetch", "download models and data, so that the run needs no network"),
    "plan": ("kava.commands.plan", "what a run would take of the GPU and the disk, and what would make it fit"),
    "write": ("kava.stages.write", "the teacher's own answers to the training questions, where data.answers asks"),
    "tokenize": ("kava.stages.tokenize", "token ids, segments and the test questions"),
    "extract": ("kava.stages.extract", "teacher KV into a compressed store"),
    "pretrain": ("kava.stages.pretrain", "a projector for the frozen student"),
    "distill": ("kava.stages.distill", "student and projector together"),
    "measure": ("kava.stages.measure", "a finished student's alignment, by metrics that have changed since"),
    "evaluate": ("kava.stages.evaluate", "answers to the test questions, scored"),
    "generate": ("kava.commands.generate", "a trained student's answer to a question"),
    "report": ("kava.commands.compare", "results/ab_report.html and .json; of folders, one report over experiments"),
    "config": ("kava.commands.config", "the resolved configuration, its schema and documentation"),
    "profile": ("kava.commands.profile", "what a cosine would mean for this teacher and student, before training"),
    "unlock": ("kava.commands.unlock", "remove the lock of a killed Snakemake"),
    "bench store": ("kava.bench.store", "size, fidelity and speed of every codec"),
    "bench train": ("kava.bench.train", "a step from the store against one with the teacher resident"),
    "bench extract": ("kava.bench.extract", "a teacher that is streamed from the disk against one in memory"),
    "bench memory": ("kava.bench.memory", "peak memory of every stage, each in a process of its own"),
    "bench evaluate": ("kava.bench.evaluate", "scoring against plain `model.generate`"),
    "store info": ("kava.commands.store_info", "what a KV store holds and how large it is"),
    "store verify": ("kava.commands.store_verify", "a KV store checked from end to end"),
    "store ls": ("kava.commands.store_ls", "stores, token sets and references, and who uses them"),
    "store prune": ("kava.commands.store_prune", "delete what nobody uses; says what it would do first"),
    "demo build": ("kava.demo.build", "train the embedded demo models anew"),
    "init-student": ("kava.commands.init_student", "a student with random weights and a given tokenizer"),
}


def main(argv: list[str] | None = None) -> int:
    """Dispatch `kava COMMAND …`; returns the exit status."""
    print_whatever_the_locale()
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: kava COMMAND [options]\n\nKAVA distils a teacher's KV cache into a small student. Commands:\n")
        print("\n".join(f"  {name:<14} {text}" for name, (_, text) in COMMANDS.items()))
        print("\n`kava COMMAND --help` says more; `snakemake --cores 1 results/ab_report.html` runs everything.")
        return 0
    group = [name for name in COMMANDS if name.startswith(f"{arguments[0]} ")]
    if group and " ".join(arguments[:2]) not in COMMANDS:
        print(f"usage: kava {arguments[0]} COMMAND [options]\n")
        print("\n".join(f"  {name:<14} {COMMANDS[name][1]}" for name in group))
        return 0 if arguments[1:] in (["-h"], ["--help"]) else 2
    words = 2 if " ".join(arguments[:2]) in COMMANDS else 1
    command, rest = " ".join(arguments[:words]), arguments[words:]
    if command not in COMMANDS:
        print(f"kava: error: unknown command {command!r}; commands: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(COMMANDS[command][0]).main(rest)
    except KeyboardInterrupt:  # while modules are imported
        print(f"kava {command}: interrupted", file=sys.stderr)
        return INTERRUPTED
