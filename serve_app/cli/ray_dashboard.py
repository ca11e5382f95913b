"""The token of Ray's dashboard, and whether a URL of this machine answers."""

import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPResponse
from pathlib import Path

_HTTP_TIMEOUT_S = 5.0


def status_of(url: str) -> int | None:
    """The HTTP status that a URL of this machine answers with; None: nothing answers."""
    try:
        with _open(urllib.request.Request(url)) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def auth_token(environment: Mapping[str, str]) -> str | None:
    """Ray's token, from where Ray itself takes it or has written it."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


def _open(request: urllib.request.Request) -> HTTPResponse:
    """Open a URL of this machine, whatever proxies the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    response: HTTPResponse = opener.open(request, timeout=_HTTP_TIMEOUT_S)
    return response
