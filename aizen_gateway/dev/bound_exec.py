"""Becomes another program, after tying this process to the life of the one that started it.

It is run by its path, `python -I -S bound_exec.py PARENT SIGNAL UID GID KEEP COMMAND...`, and imports only the
standard library, since the account it changes to may not be able to read anything of this package. It runs between
fork and exec in a process of its own because the same few calls in a `preexec_fn` can deadlock a process that has
threads.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NoReturn

# From <linux/prctl.h>.
PR_SET_PDEATHSIG = 1

# All that a server needs to know of the world: its messages are read by a program, its times are UTC.
ENVIRONMENT = {"LC_ALL": "C", "PATH": os.defpath, "TZ": "UTC"}

UNCHANGED = -1


def become(command: list[str], parent: int, death_signal: int, uid: int, gid: int, keep: int) -> NoReturn:
    """Run `command` in place of this program, as `uid` and `gid` unless they are -1; never returns.

    It gets this program's environment when `keep` is 1, and `ENVIRONMENT` when that is 0.

    On Linux the kernel sends `death_signal` when the thread that started this process ends. Elsewhere there is no such
    promise. Raises `OSError` when the account cannot be changed or the command cannot be run.
    """
    if uid != UNCHANGED:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        # After the change of account, which clears it.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        sys.exit("the process that asked for this program has ended")
    os.execve(command[0], command, os.environ if keep else ENVIRONMENT)  # noqa: S606 - the point of this program


if __name__ == "__main__":
    try:
        become(sys.argv[6:], *(int(number) for number in sys.argv[1:6]))
    except OSError as error:
        sys.exit(f"cannot run {sys.argv[6]} as uid {os.geteuid()}: {error}")
