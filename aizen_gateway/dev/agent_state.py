"""What the agent must not lose with the power: its secret, and the results that the gateway has not yet taken.

One journal file a command also keeps the promise that a remediation is never run twice by this device: it is marked
before it starts, and the mark stays until the gateway can no longer hand the command out.

Everything here blocks on the disk, so the agent calls it in a `DiskThread`, one call at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from uuid import UUID

from aizen_gateway.dev.agent_disk import write_atomically

# With this many results unsent the agent claims nothing more; each is at most 256 KiB.
MAX_UNSENT = 64
_MAX_KEPT = 100
_MAX_KEPT_BYTES = 4 * 1024 * 1024
_MAX_MARKS = 5000
# A command whose end is not known is remembered this long, the longest that the contract lets one wait.
_LONGEST_LIFE_S = 7 * 24 * 3600
_CLOCK_SLACK_S = 3600


class StateUnusable(Exception):
    """The state folder cannot be used; the text says why and names the folder."""


class JournalFull(Exception):
    """So many remediations are remembered that another one cannot be marked as started."""


class EntryState(StrEnum):
    STARTED = "started"
    UNSENT = "unsent"
    SETTLED = "settled"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What registration gave this device. `code_hash` tells whether an activation code is the one already used."""

    device_id: str
    device_secret: str = field(repr=False)
    customer_id: str
    registered_at: str
    code_hash: str


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One command as this device remembers it.

    `body` is the result without its claim token; a started command has none, and an old settled one may have lost it.
    `forget_after` is in seconds of this device's clock.
    """

    id: UUID
    type: str
    remediation: bool
    state: EntryState
    claim_token: str = field(repr=False)
    forget_after: float
    changed_at: float
    body: dict[str, Any] | None = None


class AgentState:
    """The state folder of one agent. `open` it, and `close` it at the end."""

    def __init__(self, folder: Path, lock: int) -> None:
        self.folder = folder
        self._lock = lock
        self._journal = folder / "journal"
        self._entries: dict[UUID, JournalEntry] = {}
        self._sizes: dict[UUID, int] = {}

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Make or open the folder, for this process alone, and read the journal.

        Raises `StateUnusable` when it cannot be written or another agent has it open.
        """
        try:
            (folder / "journal").mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateUnusable(f"{folder} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise StateUnusable(f"{folder} is in use by another agent") from None
        state = cls(folder, lock)
        try:
            state._load()
        except OSError as error:
            os.close(lock)
            raise StateUnusable(f"{folder} cannot be used: {error.strerror}") from None
        return state

    def close(self) -> None:
        """Give the folder free."""
        os.close(self._lock)

    def credentials(self) -> Credentials | None:
        """What `save_credentials` kept, or None. Raises `StateUnusable` when the file is damaged."""
        file = self.folder / "credentials.json"
        try:
            return Credentials(**json.loads(file.read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            raise StateUnusable(f"{file} cannot be read") from None

    def save_credentials(self, credentials: Credentials) -> None:
        """Keep them, readable for this user alone. Raises `OSError`."""
        fields = {name: getattr(credentials, name) for name in Credentials.__slots__}
        write_atomically(self.folder / "credentials.json", json.dumps(fields).encode())

    def entry(self, command: UUID) -> JournalEntry | None:
        """What is remembered of a command."""
        return self._entries.get(command)

    def unsent(self) -> list[JournalEntry]:
        """The results to send, the oldest first."""
        waiting = [entry for entry in self._entries.values() if entry.state is EntryState.UNSENT]
        return sorted(waiting, key=lambda entry: entry.changed_at)

    def begin_remediation(self, command: UUID, command_type: str, claim_token: str, lives_s: float | None) -> None:
        """Mark a remediation as started, before it is.

        `lives_s`: seconds for which the gateway may still hand it out, None when that is not known. Raises
        `JournalFull`, or `OSError` when the mark cannot be kept; then it must not be run.
        """
        self._prune()
        if sum(entry.remediation for entry in self._entries.values()) >= _MAX_MARKS:
            raise JournalFull(f"this device remembers {_MAX_MARKS} remediations that may come again")
        now = time.time()
        keep_s = min(_LONGEST_LIFE_S, max(0.0, _LONGEST_LIFE_S if lives_s is None else lives_s)) + _CLOCK_SLACK_S
        entry = JournalEntry(command, command_type, True, EntryState.STARTED, claim_token, now + keep_s, now)
        self._write(entry)
        self._entries[command] = entry

    def record_result(
        self, command: UUID, command_type: str, remediation: bool, claim_token: str, body: Mapping[str, Any]
    ) -> None:
        """Keep a result until `settle`, on disk once this returns.

        Raises `OSError` when the disk takes nothing; the result is then kept in memory, and sent all the same.
        """
        now = time.time()
        known = self._entries.get(command)
        forget_after = known.forget_after if known is not None else now + _LONGEST_LIFE_S + _CLOCK_SLACK_S
        entry = JournalEntry(
            command, command_type, remediation, EntryState.UNSENT, claim_token, forget_after, now, dict(body)
        )
        self._entries[command] = entry
        self._write(entry)

    def settle(self, command: UUID, claim_token: str) -> None:
        """The gateway has given its last word on the result with this token.

        The result itself is kept for a while: should the command come again, the same is sent again. Does nothing
        when the result has got another token meanwhile. Raises `OSError`.
        """
        entry = self._entries.get(command)
        if entry is None or entry.state is not EntryState.UNSENT or entry.claim_token != claim_token:
            return
        settled = replace(entry, state=EntryState.SETTLED, changed_at=time.time())
        self._entries[command] = settled
        self._write(settled)
        self._prune()

    def _prune(self) -> None:
        """Forget what can no longer come again, and the bodies of all but the newest results."""
        now = time.time()
        kept = kept_bytes = 0
        for entry in sorted(self._entries.values(), key=lambda entry: entry.changed_at, reverse=True):
            if entry.state is EntryState.UNSENT:
                continue
            if entry.forget_after < now:
                self._remove(entry)
                continue
            if entry.body is None:
                continue
            kept += 1
            kept_bytes += self._sizes.get(entry.id, 0)
            if kept <= _MAX_KEPT and kept_bytes <= _MAX_KEPT_BYTES:
                continue
            if entry.remediation:
                self._entries[entry.id] = replace(entry, body=None)
                self._write(self._entries[entry.id])
            else:
                self._remove(entry)

    def _load(self) -> None:
        for file in sorted(self._journal.iterdir()):
            if file.suffix != ".json":
                # What a power cut left of a write that never took effect.
                file.unlink(missing_ok=True)
                continue
            entry = _decode(file)
            if entry is not None:
                self._entries[entry.id] = entry
                self._sizes[entry.id] = file.stat().st_size
        for leftover in self.folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        self._prune()

    def _write(self, entry: JournalEntry) -> None:
        content = _encode(entry)
        self._sizes[entry.id] = len(content)
        write_atomically(self._journal / f"{entry.id}.json", content)

    def _remove(self, entry: JournalEntry) -> None:
        del self._entries[entry.id]
        self._sizes.pop(entry.id, None)
        (self._journal / f"{entry.id}.json").unlink(missing_ok=True)


def hash_of_code(code: str) -> str:
    """A fingerprint of an activation code, however it was typed."""
    return hashlib.sha256(code.replace("-", "").strip().upper().encode()).hexdigest()


def _encode(entry: JournalEntry) -> bytes:
    fields = {name: getattr(entry, name) for name in JournalEntry.__slots__}
    return json.dumps({**fields, "id": str(entry.id)}, ensure_ascii=False).encode("utf-8", "replace")


def _decode(file: Path) -> JournalEntry | None:
    """Read one entry; None when the file is not one of ours.

    A damaged one counts as a remediation that was started: that is the answer that runs nothing twice.
    """
    try:
        command = UUID(file.stem)
    except ValueError:
        return None
    try:
        fields = json.loads(file.read_bytes())
        return JournalEntry(**{**fields, "id": command, "state": EntryState(fields["state"])})
    except (OSError, ValueError, TypeError, KeyError):
        now = time.time()
        return JournalEntry(command, "", True, EntryState.STARTED, "", now + _LONGEST_LIFE_S, now)
