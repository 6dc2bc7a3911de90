"""The answer to ``GET /``: a server's models and routes, and a request to copy, as JSON or as a page."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from mirrorspark.pages import element, page_html, rows_html, section_html

_TOKEN = "Authorization: Bearer TOKEN"  # noqa: S105 - a placeholder


@dataclass(frozen=True)
class FrontPage:
    """Facts about a server.

    Attributes:
        serves: Version or number of each thing that answers, by its name.
        routes: Input or answer of each route, by method and path.
        path: Path of the request to copy; empty if there is none.
        body: Its body; None if it has none.
        has_token: Whether it needs a token.
    """

    serves: Mapping[str, str]
    routes: Mapping[str, str]
    path: str = ""
    body: Any = None
    has_token: bool = False

    def answer(self, request: Request) -> Response:
        """Return the page for a browser, and the same as JSON for all others."""
        url = str(request.base_url).rstrip("/") + self.path
        if "text/html" not in request.headers.get("accept", ""):
            example = {"url": url, "body": self.body} if self.path else None
            document = {"serves": dict(self.serves), "routes": dict(self.routes), "example": example}
            return Response(json.dumps(document, indent=2) + "\n", media_type="application/json")
        blocks = [
            section_html("Ask", element("div", element("pre", self._command(url)), class_="card")) if self.path else "",
            section_html("Serves", rows_html(("name", "version or number"), list(self.serves.items()))),
            section_html("Routes", rows_html(("route", "takes or gives"), list(self.routes.items()))),
        ]
        return HTMLResponse(page_html("Server", ", ".join(self.serves), blocks))

    def _command(self, url: str) -> str:
        """Return the request to copy as a command of a shell."""
        words = ["curl"]
        if self.has_token:
            words += ["-H", _TOKEN]
        if self.body is not None:
            words += ["-d", json.dumps(self.body, ensure_ascii=False)]
        return shlex.join([*words, url])


def path_of(*parts: str) -> str:
    """Return the path of a URL, whose parts may have any characters."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def in_json(row: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Return the first row as a JSON object; bytes are in base 64."""
    return {name: {"b64": ""} if values[0] == b"" else values[0] for name, values in row.items()}
