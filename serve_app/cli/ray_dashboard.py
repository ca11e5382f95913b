"""What Ray's dashboard knows of the applications, and whether a URL of this machine answers."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

_HTTP_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class ApplicationState:
    """One application as Serve reports it."""

    name: str
    status: str
    message: str


def application_states(dashboard_url: str, auth_token: str | None) -> list[ApplicationState]:
    """The applications as Ray's dashboard knows them; none while it does not answer."""
    request = urllib.request.Request(f"{dashboard_url}/api/serve/applications/")
    if auth_token is not None:
        request.add_header("Authorization", f"Bearer {auth_token}")
    try:
        with _open(request) as response:
            applications = json.load(response).get("applications", {})
    except (OSError, ValueError):
        return []
    return [ApplicationState(name, entry["status"], entry["message"]) for name, entry in applications.items()]


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
