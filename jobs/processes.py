"""Child processes that cannot outlive their parent."""

import ctypes
import os
import shutil
from collections.abc import Sequence

_PR_SET_CHILD_SUBREAPER = 36

_SETPRIV = shutil.which("setpriv")


def die_with_parent(command: Sequence[str], signal_name: str = "KILL") -> list[str]:
    """The command, changed so that the kernel signals it when the parent dies in whatever way.

    The signal comes when the thread that started the child ends, so start it from a thread that lives as long.
    Without util-linux the command stays as it is, and only an orderly stop ends it.
    """
    return [_SETPRIV, "--pdeathsig", signal_name, *command] if _SETPRIV else list(command)


def adopt_orphans() -> None:
    """Descendants whose own parents end become this process's children, where they can be found and ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
