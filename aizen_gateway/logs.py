"""One line per event, from every library alike, with the request's context on it and no secret in it.

structlog's events and the standard library's records (aiohttp, asyncio, redis, warnings) end in one handler, where
they are redacted and rendered, so that nothing can reach the output another way. Lines go to stderr: stdout is for
what a command prints as its answer, and service managers and container runtimes collect both.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from .redaction import redact_mapping

_FIRST_KEYS = ("timestamp", "level", "event", "logger", "request_id", "trace_id", "span_id", "customer_id", "device_id")
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ONE_LINE = _CONTROL | {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
# Seconds that a request's line may wait for others, and how many wait at most.
_TOGETHER_S = 0.05
_MOST_TOGETHER = 256
_context: ContextVar[Mapping[str, object]] = ContextVar("log_context", default=MappingProxyType({}))
_requests = logging.getLogger("aizen_gateway.requests")
_MANY_LINES = {code: shown for code, shown in _CONTROL.items() if code not in (0x09, 0x0A)}


def configure_logging(level: str, format: str) -> None:
    """Send every log line to stderr: `level` is a name such as `info`, `format` is `json` or `console`.

    May be called again to change either. Raises ValueError for a word that is neither.
    """
    if format not in ("json", "console"):
        raise ValueError(f"unknown log format {format!r}")
    handler = _StderrHandler(takes_lines=format == "json")
    handler.setFormatter(_formatter(format))
    root = logging.getLogger()
    root.setLevel(level.upper())
    for old in [old for old in root.handlers if isinstance(old, _StderrHandler)]:
        old.flush()
        root.removeHandler(old)
    root.addHandler(handler)
    logging.captureWarnings(True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            with_context,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def bind_context(**values: object) -> None:
    """Put `values` on every further line of this task, and of tasks that it starts; None takes a name off again."""
    bound = {**_context.get(), **values}
    if None in values.values():
        bound = {name: value for name, value in bound.items() if value is not None}
    _context.set(bound)


def new_context(**values: object) -> None:
    """Begin with `values` alone: whatever this task did before is over."""
    _context.set(values)


@contextmanager
def fresh_context(**values: object) -> Iterator[None]:
    """Begin with `values` alone and put back at the end what was there.

    For one message: a socket's messages are handled by one task, so what one of them binds would otherwise be on the
    lines of the next.
    """
    before = _context.get()
    _context.set({})
    bind_context(**values)
    try:
        yield
    finally:
        _context.set(before)


def with_context(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The processor that puts what is bound on an event; what the event says itself stays."""
    return {**_context.get(), **event}


def tells_requests(level: int) -> bool:
    """Whether a request's line of this level is written."""
    return _requests.isEnabledFor(level)


def log_request(fields: Mapping[str, object], level: int) -> None:
    """Log one answered request at level info or debug: the line that is written most.

    `fields`, and what is bound, must be the gateway's own words and numbers, or redacted already. In JSON the line is
    made here, and lines of the same moment are written together; otherwise it goes the way of all others.
    """
    handlers = logging.getLogger().handlers
    if len(handlers) != 1 or not isinstance(handler := handlers[0], _StderrHandler) or not handler.takes_lines:
        structlog.get_logger(_requests.name).log(level, "request", **fields)
        return
    line = {
        "timestamp": _clock.now(),
        "level": logging.getLevelName(level).lower(),
        "event": "request",
        "logger": _requests.name,
        **_context.get(),
        **fields,
    }
    # Ids come from the database's driver, whose UUIDs are of a type of its own.
    handler.write_soon(orjson.dumps(line, default=str))


def flush_requests() -> None:
    """Write the requests' lines that wait; for who ends the process without another word."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _StderrHandler):
            handler.flush()


class _Clock:
    """The time as lines have it; the part that changes once a second is made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def now(self) -> str:
        time_ms = time.time_ns() // 1_000_000
        second, ms = divmod(time_ms, 1000)
        if second != self._second:
            self._second, self._text = second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return f"{self._text}.{ms:03d}Z"


_clock = _Clock()


class _StderrHandler(logging.Handler):
    """Writes to what is stderr now, and never raises into the code that logs.

    A line is written at once, with the requests' lines before it; those alone wait up to `_TOGETHER_S`.
    """

    def __init__(self, *, takes_lines: bool) -> None:
        super().__init__()
        self.takes_lines = takes_lines
        self._waiting: list[bytes] = []

    def write_soon(self, line: bytes) -> None:
        """Write a line with others of this moment; at once where no event loop runs."""
        self._waiting.append(line)
        if len(self._waiting) == 1:
            try:
                asyncio.get_running_loop().call_later(_TOGETHER_S, self.flush)
            except RuntimeError:
                self.flush()
        elif len(self._waiting) >= _MOST_TOGETHER:
            self.flush()

    def flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            with suppress(OSError, ValueError, AttributeError):
                _write(b"\n".join(waiting).decode())

    def emit(self, record: logging.LogRecord) -> None:
        self.flush()
        try:
            line = self.format(record)
        except Exception as error:  # a format string that does not fit its arguments, say
            line = _unloggable(record, error)
        # When stderr is closed or gone, there is nobody left to tell.
        with suppress(OSError, ValueError, AttributeError):
            _write(line)


def _write(line: str) -> None:
    """One write a line, so that lines of several writers do not mix; UTF-8 as JSON asks, whatever the locale."""
    stream = sys.stderr
    raw = getattr(stream, "buffer", None)
    if raw is None:
        stream.write(line + "\n")
    else:
        stream.flush()
        raw.write((line + "\n").encode("utf-8", "replace"))
    stream.flush()


def _unloggable(record: logging.LogRecord, error: Exception) -> str:
    fields = {
        "timestamp": _time_of(record),
        "level": "error",
        "event": "log line could not be rendered",
        "logger": record.name,
        "problem": type(error).__name__,
        "at": f"{record.pathname}:{record.lineno}",
    }
    return orjson.dumps(redact_mapping(fields)).decode()


def _formatter(format: str) -> structlog.stdlib.ProcessorFormatter:
    renderer: list[Processor] = [_json_line]
    if format == "console":
        colors = bool(getattr(sys.stderr, "isatty", lambda: False)())
        console = structlog.dev.ConsoleRenderer(colors=colors, sort_keys=False, pad_event_to=32)
        renderer = [_harmless_on_a_terminal, console]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            with_context,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.add_log_level,
        ],
        processors=[
            _add_timestamp,
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Text, not frames: local variables are where secrets are.
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            _redact_and_order,
            *renderer,
        ],
    )


def _time_of(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def _add_timestamp(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["timestamp"] = _time_of(event["_record"])
    return event


def _redact_and_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    # An event is a text even where somebody logs an object: `log.error(error)`.
    if not isinstance(event.get("event"), str):
        event["event"] = _as_text(event.get("event"))
    clean = redact_mapping(event)
    return {name: clean[name] for name in _FIRST_KEYS if name in clean} | clean


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # whatever a foreign object's own methods raise
        return f"[unprintable {type(value).__name__}]"


def _json_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    return orjson.dumps(event).decode()


def _harmless_on_a_terminal(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Escape what moves a terminal's cursor or forges another line; tracebacks keep their lines."""

    def escaped(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return value.translate(_MANY_LINES if name in ("exception", "stack") else _ONE_LINE)

    return {name.translate(_ONE_LINE): escaped(name, value) for name, value in event.items()}
