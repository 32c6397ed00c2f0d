"""Loads the named SQL of `sql/*.sql`, so that statements are read as SQL and found by name.

A file holds statements that begin with `-- name: NAME` and may have a comment on what each is for. Arguments stay
PostgreSQL's own `$1`, `$2`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

SQL = Path(__file__).with_name("sql")
_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)
_LOCK = re.compile(r"\bfor update of \w+")


def load(file: str) -> Mapping[str, str]:
    """Return name -> statement of `sql/<file>.sql`. Raises `ValueError` for a name used twice."""
    pieces = _NAME.split((SQL / f"{file}.sql").read_text("utf-8"))
    names, statements = pieces[1::2], pieces[2::2]
    if len(set(names)) != len(names):
        raise ValueError(f"{file}.sql names a statement twice")
    return {name: statement.strip() for name, statement in zip(names, statements, strict=True)}


def at_hand(statement: str) -> str:
    """A statement that locks rows (`for update of ...`), leaving out those that somebody else holds just now.

    So that callers who share it never wait for somebody's row. Raises `ValueError` for one that locks nothing.
    """
    skipping, locks = _LOCK.subn(r"\g<0> skip locked", statement)
    if not locks:
        raise ValueError("the statement locks no rows")
    return skipping
