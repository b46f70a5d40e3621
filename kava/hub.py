"""Repositories of the hub: what of them a run reads, whether it is on this machine, and how it comes here."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2
from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from kava.config.data import FolderData
from kava.config.identity import on_hub
from kava.config.models import ModelSettings
from kava.config.schema import Config
from kava.config.splits import PATTERNS
from kava.errors import UserError

# Of a model: settings, tokenizer, weights as `from_pretrained` looks for them, and the card for its licence. Not the
# weights of other frameworks, and not the copies that some repositories keep in folders or as `consolidated`.
MODEL_PATTERNS = ["*.json", "model*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "README.md", "LICENSE*"]
UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, DryRunError, httpx2.TransportError)
NO_SAFETENSORS = (
    "model {} has no weights as model.safetensors, and only safetensors are read, since a pickle runs code: choose a "
    "commit or repository that has them, or convert it with https://huggingface.co/spaces/safetensors/convert"
)
FETCH = "`kava fetch` (with the --configfile, --preset and --set of this run)"


@dataclass(frozen=True)
class Repository:
    """A repository at a commit."""

    kind: Literal["model", "dataset"]
    name: str
    revision: str | None
    code: bool = False  # whether the Python files of a model count, too

    @property
    def patterns(self) -> list[str]:
        """Files that a run may read."""
        if self.kind == "dataset":
            return PATTERNS
        return [*MODEL_PATTERNS, "*.py"] if self.code else MODEL_PATTERNS

    @property
    def folders(self) -> list[str]:
        """Files that it does not read although they match."""
        return [] if self.kind == "dataset" or self.code else ["*/*"]

    def __str__(self) -> str:
        return f"{self.name} at {(self.revision or 'main')[:12]}"


@dataclass(frozen=True)
class Files:
    """Number and bytes of a repository's files, and bytes of those that are not here yet."""

    count: int
    bytes: int
    to_come: int


def repositories(config: Config) -> dict[str, Repository | None]:
    """What the teacher, the student, further references and the data are on the hub; None for what is not there."""
    data, rows = config.data, None
    if isinstance(data, FolderData) and on_hub(data.path):
        rows = Repository("dataset", data.path, data.revision)
    return {role: _of_model(settings) for role, settings in config.models.items()} | {"data": rows}


def _of_model(settings: ModelSettings) -> Repository | None:
    if not on_hub(settings.model):
        return None
    return Repository("model", settings.model, settings.revision, settings.trust_remote_code)


def cached(repository: Repository) -> Path | None:
    """Folder of a repository that is on this machine, whole; asks no network."""
    try:
        folder = Path(_snapshot(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return None if _torn(repository, folder) else folder


def measure(repository: Repository, fetch: str = FETCH) -> Files:
    """What there is to download; asks the hub for each file, since lists of gated repositories are open to all.

    `fetch` is the command that an error names.

    Raises
    ------
    UserError
        The repository cannot be reached, or not by this user.
    """
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        if cached(repository) is None:  # once, and for seconds: the download asks for half a minute, and says so
            HfApi().repo_info(repository.name, repo_type=repository.kind, revision=repository.revision, timeout=5)
        files = _snapshot(repository, dry_run=True)
    except (*UNREACHABLE, HfHubHTTPError) as error:
        raise UserError(hub_fault(repository, error, fetch) or str(error)) from None
    finally:
        if bars:
            enable_progress_bars()
    if repository.kind == "model" and not any(file.filename.endswith(".safetensors") for file in files):
        raise UserError(NO_SAFETENSORS.format(repository))
    sizes = [(file.file_size or 0, file.will_download) for file in files]
    return Files(len(sizes), sum(size for size, _ in sizes), sum(size for size, comes in sizes if comes))


def download(repository: Repository) -> Path:
    """Folder of a repository; what is not here, or not whole, is downloaded.

    Raises
    ------
    UserError
        As `measure`, or the connection broke.
    """
    try:
        folder = Path(_snapshot(repository))
        if torn := _torn(repository, folder):
            # The hub's cache takes a file that is there for a whole one.
            for file in torn:
                file.resolve().unlink(missing_ok=True)
                file.unlink(missing_ok=True)
            _snapshot(repository)
    except (*UNREACHABLE, HfHubHTTPError) as error:
        raise UserError(hub_fault(repository, error) or str(error)) from None
    return folder


def hub_fault(repository: Repository, error: BaseException, fetch: str = FETCH) -> str | None:
    """A sentence and the command that fixes it; None for an error that is not the hub's."""
    causes = list(_causes(error))
    kind = {"model": "model", "dataset": "data set"}[repository.kind]
    page = f"{constants.ENDPOINT}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}"

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if is_any(GatedRepoError):
        return f"{kind} {repository.name} is gated: ask for access on {page}, then log in with `hf auth login`"
    if is_any(RevisionNotFoundError):
        return f"{kind} {repository.name} has no commit {repository.revision}: choose one of {page}/commits/main"
    if is_any(RepositoryNotFoundError):
        return (
            f"{kind} {repository.name} is not on {constants.ENDPOINT}: correct its name, or log in with "
            "`hf auth login` if it is private"
        )
    if is_any(*UNREACHABLE):
        start = f"{kind} {repository} is not whole on this machine, and"
        if constants.HF_HUB_OFFLINE:
            return f"{start} HF_HUB_OFFLINE is set: `unset HF_HUB_OFFLINE`, then {fetch}, or give a local directory"
        return (
            f"{start} {constants.ENDPOINT} cannot be reached: download it with {fetch} where there is a network, set "
            "HF_ENDPOINT to a mirror, or give a local directory"
        )
    if is_any(HfHubHTTPError):
        return f"{kind} {repository} cannot be downloaded from {constants.ENDPOINT} ({error}): run it again later"
    return None


def _snapshot(repository: Repository, **how: Any) -> Any:
    return snapshot_download(
        repository.name, repo_type=repository.kind, revision=repository.revision, **how,
        allow_patterns=repository.patterns, ignore_patterns=repository.folders,
    )  # fmt: skip


def _torn(repository: Repository, folder: Path) -> list[Path]:
    """Files of a snapshot that have not the size that the hub names; none where nobody has asked the hub yet."""
    try:
        tree = get_cached_repo_tree(repository.name, repo_type=repository.kind, revision=repository.revision)
    except CachedRepoTreeNotFoundError:
        return []
    there = [(folder / file.path, file.size) for file in tree]
    return [path for path, size in there if path.is_file() and path.stat().st_size != size]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
