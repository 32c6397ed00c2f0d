"""How the story is told: with colour and wrapped to the window on a terminal, one plain line a fact elsewhere.

Plain lines are never wrapped or cut, so that a program (or a person with `grep`) can read them. Whatever comes from a
device or a log is shown without the characters that would move a terminal's cursor.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

_LABEL = 16
_MARKS = {True: ("✓", "+", "green"), False: ("✗", "!", "red"), None: ("•", "-", "cyan")}


class ReaderGone(Exception):
    """Nobody reads what we print: the pipe or the terminal has been closed."""


class Teller:
    """Prints one story to `stream`. Everything raises `ReaderGone` when the stream's reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        if hasattr(stream, "reconfigure"):
            # Not every locale can write every host name.
            stream.reconfigure(errors="replace")
        self._stream = stream
        self._console = _Console(file=stream, highlight=False, markup=False, emoji=False)
        self._is_terminal = self._console.is_terminal
        self._is_unicode = self._console.encoding.startswith("utf")

    def title(self, text: str, note: str) -> None:
        """The first line, and what goes with it."""
        self._print(Text.assemble((_clean(text), "bold"), "  ", (_clean(note), "dim")))

    def section(self, text: str) -> None:
        """The heading of what follows."""
        self._print(Text())
        self._print(Text(_clean(text), "bold cyan"))

    def row(self, label: str, text: str, *, good: bool | None = True, note: str = "") -> None:
        """One fact: `good` True for done, False for trouble, None for what is neither."""
        fancy, plain, colour = _MARKS[good]
        said = Text(_clean(text), "red" if good is False else "")
        if note:
            said.append(f"  ({_clean(note)})", "dim")
        if not self._is_terminal:
            self._print(Text(f"  {plain} {_clean(label):<{_LABEL}} ") + said)
            return
        grid = Table.grid(padding=(0, 1))
        grid.add_column(width=3, justify="right")
        grid.add_column(width=_LABEL, style="bold", overflow="fold")
        grid.add_column(overflow="fold")
        grid.add_row(Text(fancy if self._is_unicode else plain, colour), _clean(label), said)
        self._print(grid)

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows of the same number of cells, the first cell least important."""
        cleaned = [[_clean(cell) for cell in row] for row in rows]
        if not self._is_terminal:
            widths = [max(map(len, column)) for column in zip(*cleaned, strict=True)]
            for row in cleaned:
                self._print(Text("  " + "  ".join(map(str.ljust, row, widths)).rstrip()))
            return
        grid = Table.grid(padding=(0, 2, 0, 0))
        for number in range(len(cleaned[0]) if cleaned else 0):
            grid.add_column(style="dim" if number == 0 else "", overflow="fold")
        for row in cleaned:
            grid.add_row(f"  {row[0]}", *row[1:])
        self._print(grid)

    def verbatim(self, lines: Iterable[str]) -> None:
        """Lines to be copied: not wrapped, not indented; those that begin with `#` are comments."""
        for line in lines:
            self._print(Text(line, "dim" if line.startswith("#") else ""))

    def trouble(self, text: str) -> None:
        """Why it did not work: the first line says it, the others are details."""
        first, *details = text.splitlines() or [""]
        self._print(Text(_clean(first), "bold red"))
        for line in details:
            self._print(Text(f"  {_clean(line)}", "dim"))

    @contextlib.contextmanager
    def working(self, text: str) -> Iterator[None]:
        """Show on a terminal that something goes on."""
        if not self._is_terminal:
            yield
            return
        with self._console.status(Text(f"{_clean(text)} ...", "dim"), spinner="dots" if self._is_unicode else "line"):
            yield

    def _print(self, what: Text | Table) -> None:
        try:
            # Text flows as it is: terminals wrap it by themselves and copy it in one piece.
            self._console.print(what, soft_wrap=isinstance(what, Text))
        except (OSError, BrokenPipeError):
            self._give_up()
            raise ReaderGone from None

    def _give_up(self) -> None:
        """Let later prints, those at the interpreter's end too, go nowhere instead of failing again."""
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Leave it to us: rich itself would end the process, with the children still running."""
        raise BrokenPipeError


def _clean(text: str) -> str:
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
