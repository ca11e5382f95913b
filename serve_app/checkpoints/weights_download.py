"""Weights from an https URL: checked by their sha256, kept in a cache, never unpickled.

The server's address is looked up once, checked, and connected to: resolving differently in between gains nothing.
"""

import hashlib
import http.client
import ipaddress
import json
import logging
import shutil
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from filelock import FileLock

from serve_app.checkpoints.safetensors_header import read_safetensors_header
from serve_app.checkpoints.sentence_modules import transformer_directory
from serve_app.config.weights import weights_url_problem
from serve_app.errors import ConfigError
from serve_app.types.models import RemoteWeights

logger = logging.getLogger(__name__)

_TIMEOUT_S = 30.0  # of connecting, and between two pieces
_PIECE_BYTES = 1 << 20
_PROGRESS_S = 5.0
_MAX_REDIRECTS = 5
_REDIRECTS = {301, 302, 303, 307, 308}
_MAX_HEADER_BYTES = 100 * 10**6  # as safetensors itself has it
_LAST_32_BITS = [  # IPv6 networks whose last 32 bits are an IPv4 address
    ipaddress.IPv6Network(network)
    for network in (
        "::/96",  # compatible (RFC 4291, 2.5.5.1)
        "::ffff:0:0/96",  # mapped (RFC 4291, 2.5.5.2)
        "::ffff:0:0:0/96",  # translated (RFC 2765, 2.1)
        "64:ff9b::/96",  # NAT64 (RFC 6052, 2.1)
    )
]
_NOT_ROUTED = [
    ipaddress.IPv6Network(network)
    for network in (
        "64:ff9b:1::/48",  # NAT64 of a site's own (RFC 8215)
        "3fff::/20",  # documentation (RFC 9637)
        "5f00::/16",  # segment routing (RFC 9602)
    )
]
_SPARE_BYTES = 64 * 2**20  # left free on the disk


def fetch_weights(weights: RemoteWeights, cache_dir: Path) -> Path:
    """The file in the cache; downloaded by one process of the node while the others wait. Raises ConfigError."""
    found = find_weights(weights, cache_dir)
    if found is not None:
        return found
    path = _cached(weights, cache_dir)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / f"{weights.sha256}.lock"):
            if not path.is_file():
                _fetch(weights, path)
    except OSError as error:  # of the disk or the network; http.client's own are turned below
        kind = type(error).__name__
        raise ConfigError(f"weights.url={weights.url} could not be downloaded ({kind}: {error}); try again") from error
    return path


def find_weights(weights: RemoteWeights, cache_dir: Path) -> Path | None:
    """The file when it is in the cache already."""
    path = _cached(weights, cache_dir)
    return path if path.is_file() else None


def _cached(weights: RemoteWeights, cache_dir: Path) -> Path:
    return cache_dir / f"{weights.sha256}.safetensors"


def directory_with_weights(directory: Path, weights: Sequence[RemoteWeights], cache_dir: Path) -> Path:
    """A directory of the cache: links to what is in `directory`, and to the weights. Raises ConfigError."""
    if transformer_directory(directory) != directory:
        raise ConfigError(
            f"weights cannot replace those of source={directory}, which are in the "
            "sub-directory that modules.json names; put model.safetensors there and leave weights out"
        )
    files = [fetch_weights(one, cache_dir) for one in weights]
    label = hashlib.sha256(str(directory).encode()).hexdigest()[:16]
    own = weights[0].sha256 if len(weights) == 1 else _sha256_of_all(weights)
    joined = cache_dir / f"{own[:16]}-{label}"
    wanted = {path.name: path for path in directory.iterdir() if not _is_weights(path)}
    with FileLock(cache_dir / f"{joined.name}.lock"):
        wanted |= _named(weights, files, cache_dir / f"{own}.index.json")
        joined.mkdir(exist_ok=True)
        for link in joined.iterdir():
            if wanted.get(link.name) != link.readlink():
                link.unlink()
        for name, path in wanted.items():
            if not (joined / name).is_symlink():
                (joined / name).symlink_to(path)
    return joined


def _sha256_of_all(weights: Sequence[RemoteWeights]) -> str:
    return hashlib.sha256("".join(one.sha256 for one in weights).encode()).hexdigest()


def _named(weights: Sequence[RemoteWeights], files: list[Path], index: Path) -> dict[str, Path]:
    """The weights' files by the names that a model's directory has; of several, `index` says what is in which."""
    if len(files) == 1:
        return {"model.safetensors": files[0]}
    names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    urls: dict[str, str] = {}
    weight_map: dict[str, str] = {}
    for one, file, name in zip(weights, files, names, strict=True):
        for tensor in read_safetensors_header(file):
            if tensor in urls:
                raise ConfigError(
                    f"weights: the tensor {tensor[:200]} is in {urls[tensor]} and in {one.url}; give the files of one "
                    "model, each once"
                )
            urls[tensor], weight_map[tensor] = one.url, name
    part = index.with_suffix(".part")
    part.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    part.replace(index)
    return {**dict(zip(names, files, strict=True)), "model.safetensors.index.json": index}


def _is_weights(path: Path) -> bool:
    return path.suffix == ".safetensors" or path.name.endswith(".safetensors.index.json") or path.name.startswith(".")


class _Connection(http.client.HTTPSConnection):
    """Connects to an address that was checked, and verifies the certificate of the name."""

    def __init__(self, host: str, port: int, address: str) -> None:
        self._context_of_name = ssl.create_default_context()
        super().__init__(host, port, timeout=_TIMEOUT_S, context=self._context_of_name)
        self._address = address

    def connect(self) -> None:
        """Connect to the address."""
        plain = socket.create_connection((self._address, self.port), _TIMEOUT_S)
        try:
            self.sock = self._context_of_name.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def _fetch(weights: RemoteWeights, path: Path) -> None:
    url = weights.url
    for _ in range(_MAX_REDIRECTS + 1):
        problem = weights_url_problem(url)
        if problem is not None:
            raise ConfigError(f"weights.url={url[:200]} {problem}")
        parts = urlsplit(url)
        try:
            location = _fetch_from(parts, weights, path)
        except (http.client.HTTPException, ssl.SSLError) as error:
            told = error.reason if isinstance(error, ssl.SSLError) else error
            raise ConfigError(
                f"weights.url={url[:200]} could not be downloaded ({type(error).__name__}: {told}); correct the URL"
            ) from error
        if location is None:
            return
        url = _redirected(url, location)
    raise ConfigError(f"weights.url={weights.url} is redirected more than {_MAX_REDIRECTS} times; give the last URL")


def _redirected(url: str, location: str) -> str:
    target = urljoin(url, location)
    before, after = urlsplit(url), urlsplit(target)
    if (after.scheme, after.hostname, after.port) != (before.scheme, before.hostname, before.port):
        where = f"{after.scheme}://{after.hostname}"[:100]
        raise ConfigError(f"weights.url={url} is redirected to another host, {where}; if you trust it, give its URL")
    return target


def _fetch_from(parts: SplitResult, weights: RemoteWeights, path: Path) -> str | None:
    """Download to `path`, or say where else the file is."""
    assert parts.hostname is not None
    port = parts.port or 443
    connection = _Connection(parts.hostname, port, _public_address(parts.hostname, port, weights.private_hosts))
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept-Encoding": "identity", "User-Agent": "rayshard"})
        answer = connection.getresponse()
        if answer.status in _REDIRECTS and answer.getheader("Location"):
            return answer.getheader("Location")
        if answer.status != 200:
            raise ConfigError(f"weights.url={parts.geturl()} answers {answer.status} {answer.reason}; correct it")
        _check_headers(parts, answer, path)
        _store(parts, answer, weights, path)
    finally:
        connection.close()
    return None


def _public_address(host: str, port: int, private_hosts: tuple[str, ...]) -> str:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise ConfigError(f"weights.url: the host {host} is not known; correct the URL") from error
    addresses = [str(entry[4][0]) for entry in found]
    if host not in private_hosts:
        for address in addresses:
            if not _is_public(address):
                raise ConfigError(
                    f"weights.url: {host} is the private address {address}; "
                    f"if that is meant, add weights.private_hosts: [{host}]"
                )
    return addresses[0]


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    inner = None if isinstance(ip, ipaddress.IPv4Address) else _inner_address(ip)
    return ip.is_global and not _is_for_sites(ip) and (inner is None or (inner.is_global and not inner.is_multicast))


def _is_for_sites(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """What `is_global` lets through all the same: multicast, and IPv6 that no packet of the internet goes to."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_multicast
    return ip.is_multicast or ip.is_site_local or any(ip in network for network in _NOT_ROUTED)


def _inner_address(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a packet to an IPv6 one ends at: where it is mapped, tunnelled or translated."""
    if any(ip in network for network in _LAST_32_BITS):
        return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.sixtofour or (ip.teredo[1] if ip.teredo is not None else None)


def _check_headers(parts: SplitResult, answer: http.client.HTTPResponse, path: Path) -> None:
    kind = (answer.getheader("Content-Type") or "").split(";")[0].strip().lower()
    if kind in ("text/html", "application/xhtml+xml"):
        raise ConfigError(f"weights.url={parts.geturl()} answers a page ({kind}), not a file; give the file's own URL")
    encoding = answer.getheader("Content-Encoding") or "identity"
    if encoding != "identity":
        raise ConfigError(f"weights.url={parts.geturl()} answers with Content-Encoding {encoding[:20]}; serve the file")
    free = shutil.disk_usage(path.parent).free - _SPARE_BYTES
    if answer.length is not None and answer.length > free:
        raise ConfigError(f"weights.url: {answer.length} bytes do not fit on the disk of {path.parent}; make room")


def _store(parts: SplitResult, answer: http.client.HTTPResponse, weights: RemoteWeights, path: Path) -> None:
    digest, num_bytes, num_expected = hashlib.sha256(), 0, answer.length
    told_s = time.monotonic()
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            while piece := answer.read(_PIECE_BYTES):
                if num_bytes == 0:
                    _check_beginning(parts, piece, num_expected)
                digest.update(piece)
                file.write(piece)
                num_bytes += len(piece)
                if time.monotonic() - told_s > _PROGRESS_S:
                    told_s = time.monotonic()
                    _tell_progress(parts, num_bytes, num_expected)
        if num_expected is not None and num_bytes != num_expected:
            raise ConfigError(
                f"weights.url={parts.geturl()} ended after {num_bytes} of {num_expected} bytes; try again"
            )
        if digest.hexdigest() != weights.sha256:
            raise ConfigError(
                f"weights.sha256={weights.sha256} is not that of {parts.geturl()}, which is {digest.hexdigest()}; "
                "if the file is the one you mean, correct it"
            )
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    logger.info("weights downloaded url=%s bytes=%d", parts.geturl(), num_bytes)


def _check_beginning(parts: SplitResult, piece: bytes, num_expected: int | None) -> None:
    """A safetensors file begins with its header's length, then the header: anything else is not read to its end."""
    header_bytes = int.from_bytes(piece[:8], "little")
    is_possible = len(piece) > 8 and 2 <= header_bytes <= min(_MAX_HEADER_BYTES, (num_expected or 2**62) - 8)
    if not is_possible or piece[8:9] != b"{":
        shown = json.dumps(piece[:16].decode("latin-1"))
        raise ConfigError(f"weights.url={parts.geturl()} is not a safetensors file, it begins with {shown}; convert it")


def _tell_progress(parts: SplitResult, num_bytes: int, num_expected: int | None) -> None:
    share = f" of {num_expected / 1e6:.0f}" if num_expected is not None else ""
    logger.info("downloading weights host=%s done=%.0f%s MB", parts.hostname, num_bytes / 1e6, share)
