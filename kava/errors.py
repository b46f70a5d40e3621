"""Exceptions that a user is meant to read."""


class UserError(ValueError):
    """Something a user can fix: bad configuration, missing file, no disk space.

    The message says what was wrong, what is allowed, and what to do, in one sentence or two. Commands print it
    without a traceback and exit with status 1; everything else is a bug and keeps its traceback.
    """


class Interrupted(UserError):
    """Ctrl-C, of which a stage took notice at a good moment; the message says what is saved. Exit status 130."""
