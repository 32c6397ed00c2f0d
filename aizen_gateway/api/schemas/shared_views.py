"""Shapes of answers that more than one audience gets (contract sections 1 and 5)."""

from __future__ import annotations

from typing import Any

from marshmallow import fields, validate

from .loading import View

DIGEST_EXAMPLE = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"


def text(**options: Any) -> fields.String:
    """A text that is always there."""
    return fields.String(required=True, **options)


def text_or_null(**options: Any) -> fields.String:
    """A text that is always named but may be null."""
    return fields.String(required=True, allow_none=True, **options)


def moment(**options: Any) -> fields.DateTime:
    """A time that is always there."""
    return fields.DateTime(required=True, **options)


def moment_or_null(**options: Any) -> fields.DateTime:
    """A time that is always named but may be null."""
    return fields.DateTime(required=True, allow_none=True, **options)


def uuid(**options: Any) -> fields.UUID:
    """A UUID that is always there."""
    return fields.UUID(required=True, **options)


def count(**options: Any) -> fields.Integer:
    """A whole number of zero or more that is always there."""
    return fields.Integer(required=True, validate=validate.Range(min=0), **options)


def flag(**options: Any) -> fields.Boolean:
    """A boolean that is always there."""
    return fields.Boolean(required=True, **options)


class ErrorDetail(View):
    code = text(metadata={"example": "INVALID_REQUEST", "pattern": "^[A-Z][A-Z_]*$"})
    message = text(metadata={"description": "For a person."})
    details = fields.Dict(
        keys=fields.String(),
        required=True,
        metadata={"description": "On 400 `fields` names what is wrong.", "example": {"fields": {"deviceId": ["..."]}}},
    )
    request_id = text(data_key="requestId")


class ErrorAnswer(View):
    error = fields.Nested(ErrorDetail, required=True)


class AliveAnswer(View):
    status = text(metadata={"enum": ["ok"]})
    timestamp = moment()


class Checks(View):
    database = flag()
    redis = flag()


class ReadyAnswer(View):
    ready = flag()
    checks = fields.Nested(Checks, required=True)


class NotReadyAnswer(ReadyAnswer):
    errors = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        required=True,
        metadata={"description": "Why, for each failing check, and for `gateway` while it drains."},
    )


class VersionAnswer(View):
    version = text(metadata={"example": "1.0.0"})
