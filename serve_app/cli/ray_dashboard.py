"""Ray's dashboard: its token, and what it is asked about Serve's applications."""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import msgspec

from serve_app.cli.cluster_rooms import GROUPS, NODES, rooms_of
from serve_app.cli.serve_view import ServeView
from serve_app.errors import ConfigError, RayshardError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HTTP_TIMEOUT_S = 5.0
_DASHBOARD_TIMEOUT_S = 60.0  # Serve may have to be started
_APPLICATIONS = "/api/serve/applications/"
_MAX_ANSWER_LINES = 5


class DashboardError(RayshardError):
    """Ray's dashboard did not do what it was asked."""


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Ray's dashboard at a URL."""

    url: str
    token: str | None = None  # None: there is none

    def serve_view(self) -> ServeView:
        """Serve and its applications. Raises DashboardError."""
        body = self._ask("GET", None)
        try:
            return msgspec.json.decode(body, type=ServeView)
        except msgspec.DecodeError as error:
            raise DashboardError(f"{self.url} does not answer as Ray's dashboard does; see the address") from error

    def put_applications(self, content: Mapping[str, Any]) -> None:
        """Have Serve run these applications, and no others. Raises DashboardError."""
        self._ask("PUT", json.dumps(content, default=str).encode())

    def rooms(self) -> dict[str, str]:
        """By application, why Ray has no place for a copy of it, and the way out. Raises DashboardError."""
        try:
            return rooms_of(self._ask("GET", None, NODES), self._ask("GET", None, GROUPS))
        except msgspec.DecodeError as error:
            raise DashboardError(f"{self.url} does not list nodes as Ray's dashboard does") from error

    def _ask(self, method: str, body: bytes | None, path: str = _APPLICATIONS) -> bytes:
        request = urllib.request.Request(self.url.rstrip("/") + path, body, method=method)
        request.add_header("Content-Type", "application/json")
        if self.token is not None:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with _open(request, _DASHBOARD_TIMEOUT_S, is_here=is_here(self.url)) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise DashboardError(self._refusal(error)) from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise DashboardError(
                f"Ray's dashboard at {self.url} cannot be reached ({_shown(reason)}); "
                "see that the cluster runs, and that this is its dashboard's address"
            ) from error

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        if error.code == HTTPStatus.UNAUTHORIZED:
            return (
                f"Ray's dashboard at {self.url} asks for a token, and there is none here; "
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"
            )
        if error.code == HTTPStatus.FORBIDDEN:
            return (
                f"Ray's dashboard at {self.url} does not know this token; "
                "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to that of the cluster"
            )
        lines = error.read().decode(errors="replace").strip().splitlines()
        told = "\n".join(lines[-_MAX_ANSWER_LINES:]) or error.reason
        if error.code == HTTPStatus.BAD_REQUEST:
            return f"Serve refuses the file, and has changed nothing: {told}"
        return f"Ray's dashboard at {self.url} answers {error.code}: {told}"


def dashboard_url(given: str) -> str:
    """A dashboard's URL as a user has written it. Raises ConfigError when it is none."""
    parts = urlsplit(given)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{given} is not the address of a dashboard; write http://HOST:8265")
    return given.rstrip("/")


def read_body(url: str) -> bytes:
    """The body that a URL answers with, whatever its status. Raises OSError when none does."""
    try:
        with _open(urllib.request.Request(url), _HTTP_TIMEOUT_S, is_here=is_here(url)) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.read()
    except HTTPException as error:
        raise OSError(f"{url} does not answer as HTTP does") from error


def is_here(url: str) -> bool:
    """Whether a URL is one of this machine, which no proxy reaches."""
    return urlsplit(url).hostname in LOOPBACK


def auth_token(environment: Mapping[str, str]) -> str | None:
    """Ray's token, from where Ray itself takes it or has written it."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    home = Path(environment.get("HOME") or Path.home())
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    return path.read_text().strip() if path.is_file() else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer like others: the token goes to no other place."""

    def redirect_request(
        self, _req: urllib.request.Request, _fp: IO[bytes], _code: int, _msg: str, _headers: Any, _newurl: str
    ) -> None:
        return None


def _open(request: urllib.request.Request, timeout_s: float, *, is_here: bool) -> HTTPResponse:
    """Open a URL; one of this machine whatever proxies the environment names."""
    proxies = [urllib.request.ProxyHandler({})] if is_here else []
    opener = urllib.request.build_opener(*proxies, _NoRedirect())
    response: HTTPResponse = opener.open(request, timeout=timeout_s)
    return response


def _shown(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "no answer"
    return getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
