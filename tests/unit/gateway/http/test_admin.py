"""`GET /v1/admin/plan` of a Gateway on a real socket: what is shown of which copies, and to whom."""

from pathlib import Path

import httpx
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.gateway.key_file import new_key
from serve_app.types.plans import (
    CopyAccount,
    MeasuredBytes,
    MemoryTaken,
    PredictedBytes,
    Rates,
    SeenRates,
    ShardAccount,
)
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving

PATH = "/v1/admin/plan"
SHARDS = [
    ShardAccount(0, 0, (0, 2), PredictedBytes(10, 20, 3, 4, 37), MeasuredBytes.of(11, MemoryTaken(20, 40))),
    ShardAccount(1, 0, (2, 4), PredictedBytes(12, 20, 5, 4, 41), None),
]
ACCOUNT = CopyAccount(
    "tiny", "replica-1", "cpu", SHARDS, Rates(64, 900.0, 0.1, 30.0, 4, 80.0, "memory"), SeenRates(None, 60.5, 2.5)
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model_dir(tmp_path_factory.mktemp("model"))


async def answer_of(backend: ScriptedBackend, config: GatewayConfig, key: str | None = None) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    app = build_http_app(DataPlane(backend, config))
    async with serving(app) as url, httpx.AsyncClient(verify=NO_TLS, base_url=url, headers=headers) as client:
        return await client.get(PATH)


async def test_what_was_measured_stands_beside_what_was_predicted(model_dir: Path) -> None:
    answer = await answer_of(ScriptedBackend(model_dir, copy_accounts=[ACCOUNT]), GatewayConfig())
    assert answer.status_code == 200
    (copy,) = answer.json()["models"]["tiny"]
    assert "silent" not in answer.json()
    assert (copy["replica_id"], copy["device"], copy["notes"]) == ("replica-1", "cpu", [])
    first, last = copy["shards"]
    assert (first["stage"], first["rank"], first["layers"]) == (0, 0, [0, 2])
    assert first["predicted"]["total_bytes"] == 37
    assert first["measured"] == {
        "weights_bytes": 11,
        "kv_cache_bytes": 20,
        "process_bytes": 40,
        "device_bytes": None,
        "total_bytes": 40,
    }
    assert last["measured"] is None
    assert copy["predicted"]["total_decode_tokens_per_s"] == 80.0
    assert copy["measured"] == {
        "prefill_tokens_per_s": None,
        "decode_tokens_per_s": 60.5,
        "decode_sequences": 2.5,
        "entries_per_s": None,
    }


async def test_copies_that_do_not_answer_are_named(model_dir: Path) -> None:
    answer = await answer_of(ScriptedBackend(model_dir), GatewayConfig())
    assert answer.json() == {"models": {"tiny": []}, "silent": {"tiny": ["replica-1"]}}


@pytest.mark.parametrize(("options", "status"), [("name=ops admin", 200), ("name=web", 403), (None, 401)])
async def test_where_keys_are_used_it_is_for_administrators(
    model_dir: Path, tmp_path: Path, options: str | None, status: int
) -> None:
    key, line = new_key(options or "name=other admin")
    (tmp_path / "keys.txt").write_text(line + "\n")
    backend = ScriptedBackend(model_dir, copy_accounts=[ACCOUNT])
    config = GatewayConfig(api_keys_file=str(tmp_path / "keys.txt"))
    answer = await answer_of(backend, config, None if options is None else key)
    assert answer.status_code == status
    assert status != 403 or "--admin" in answer.text


def test_of_a_gpu_what_is_held_there_counts() -> None:
    assert MeasuredBytes.of(5, MemoryTaken(1, 300, 70)).total_bytes == 70
    assert MeasuredBytes.of(5, None) == MeasuredBytes(5)
