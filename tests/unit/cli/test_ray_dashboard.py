"""What Ray's dashboard is asked, and what is made of its refusals."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve_app.cli.ray_dashboard import Dashboard, DashboardError, auth_token, dashboard_url, read_body
from serve_app.errors import ConfigError
from tests.unit.cli.fake_dashboard import FakeServe, fake_dashboard


@pytest.fixture
def serve() -> FakeServe:
    return FakeServe(token="secret")


@pytest.fixture
def url(serve: FakeServe) -> Iterator[str]:
    with fake_dashboard(serve) as url:
        yield url


def test_applications_are_put_and_seen(serve: FakeServe, url: str) -> None:
    dashboard = Dashboard(url, "secret")
    dashboard.put_applications({"applications": [{"name": "one", "args": {"a": 1}}]})
    view = dashboard.serve_view()
    assert view.applications["one"].deployed_app_config == {"name": "one", "args": {"a": 1}}
    assert view.applications["one"].deployments["Router"].num_running == 0
    assert serve.submitted == [{"applications": [{"name": "one", "args": {"a": 1}}]}]


@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, "asks for a token, and there is none here; set RAY_AUTH_TOKEN"),
        ("other", "does not know this token; set"),
    ],
)
def test_a_token_that_is_missing_or_wrong_is_said(url: str, token: str | None, said: str) -> None:
    with pytest.raises(DashboardError, match=f"^Ray's dashboard at {url} {said}") as caught:
        Dashboard(url, token).serve_view()
    assert "\n" not in caught.value.message


def test_what_is_no_dashboard_is_told_from_one(serve: FakeServe, url: str) -> None:
    serve.answers = [404]
    with pytest.raises(DashboardError, match=f"Ray's dashboard at {url} answers 404: Traceback\nit is why"):
        Dashboard(url, "secret").serve_view()
    serve.look = lambda: {"hello": "world"}  # type: ignore[method-assign]
    with pytest.raises(DashboardError, match=f"{url} does not answer as Ray's dashboard does"):
        Dashboard(url, "secret").serve_view()


def test_a_redirect_does_not_take_the_token_elsewhere(serve: FakeServe, url: str) -> None:
    elsewhere = FakeServe(token="secret")
    with fake_dashboard(elsewhere) as serve.location:
        serve.answers = [302]
        with pytest.raises(DashboardError, match="answers 302"):
            Dashboard(url, "secret").serve_view()


@pytest.mark.parametrize("given", ["127.0.0.1:8265", "ray://head:10001", "http://", "8265"])
def test_what_is_not_a_url_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=f"^{given} is not the address of a dashboard; write http://HOST:8265$"):
        dashboard_url(given)


def test_a_url_may_end_with_a_slash() -> None:
    assert dashboard_url("https://head:8265/") == "https://head:8265"


def test_the_token_is_found_where_ray_keeps_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from a file\n")
    assert auth_token({"RAY_AUTH_TOKEN": "given", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == "given"
    assert auth_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}) == "from a file"
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("at home")
    assert auth_token({"HOME": str(tmp_path)}) == "at home"
    assert auth_token({"RAY_AUTH_TOKEN_PATH": str(tmp_path / "none")}) is None


def test_a_body_is_read_whatever_its_status(serve: FakeServe, url: str) -> None:
    serve.answers = [503]
    assert read_body(f"{url}/health") == b"Traceback\nit is why"
    with pytest.raises(OSError, match="refused"):
        read_body("http://127.0.0.1:1/health")


def test_what_does_not_speak_http_has_no_body() -> None:
    def answer() -> None:
        connection, _address = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(b"220 mail.example.org\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        answering = threading.Thread(target=answer)
        answering.start()
        with pytest.raises(OSError, match="does not answer as HTTP does"):
            read_body(f"http://127.0.0.1:{listener.getsockname()[1]}/health")
        answering.join()
