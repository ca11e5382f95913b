"""Weights over TLS from a server of the test's own, honest and hostile."""

import hashlib
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save

from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.checkpoints.source import local_directory, pin_source
from serve_app.checkpoints.weights_download import _is_public, directory_with_weights, fetch_weights
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.config.weights import weights_url_problem
from serve_app.errors import ConfigError
from serve_app.types.models import RemoteWeights
from tests.checkpoints import load_reference, make_checkpoint

FILE = save({"weight": torch.arange(6.0)})
SHA256 = hashlib.sha256(FILE).hexdigest()


@dataclass
class Answer:
    """What the server says at a path."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Server:
    """A server on 127.0.0.1 whose certificate is for localhost."""

    port: int
    answers: dict[str, Answer]
    num_requests: int = 0

    def weights(self, path: str = "/model.safetensors", sha256: str = SHA256, **more: tuple[str, ...]) -> RemoteWeights:
        """The file at a path; localhost is allowed unless said."""
        return RemoteWeights(
            f"https://localhost:{self.port}{path}", sha256, **{"private_hosts": ("localhost",), **more}
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    key, chain = directory / "key.pem", directory / "cert.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    )
    subprocess.run([*command.split(), "-keyout", str(key), "-out", str(chain)], check=True, capture_output=True)
    return key, chain


@pytest.fixture
def server(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    key, chain = certificate
    monkeypatch.setenv("SSL_CERT_FILE", str(chain))
    served = Server(0, {"/model.safetensors": Answer(FILE)})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.num_requests += 1
            answer = served.answers.get(self.path, Answer(status=404))
            self.send_response(answer.status)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(len(answer.body))}
            for name, value in (headers | answer.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            pass

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    http_server.socket = context.wrap_socket(http_server.socket, server_side=True)
    served.port = http_server.server_address[1]
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    http_server.shutdown()
    thread.join()
    http_server.server_close()


def test_a_file_is_downloaded_once(server: Server, tmp_path: Path) -> None:
    path = fetch_weights(server.weights(), tmp_path / "cache")
    assert torch.equal(load_file(str(path))["weight"], torch.arange(6.0))
    assert fetch_weights(server.weights(), tmp_path / "cache") == path
    assert server.num_requests == 1


def test_a_redirect_on_the_same_host_is_followed(server: Server, tmp_path: Path) -> None:
    server.answers["/old"] = Answer(status=302, headers={"Location": "/model.safetensors"})
    assert fetch_weights(server.weights("/old"), tmp_path).read_bytes() == FILE


Change = Callable[[Server], RemoteWeights]


def at(answer: Answer) -> Change:
    def change(server: Server) -> RemoteWeights:
        server.answers["/x"] = answer
        return server.weights("/x")

    return change


def redirect(location: str) -> Change:
    return at(Answer(status=302, headers={"Location": location}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda server: server.weights(sha256="0" * 64), f"weights.sha256=0+ is not that of .*{SHA256}"),
        (at(Answer(b"<html>", headers={"Content-Type": "text/html; charset=utf-8"})), "answers a page"),
        (at(Answer(b"<!doctype html><p>Log in")), "not a safetensors file, it begins with .*doctype"),
        (at(Answer(b"\x80\x04\x95pickle")), "not a safetensors file"),
        (at(Answer(b"")), "is not that of"),
        (at(Answer(status=404)), "answers 404 Not Found"),
        (at(Answer(FILE, headers={"Content-Length": str(len(FILE) + 5)})), "ended after|IncompleteRead"),
        (at(Answer(FILE, headers={"Content-Length": str(2**60)})), "do not fit on the disk"),
        (at(Answer(FILE, headers={"Content-Encoding": "gzip"})), "Content-Encoding gzip"),
        (redirect("https://127.0.0.1/x"), "redirected to another host"),
        (redirect("http://localhost/x"), "redirected to another host"),
        (redirect("file:///etc/passwd"), "redirected to another host"),
        (redirect("/x"), "more than 5 times"),
        (lambda server: server.weights(private_hosts=()), "localhost is the private address.*private_hosts"),
        (lambda server: server.weights(private_hosts=("another",)), "localhost is the private address"),
        (
            lambda server: RemoteWeights(f"https://127.0.0.1:{server.port}/x", SHA256, ("127.0.0.1",)),
            "CERTIFICATE_VERIFY_FAILED",
        ),
    ],
)
def test_what_is_not_the_file_is_refused_and_nothing_is_kept(
    server: Server, tmp_path: Path, change: Change, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fetch_weights(change(server), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    assert fetch_weights(server.weights(), tmp_path).read_bytes() == FILE


PRIVATE = [
    *("10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255"),
    *("::1", "::", "fe80::1", "fc00::1", "fec0::1", "feff::1", "ff02::1", "2001:db8::1", "64:ff9b:1::1"),
    *("::ffff:10.0.0.1", "::10.0.0.1", "::127.0.0.1", "::ffff:0:10.0.0.1"),  # mapped, compatible, translated
    *("64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b::224.0.0.1"),  # NAT64
    *("2002:7f00:1::1", "2002:a9fe:a9fe::", "2002:e000:1::"),  # 6to4
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_not_even_connected_to(tmp_path: Path, address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    with pytest.raises(ConfigError, match="is the private address"):
        fetch_weights(RemoteWeights(f"https://{host}/x", SHA256), tmp_path)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1"]
)
def test_public_addresses_are_public_whatever_carries_them(address: str) -> None:
    assert _is_public(address)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("file:///etc/passwd", "only https"),
        ("http://example.org/x", "only https"),
        ("example.org/x", "only https"),
        ("https:///x", "names no host"),
        ("https://user:secret@example.org/x", "user name"),
        ("https://example.org/a b", "encode it"),
        ("https://example.org:99999/x", "is not a URL"),
    ],
)
def test_a_url_that_cannot_be_meant_is_named(url: str, says: str) -> None:
    problem = weights_url_problem(url)
    assert problem is not None
    assert says in problem
    assert "secret" not in problem


def test_a_url_as_it_should_be_has_no_problem() -> None:
    assert weights_url_problem("https://example.org/models/model.safetensors?v=1") is None


def test_a_directory_is_joined_with_the_weights_and_follows_its_changes(server: Server, tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    source.mkdir()
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"other weights")
    (source / "model.safetensors.index.json").write_text("{}")
    joined = directory_with_weights(source, [server.weights()], cache)
    assert sorted(path.name for path in joined.iterdir()) == ["config.json", "model.safetensors"]
    assert (joined / "model.safetensors").read_bytes() == FILE
    (source / "config.json").rename(source / "tokenizer.json")
    assert directory_with_weights(source, [server.weights()], cache) == joined
    assert sorted(path.name for path in joined.iterdir()) == ["model.safetensors", "tokenizer.json"]


def test_a_pinned_source_is_found_by_every_process_of_a_node(server: Server, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    environment = read_environment({"XDG_CACHE_HOME": str(tmp_path / "cache")})
    source = pin_source("m", None, tmp_path, environment, (server.weights(),))
    assert local_directory(source, environment) == Path(source.directory)
    assert load_file(f"{source.directory}/model.safetensors").keys() == {"weight"}
    assert local_directory(source, environment, needs_weights=False) == tmp_path / "m"
    other_node = read_environment({"XDG_CACHE_HOME": str(tmp_path / "other")})
    assert (local_directory(source, other_node) / "model.safetensors").read_bytes() == FILE


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"url": "http://example.org/x", "sha256": SHA256}, "only https is fetched"),
        ({"url": "https://example.org/x", "sha256": "abc"}, "sha256"),
        ({"url": "https://example.org/x"}, "sha256"),
        ([], "at least 1 item"),
        ([{"url": "https://example.org/x", "sha256": SHA256}, {"url": "http://x/y"}], r"only https is fetched"),
        (
            [{"url": "https://example.org/x", "sha256": SHA256}, {"url": "https://x/y", "sha256": SHA256.upper()}],
            "weights has the file of https://example.org/x twice",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(weights: object, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelConfig.model_validate({"name": "m", "source": "m", "weights": weights})


def test_settings_become_weights() -> None:
    weights = {"url": "https://example.org/x", "sha256": SHA256.upper(), "private_hosts": ["example.org"]}
    config = ModelConfig.model_validate({"name": "m", "source": "m", "weights": weights})
    assert config.remote_weights == (RemoteWeights("https://example.org/x", SHA256, ("example.org",)),)
    more = {"url": "https://example.org/y", "sha256": "0" * 64}
    config = ModelConfig.model_validate({"name": "m", "source": "m", "weights": [weights, more]})
    assert [one.url for one in config.remote_weights] == ["https://example.org/x", "https://example.org/y"]
    assert ModelConfig.model_validate({"name": "m", "source": "m"}).remote_weights == ()


def spread(server: Server, *states: dict[str, torch.Tensor]) -> list[RemoteWeights]:
    """Files at the server, one for each state."""
    found = []
    for number, state in enumerate(states):
        body = save(state)
        server.answers[f"/{number}"] = Answer(body)
        found.append(server.weights(f"/{number}", hashlib.sha256(body).hexdigest()))
    return found


def test_weights_of_several_files_get_an_index(server: Server, tmp_path: Path) -> None:
    source, cache = tmp_path / "source", tmp_path / "cache"
    make_checkpoint("llama", source)
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    state = load_file(str(source / "model.safetensors"))
    names = sorted(state)
    halves = [{name: state[name] for name in part} for part in (names[:9], names[9:])]
    weights = spread(server, *halves)
    joined = directory_with_weights(source, weights, cache)
    assert directory_with_weights(source, weights, cache) == joined
    assert directory_with_weights(source, weights[::-1], cache) != joined
    assert not (joined / "model.safetensors").exists()
    assert (joined / "1_Pooling" / "config.json").read_text() == "{}"
    spec, whole = read_model_spec(joined), read_model_spec(source)
    assert {name: one.shape for name, one in spec.tensors.items()} == {
        name: one.shape for name, one in whole.tensors.items()
    }
    assert load_reference(joined).state_dict().keys() == load_reference(source).state_dict().keys()
    assert server.num_requests == 2


def test_a_tensor_in_two_files_is_refused_with_both(server: Server, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    weights = spread(server, {"a": torch.zeros(1)}, {"a": torch.ones(1)})
    with pytest.raises(ConfigError, match=r"the tensor a is in https://localhost:.*/0 and in https://localhost:.*/1;"):
        directory_with_weights(tmp_path / "source", weights, tmp_path / "cache")
