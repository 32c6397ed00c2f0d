"""The OpenAPI document as one page to read: no script, and nothing fetched from elsewhere, so that it works offline."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

Document = Mapping[str, Any]

_STYLE = """
:root{color-scheme:light dark;--line:#8886;--soft:#8882;--accent:#0a66c2}
body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:0 auto;padding:1rem}
code,pre{font:.875em/1.45 ui-monospace,monospace}pre{background:var(--soft);padding:.75rem;overflow:auto}
details{border:1px solid var(--line);border-radius:.4rem;margin:.4rem 0;padding:0 .8rem}
summary{cursor:pointer;padding:.5rem 0}summary b{display:inline-block;min-width:4rem;color:var(--accent)}
table{border-collapse:collapse;width:100%;margin:.4rem 0 1rem}
td,th{border-top:1px solid var(--line);padding:.3rem .6rem .3rem 0;text-align:left;vertical-align:top}
h2{margin-top:2.5rem}a{color:var(--accent)}
"""


def content_security_policy() -> str:
    """The policy under which the page needs nothing but its own style."""
    digest = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def render(document: Document) -> bytes:
    """Return the page for `document`, in UTF-8."""
    info = document["info"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width,initial-scale=1">',
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>",
        '<p><a href="/openapi.json">openapi.json</a>, and the sockets: <a href="/asyncapi.json">asyncapi.json</a></p>',
        *(f"<p>{_marked(paragraph)}</p>" for paragraph in info["description"].strip().split("\n\n")),
        *_security(document),
    ]
    for tag in document["tags"]:
        parts.append(f"<h2>{escape(tag['name'].capitalize())}</h2><p>{_marked(tag['description'])}</p>")
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                if tag["name"] in operation["tags"]:
                    parts.extend(_operation(document, path, method, operation))
    parts.append("<h2>Shapes</h2>")
    for name, schema in document["components"]["schemas"].items():
        parts.append(f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>')
        parts.extend(_fields(schema))
        parts.append("</details>")
    parts.append("</body></html>")
    return "".join(parts).encode()


def _security(document: Document) -> Iterator[str]:
    yield "<h2>Who is calling</h2><table>"
    for name, scheme in document["components"]["securitySchemes"].items():
        shown = scheme.get("name") or "Authorization: Bearer"
        yield f"<tr><td>{escape(name)}<td><code>{escape(shown)}</code><td>{_marked(scheme['description'])}"
    yield "</table>"


def _operation(document: Document, path: str, method: str, operation: Document) -> Iterator[str]:
    yield f'<details id="{escape(operation["operationId"])}"><summary><b>{method.upper()}</b> '
    yield f"<code>{escape(path)}</code> {escape(operation['summary'])}</summary>"
    if "description" in operation:
        yield f"<p>{_marked(operation['description'])}</p>"
    ways = [" + ".join(way) for way in operation["security"]]
    yield f"<p>Token: {escape(', or '.join(ways) or 'none')}.</p>"
    yield from _parameters(document, operation["parameters"])
    if "requestBody" in operation:
        content = operation["requestBody"]["content"]["application/json"]
        yield f"<h4>Body: {_type(content['schema'])}</h4>"
        yield _example(content)
    yield "<h4>Answers</h4><table>"
    for status, response in operation["responses"].items():
        contents = list(response.get("content", {}).values())
        shape = "".join(_type(content["schema"]) for content in contents)
        yield f"<tr><td>{escape(status)}<td>{_marked(response['description'])}<td>{shape}"
    yield "</table></details>"


def _parameters(document: Document, parameters: list[Document]) -> Iterator[str]:
    yield "<table>"
    shared = document["components"]["parameters"]
    for parameter in (shared[_last(given["$ref"])] if "$ref" in given else given for given in parameters):
        need = "required" if parameter.get("required") else ""
        yield f"<tr><td><code>{escape(parameter['name'])}</code><td>{escape(parameter['in'])} {need}"
        yield f"<td>{_type(parameter['schema'])}<td>{_marked(parameter.get('description', ''))}"
    yield "</table>"


def _fields(schema: Document) -> Iterator[str]:
    required = schema.get("required", [])
    yield "<table>"
    for name, field in schema.get("properties", {}).items():
        need = "required" if name in required else ""
        yield f"<tr><td><code>{escape(name)}</code><td>{need}<td>{_type(field)}"
        yield f"<td>{_marked(field.get('description', ''))}"
    yield "</table>"


def _type(schema: Document) -> str:
    """A few words for a schema, with links to the named ones."""
    if "$ref" in schema:
        name = escape(_last(schema["$ref"]))
        return f'<a href="#{name}">{name}</a>'
    if "allOf" in schema or "anyOf" in schema:
        return " or ".join(_type(part) for part in schema.get("allOf") or schema["anyOf"])
    if "enum" in schema:
        return " | ".join(f"<code>{escape(json.dumps(word))}</code>" for word in schema["enum"])
    kinds = schema.get("type", "any JSON")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    if "items" in schema:
        return f"{escape(kind)} of {_type(schema['items'])}"
    bounds = [f"{key} {schema[key]}" for key in _BOUNDS if key in schema]
    return escape(", ".join([kind, *bounds]))


_BOUNDS = ("format", "minimum", "maximum", "minLength", "maxLength", "pattern", "default")


def _example(content: Document) -> str:
    if "example" not in content:
        return ""
    return f"<pre>{escape(json.dumps(content['example'], indent=2))}</pre>"


def _marked(text: str) -> str:
    """`text` with its backquotes as code and its double asterisks as bold."""
    pieces = []
    for position, piece in enumerate(escape(text).split("`")):
        if position % 2:
            pieces.append(f"<code>{piece}</code>")
        else:
            halves = piece.split("**")
            pieces.append("".join(f"<b>{half}</b>" if odd % 2 else half for odd, half in enumerate(halves)))
    return "".join(pieces)


def _last(reference: str) -> str:
    return reference.rsplit("/", 1)[1]
