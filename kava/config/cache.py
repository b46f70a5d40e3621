"""The user's own cache folder: what takes long to make anew, and is of no experiment."""

import os
from pathlib import Path

from kava.errors import UserError


def user_cache() -> Path | None:
    """KAVA's folder in the user's cache; None for a user who has neither a home nor one."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification: what is not absolute does not count.
    folder = named if named.is_absolute() else Path(os.path.expanduser("~/.cache"))
    return folder / "kava" if folder.is_absolute() else None


def require_user_cache() -> Path:
    """As `user_cache`; `UserError` where there is none."""
    if (folder := user_cache()) is None:
        raise UserError("this user has no cache folder; set XDG_CACHE_HOME to a folder with room for models")
    return folder
