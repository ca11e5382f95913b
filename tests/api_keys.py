"""Files of API keys, and a Gateway that asks for one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving


def write_keys(path: Path, *options: str) -> list[str]:
    """A file with a key for each of these options; the keys."""
    made = [new_key(one) for one in options]
    path.write_text("# keys\n\n" + "".join(f"{line}\n" for _key, line in made))
    return [key for key, _line in made]


def bearer(key: str) -> dict[str, str]:
    """A request's headers."""
    return {"authorization": f"Bearer {key}"}


def metadata(key: str) -> list[tuple[str, str]]:
    """A gRPC call's."""
    return [("authorization", f"Bearer {key}")]


async def code_of(call: Any) -> str:
    """How a gRPC call has ended."""
    return str((await call.code()).name)


@dataclass
class GuardedGateway:
    """A Gateway with keys: of all models, of another one, and with limits of each kind."""

    client: httpx.AsyncClient
    backend: ScriptedBackend
    keys: list[str]
    plane: DataPlane


@asynccontextmanager
async def guarded_gateway(directory: Path) -> AsyncIterator[GuardedGateway]:
    """It runs while the context is open."""
    path = directory / "keys"
    options = ["name=all", "name=other models=other", "name=slow requests_per_minute=1", "name=one concurrency=1"]
    keys = write_keys(path, *options, "name=few tokens_per_minute=9", "name=some tokens_per_minute=60")
    backend = ScriptedBackend(save_model_dir(directory / "model"))
    plane = DataPlane(backend, GatewayConfig(api_keys_file=str(path)))
    async with serving(build_http_app(plane)) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url) as client:
        yield GuardedGateway(client, backend, keys, plane)
