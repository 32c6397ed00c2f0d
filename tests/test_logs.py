"""What reaches stderr: one line an event, with the request's context and without a secret (contract section 1)."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
import structlog
from aiohttp import web

from aizen_gateway.api.responses import json_response
from aizen_gateway.logs import bind_context, configure_logging, flush_requests, fresh_context, new_context
from aizen_gateway.redaction import redact, redact_text
from tests.api.bare import bare_app, served

# Made of the alphabet of real ones, and no credential of anybody.
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ0ZXN0In0.c2lnbmF0dXJlLW9mLXRlc3Q"
SECRET = "hx3Kq9Zt-V1mNw8RbYcD5eFgJkLpQsTuXzA2B4C6E7_"
SESSION_TOKEN = f"router-17.{SECRET}"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.captureWarnings(False)
    structlog.reset_defaults()
    new_context()


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """The JSON lines on stderr since the last call; anything on stdout is a failure."""
    configure_logging("info", "json")

    def read() -> list[dict[str, Any]]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return [json.loads(line) for line in captured.err.splitlines()]

    return read


def test_an_event_is_one_json_line_on_stderr_with_its_keys_in_order(lines: Lines) -> None:
    before = datetime.now(UTC)
    bind_context(request_id="r-1", customer_id=UUID(int=1), device_id="router-17")
    structlog.stdlib.get_logger("aizen.test").info("something_happened", count=3, device="router-17")
    (line,) = lines()
    assert list(line)[:7] == ["timestamp", "level", "event", "logger", "request_id", "customer_id", "device_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["timestamp"])
    assert abs(datetime.fromisoformat(line["timestamp"]) - before).total_seconds() < 60
    del line["timestamp"]
    assert line == {
        "level": "info",
        "event": "something_happened",
        "logger": "aizen.test",
        "request_id": "r-1",
        "customer_id": str(UUID(int=1)),
        "device_id": "router-17",
        "count": 3,
        "device": "router-17",
    }


def test_records_of_the_standard_library_come_out_alike(lines: Lines) -> None:
    bind_context(request_id="r-1")
    logging.getLogger("aiohttp.server").warning("Unhandled %s from %s", "error", "peer")
    (line,) = lines()
    assert (line["event"], line["logger"], line["level"], line["request_id"]) == (
        "Unhandled error from peer",
        "aiohttp.server",
        "warning",
        "r-1",
    )


def test_warnings_come_out_as_lines_too(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old ways", stacklevel=1)
        logging.captureWarnings(False)
    (line,) = lines()
    assert line["logger"] == "py.warnings"
    assert "old ways" in line["event"]


def test_below_the_level_nothing_is_written(lines: Lines) -> None:
    structlog.stdlib.get_logger("aizen.test").debug("quiet")
    logging.getLogger("redis").debug("quiet")
    assert lines() == []


def test_configuring_again_changes_level_and_format_and_doubles_no_line(
    lines: Lines, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = structlog.stdlib.get_logger("aizen.test")
    logger.info("first")
    assert len(lines()) == 1
    configure_logging("DEBUG", "console")
    logger.debug("second")
    captured = capsys.readouterr().err
    assert captured.count("second") == 1
    assert not captured.startswith("{")


@pytest.mark.parametrize(("level", "format_"), [("loud", "json"), ("info", "xml")])
def test_an_unknown_level_or_format_is_refused(level: str, format_: str) -> None:
    with pytest.raises(ValueError, match=r"loud|LOUD|xml"):
        configure_logging(level, format_)


def test_what_one_request_binds_is_not_on_the_next_ones_lines(lines: Lines) -> None:
    logger = structlog.stdlib.get_logger("aizen.test")
    bind_context(instance_id="i-1")
    with fresh_context(request_id="r-1"):
        bind_context(customer_id="c-1")
        logger.info("one")
    with fresh_context(request_id="r-2"):
        logger.info("two")
    logger.info("after")
    one, two, after = lines()
    assert (one["request_id"], one["customer_id"], "instance_id" in one) == ("r-1", "c-1", False)
    assert (two["request_id"], "customer_id" in two) == ("r-2", False)
    assert (after["instance_id"], "request_id" in after) == ("i-1", False)


async def test_tasks_keep_their_contexts_apart(lines: Lines) -> None:
    logger = structlog.stdlib.get_logger("aizen.test")
    both_bound = asyncio.Barrier(2)

    async def request(number: str) -> None:
        with fresh_context(request_id=number):
            await both_bound.wait()
            logger.info("handled", number=number)

    await asyncio.gather(request("1"), request("2"))
    assert all(line["request_id"] == line["number"] for line in lines())


def test_none_takes_a_name_off_again(lines: Lines) -> None:
    bind_context(request_id="r-1", device_id="router-17")
    bind_context(device_id=None)
    structlog.stdlib.get_logger("aizen.test").info("x")
    (line,) = lines()
    assert line["request_id"] == "r-1"
    assert "device_id" not in line


@pytest.mark.parametrize(
    "key",
    [
        "token", "access_token", "claim_token", "claimToken", "X-Device-Token", "X-Device-Session", "secret",
        "deviceSecret", "authorization", "Authorization", "proxy-authorization", "password", "passwd",
        "activation_code", "activationCode", "code", "jwt", "supabase_jwt_secret", "apikey", "api_key", "Set-Cookie",
        "credentials", "private_key",
    ],
)  # fmt: skip
def test_what_stands_under_a_key_that_sounds_secret_is_hidden(lines: Lines, key: str) -> None:
    structlog.stdlib.get_logger("aizen.test").info("x", **{key: "tiny"}, body={"deep": [{key: {"inner": "tiny"}}]})
    (line,) = lines()
    assert line[key] == "[redacted]"
    assert line["body"] == {"deep": [{key: "[redacted]"}]}


def test_codes_of_errors_and_closes_and_plain_answers_are_not_hidden(lines: Lines) -> None:
    structlog.stdlib.get_logger("aizen.test").info(
        "x", error_code="INVALID_CREDENTIALS", status_code=401, close_code=4401, has_token=True, token=None
    )
    (line,) = lines()
    assert (line["error_code"], line["status_code"], line["close_code"]) == ("INVALID_CREDENTIALS", 401, 4401)
    assert (line["has_token"], line["token"]) == (True, None)


CREDENTIALS_IN_TEXT = [
    (f"refused {JWT} from peer", JWT),
    (f"refused {JWT[:60]}", JWT[:60]),
    (f"Authorization: Bearer {SECRET}", SECRET),
    ("sent bearer short-one to peer", "short-one"),
    ("authorization: Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ("cannot connect to postgresql://aizen:hunter2@db:5432/aizen", "hunter2"),
    ("cannot connect to redis://:hunter2@cache/0", "hunter2"),
    ("postgresql://aizen:hunt@er2@db/aizen", "er2"),
    ("GET /ws/device?token=hunter2&prefetch=1 101", "hunter2"),
    ("GET /x?a=1&code=hunter2#top", "hunter2"),
    ("GET /x?access_token=hunter2", "hunter2"),
    ("{'deviceSecret': 'hunter2', 'deviceId': 'router-17'}", "hunter2"),
    ("""{"password": "hun'ter2", "x": 1}""", "ter2"),
    (r"""{"body": "{\"claimToken\": \"hunter2\"}"}""", "hunter2"),
    ("Credentials(password='hunter2', user='x')", "hunter2"),
    ("password=hunter2 user=x", "hunter2"),
    ("X-Device-Token: hunter2", "hunter2"),
    ("Cookie: a=hunter2; b=hunter2", "hunter2"),
    (f"Client protocols ['aizen.v1', 'auth-{SECRET}'] do not overlap", SECRET),
    (f"no session for {SESSION_TOKEN}", SECRET),
    (f"hash of {SECRET} differs", SECRET),
]


@pytest.mark.parametrize(("text", "credential"), CREDENTIALS_IN_TEXT)
def test_credentials_in_any_text_are_masked(lines: Lines, text: str, credential: str) -> None:
    logger = structlog.stdlib.get_logger("aizen.test")
    logger.info(text)
    logger.info("x", detail=text, nested={"list": [text]}, **{f"key {text}": 1})
    logging.getLogger("aiohttp").error("says %s", text)
    logging.getLogger("asyncio").error(text)
    shown = lines()
    assert len(shown) == 4
    assert credential not in json.dumps(shown)
    assert "[redacted]" in shown[0]["event"]


@pytest.mark.parametrize(("text", "credential"), CREDENTIALS_IN_TEXT)
def test_credentials_in_the_text_of_exceptions_are_masked(lines: Lines, text: str, credential: str) -> None:
    def fail() -> None:
        try:
            raise ConnectionError(text)
        except ConnectionError as error:
            raise RuntimeError("outer") from error

    for log in (structlog.stdlib.get_logger("aizen.test").exception, logging.getLogger("aiohttp").exception):
        try:
            fail()
        except RuntimeError:
            log("failed")
    shown = lines()
    assert len(shown) == 2
    for line in shown:
        assert "RuntimeError: outer" in line["exception"]
        assert "ConnectionError" in line["exception"]
        assert "Traceback" in line["exception"]
    assert credential not in "".join(line["exception"] for line in shown)


@pytest.mark.parametrize(
    "text",
    [
        "device router-17 is online",
        "3b6f7c2e-7f07-4a53-9b39-1c2c4d5e6f70",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "POST /api/v1/device/commands/claim 200",
        "https://ref.supabase.co/auth/v1/.well-known/jwks.json",
        "fe80::1",
        "mail to someone@example.com",
        "aizen_gateway.services.supabase",
        "token expired",
        "key=value",
        "authentication failed: basically nothing",
    ],
)
def test_what_is_no_credential_stays_readable(text: str) -> None:
    assert redact_text(text) == text


def test_a_value_that_cannot_be_serialized_never_stops_a_line(lines: Lines) -> None:
    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

        __str__ = __repr__

    class Plain:
        def __repr__(self) -> str:
            return "Plain(secret='hunter2', n=1)"

    root = logging.getLogger()
    # The test runner's own handlers do not survive such objects.
    root.handlers[:] = [
        handler for handler in root.handlers if type(handler).__module__ == configure_logging.__module__
    ]
    circle: list[Any] = []
    circle.append(circle)
    logger = structlog.stdlib.get_logger("aizen.test")
    logger.info(
        "x",
        hostile=Hostile(),
        plain=Plain(),
        circle=circle,
        surrogate="a\ud800b",
        huge=10**5000,
        infinite=float("inf"),
        raw=b"\xff\x00",
        when=datetime(2026, 1, 31, tzinfo=UTC),
        members={1, 2},
        keys={1: "a", None: "b", (1, 2): "c"},
        many=list(range(1000)),
        long="x y " * 100_000,
        error=ValueError("Bearer hunter2"),
    )
    logger.info(Hostile())  # type: ignore[arg-type]
    logger.info("not a place: %d", "for this")
    logger.info("x", exc_info="nonsense")  # noqa: LOG014 - it is the nonsense that is tried
    logging.getLogger("redis").info("%d", "not a number")
    logging.getLogger("redis").info(Hostile())
    line, *others = lines()
    assert len(others) == 5
    assert line["hostile"] == "[unprintable Hostile]"
    assert line["plain"] == "Plain(secret='[redacted]', n=1)"
    assert line["surrogate"] == "a\ufffdb"
    assert len(line["huge"]) < 100
    assert (line["infinite"], line["raw"], line["members"]) == ("inf", r"b'\xff\x00'", [1, 2])
    assert line["when"] == "2026-01-31T00:00:00+00:00"
    assert line["keys"] == {"1": "a", "None": "b", "(1, 2)": "c"}
    assert line["many"][-1] == "... 1000 in all"
    assert "400000 characters" in line["long"]
    assert len(line["long"]) < 20_000
    assert line["error"] == "ValueError('Bearer [redacted]')"
    assert [other["event"] for other in others[-2:]] == ["log line could not be rendered"] * 2


def test_a_long_traceback_keeps_its_last_line(lines: Lines) -> None:
    try:
        raise ValueError("x" * 30_000 + " the end")
    except ValueError:
        structlog.stdlib.get_logger("aizen.test").exception("failed")
    (line,) = lines()
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith(" the end")


def test_a_new_line_in_a_value_makes_no_new_line_in_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    for format_ in ("json", "console"):
        configure_logging("info", format_)
        structlog.stdlib.get_logger("aizen.test").info('first\n{"event": "forged"}', agent="a\r\n\x1b[2Jb")
        written = capsys.readouterr().err
        assert written.count("\n") == 1
        assert "\x1b[2J" not in written


def test_the_console_format_shows_context_and_tracebacks_without_secrets_or_local_variables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "console")
    bind_context(request_id="r-1")
    local = "a-local-" + "value"
    try:
        assert local
        raise ConnectionError("redis://:hunter2@cache")
    except ConnectionError:
        structlog.stdlib.get_logger("aizen.test").exception("failed", token="hunter3")
    written = capsys.readouterr().err
    assert "r-1" in written
    assert "ConnectionError: redis://[redacted]@cache" in written
    assert "\nTraceback (most recent call last):\n" in written
    assert "hunter" not in written
    assert "a-local-value" not in written


def test_logging_goes_on_when_stderr_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    configure_logging("info", "json")
    monkeypatch.setattr(sys, "stderr", None)
    structlog.stdlib.get_logger("aizen.test").info("nobody hears this")


def test_a_process_writes_lines_to_stderr_whatever_its_locale() -> None:
    program = (
        "import logging, structlog\n"
        "from aizen_gateway.logs import configure_logging\n"
        "configure_logging('info', 'json')\n"
        "structlog.stdlib.get_logger('a').info('caf\\u00e9', token='hunter2')\n"
        "logging.getLogger('b').error('postgres://u:hunter2@db')\n"
        "configure_logging('info', 'console')\n"
        "logging.getLogger('b').error('caf\\u00e9')\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={"PYTHONIOENCODING": "ascii:strict", "PYTHONPATH": ":".join(path for path in sys.path if path)},
    )
    assert ended.stdout == b""
    first, second, third = ended.stderr.decode("utf-8").splitlines()
    assert json.loads(first)["event"] == "café"
    assert json.loads(second)["event"] == "postgres://[redacted]@db"
    assert "café" in third
    assert b"hunter2" not in ended.stderr


def test_masking_stays_fast_on_text_made_to_be_slow() -> None:
    for text in ("eyJ" * 3000, "token" * 2000, "secret='" * 1200, "a-" * 5000, "Bearer " * 1500, "token='\\" * 1200):
        assert isinstance(redact(text), str)


async def test_what_one_request_binds_is_on_no_line_of_the_next_on_its_connection(lines: Lines) -> None:
    async def bound(request: web.Request) -> web.Response:
        bind_context(device_id="router-17")
        return json_response({})

    async def plain(request: web.Request) -> web.Response:
        return json_response({})

    names = ("bound", "plain", "bound")
    async with served(bare_app(bound=bound, plain=plain)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for name in names:
            writer.write(f"POST /{name} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            await reader.readuntil(b"{}")
        writer.write(b"no request\r\n\r\n")
        await reader.read()
        writer.close()
    flush_requests()
    said = lines()
    requests = [line for line in said if line["event"] == "request"]
    malformed = [line for line in said if line["event"] == "malformed_request"]
    assert [line.get("device_id") for line in requests] == ["router-17", None, "router-17"]
    assert ["device_id" in line for line in malformed] == [False]
    assert len({line["request_id"] for line in (*requests, *malformed)}) == 4
