"""Lets PostgreSQL be started by root, which it refuses to run as.

Root is what one is in most containers. The server then runs as the account that already owns the data, else as
`nobody`. For that account to reach its programs and its data, every directory above them must be searchable by it.
Checkouts and virtual environments of root often lie under a directory that is closed to others (`/root`, mode 0700):
there the search bit for others (o+x) is added. It lets others pass through to what they can name and may read anyway,
but not list or read the directory. Nothing else is changed, and each change is logged.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
from dataclasses import dataclass
from pathlib import Path

_logger = logging.getLogger(__name__)

# The number that the kernel itself uses for "nobody", for systems without an account of that name.
_NOBODY = 65534


@dataclass(frozen=True)
class Account:
    """Whom a server runs as."""

    uid: int
    gid: int


def account_for(data: Path) -> Account | None:
    """Return the account to serve `data` (which need not exist yet), None when this process is not root's."""
    if os.geteuid() != 0:
        return None
    if data.exists() and (status := data.stat()).st_uid != 0:
        return Account(status.st_uid, status.st_gid)
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError:
        return Account(_NOBODY, _NOBODY)
    return Account(nobody.pw_uid, nobody.pw_gid)


def hand_over(tree: Path, account: Account) -> None:
    """Make the account the owner of `tree` and all in it, unless it owns it already. Raises `OSError`."""
    if tree.stat().st_uid == account.uid:
        return
    inside = (Path(directory, name) for directory, *names in os.walk(tree) for name in [*names[0], *names[1]])
    for path in (*inside, tree):
        os.chown(path, account.uid, account.gid, follow_symlinks=False)


def open_way(path: Path, account: Account) -> None:
    """Let the account pass through every directory above `path`, links resolved or not. Raises `OSError`."""
    for directory in {*path.absolute().parents, *path.resolve().parents}:
        status = directory.stat()
        wanted = _search_bit(status, account)
        if not status.st_mode & wanted:
            directory.chmod(stat.S_IMODE(status.st_mode) | wanted)
            _logger.warning(
                "made the directory %s searchable for uid %d (mode %04o added): PostgreSQL does not run as root",
                directory,
                account.uid,
                wanted,
            )


def _search_bit(status: os.stat_result, account: Account) -> int:
    """The one bit of a directory's mode that decides for this account."""
    if status.st_uid == account.uid:
        return stat.S_IXUSR
    return stat.S_IXGRP if status.st_gid == account.gid else stat.S_IXOTH
