"""Which code a number depends on, as a digest per stage that is blind to what only speaks.

Snakemake does not see edits of imported modules; a digest among the params makes it see those that change a result.
"""

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Final

from kava.config.load import PACKAGE
from kava.files import sha256_bytes

# What both phases of training go by: modules, and folders with all that is in them.
NUMERIC_MODULES: Final = (
    "align", "cka.py", "data/fit.py", "data/prompt.py", "data/tokens.py", "kv.py", "losses",
    "models/capture.py", "models/cut.py", "models/load.py", "models/nf4.py", "select", "store/array_spec.py",
    "store/codecs", "store/contents.py", "store/layout.py", "store/files.py", "store/reader.py", "teacher/extractor.py",
    "training",
)  # fmt: skip
# Of these, what is run by distillation alone.
DISTILL_ONLY: Final = (
    "losses/auxiliary.py", "losses/cka.py", "losses/codi.py", "losses/cross_entropy.py", "losses/hidden.py",
    "losses/logit_kd.py", "losses/schedule.py", "training/at_steps.py", "training/distill.py", "training/export.py",
    "training/lora.py", "training/signals/hidden_states.py", "training/signals/token_hidden_states.py",
    "training/signals/topk_logits.py",
)  # fmt: skip
# Of these, what says how a run goes on, or stops it.
SPEAKING: Final = (
    "training/journal.py", "training/termination.py", "training/trackers.py", "training/watch.py",
)  # fmt: skip
# What measures a trained projection; what it imports of these is in the digests of training, which measures too.
METRIC_MODULES: Final = ("metrics.py", "training/measure.py")


@cache
def code_digest(stage: str) -> str:
    """Digest of the modules that define what `pretrain` or `distill` makes."""
    return _digest(NUMERIC_MODULES, (*SPEAKING, *METRIC_MODULES, *(DISTILL_ONLY if stage == "pretrain" else ())))


@cache
def metrics_digest() -> str:
    """Digest of the modules that define the alignment metrics."""
    return _digest(METRIC_MODULES, ())


def _digest(names: Iterable[str], without: tuple[str, ...]) -> str:
    parts = []
    for file in _files(names):
        module = file.relative_to(PACKAGE).as_posix()
        if module not in without:
            text = file.read_text(encoding="utf-8")
            parts.append(f"{module}\n{numeric(text)}")
    return sha256_bytes("\n".join(parts).encode())[:16]


def _files(names: Iterable[str]) -> Iterator[Path]:
    for name in names:
        path = PACKAGE / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


@cache
def numeric(code: str) -> str:
    """What of a module can change a number: no comment, docstring, annotation, line of the log, or text of an error."""
    return ast.unparse(_Numeric().visit(ast.parse(code)))


class _Numeric(ast.NodeTransformer):
    def visit(self, node: ast.AST) -> ast.AST:
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
        numeric: ast.AST = super().visit(node)
        return numeric

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(called, ast.Attribute) and isinstance(called.value, ast.Name) and called.value.id == "log":
            return ast.Pass()
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
            return node.func
        return self.generic_visit(node)

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)  # the name stays: it may be a field
        return self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
