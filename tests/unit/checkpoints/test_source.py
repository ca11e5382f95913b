"""From `source` to a directory; the hub is a local server that speaks the few calls a snapshot needs."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from serve_app.checkpoints.source import find_snapshot, is_hub_id, local_directory, resolve_source
from serve_app.config.environment import Environment
from serve_app.errors import ConfigError
from serve_app.types.models import ModelSource
from tests.fake_hub import COMMIT, FILES, FakeHub, serve_hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve_hub(dict(FILES)) as server:
        yield server


def environment(cache_dir: Path, endpoint: str | None = None, is_offline: bool = False) -> Environment:
    return Environment(
        hub_cache_dir=cache_dir,
        is_hub_offline=is_offline,
        hub_endpoint=endpoint,
        weights_cache_dir=cache_dir / "weights",
        kernel_times_file=cache_dir / "kernels",
        compiled_dir=cache_dir / "compiled",
    )


def test_a_relative_path_is_made_absolute_from_the_base(tmp_path: Path) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    found = resolve_source("models/llama", None, tmp_path, environment(tmp_path))
    assert found == (tmp_path / "models" / "llama").resolve()
    assert resolve_source(str(found), None, Path("/"), environment(tmp_path)) == found
    assert resolve_source("./llama/../llama", None, tmp_path / "models", environment(tmp_path)) == found


def test_a_missing_directory_names_its_nearest_parent_and_a_likely_name(tmp_path: Path) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        resolve_source("models/lama", None, tmp_path, environment(tmp_path))
    assert error.value.message == (
        f"source=models/lama is not a directory: {tmp_path / 'models'} exists, but has no 'lama'; "
        f"did you mean {tmp_path / 'models' / 'llama'}?"
    )
    with pytest.raises(ConfigError, match=r"exists, but has no 'deep'; give an existing directory, or a hub id"):
        resolve_source("./models/llama/deep/er", None, tmp_path, environment(tmp_path))


@pytest.mark.parametrize(
    ("file", "expected"),
    [("model.gguf", "is a GGUF file, which is not served"), ("model.safetensors", "is a file; give its directory, /")],
)
def test_a_file_is_no_source(tmp_path: Path, file: str, expected: str) -> None:
    (tmp_path / file).write_bytes(b"")
    with pytest.raises(ConfigError, match=f"source=./{file} {expected}"):
        resolve_source(f"./{file}", None, tmp_path, environment(tmp_path))


def test_a_revision_of_a_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"revision=main has no effect on the directory source=\.; remove it"):
        resolve_source(".", "main", tmp_path, environment(tmp_path))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/model-7b", True),
        ("model", False),
        ("./org/model", False),
        ("/org/model", False),
        ("org/model/x", False),
        ("here/model", False),
        ("http://org/model", False),
        ("../model", False),
        ("~/model", False),
    ],
)
def test_a_hub_id_is_org_and_name_and_no_path_that_begins_here(tmp_path: Path, source: str, expected: bool) -> None:
    (tmp_path / "here").mkdir()
    assert is_hub_id(source, tmp_path) is expected


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_a_hub_model_is_downloaded_at_its_commit_without_pickle_or_code(
    tmp_path: Path, hub: FakeHub, revision: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="serve_app")
    found = resolve_source("org/model", revision, tmp_path, environment(tmp_path / "cache", hub.endpoint))
    assert found.name == COMMIT
    assert sorted(path.name for path in found.iterdir()) == ["chat_template.jinja", "config.json", "model.safetensors"]
    assert (found / "model.safetensors").read_bytes() == b"weights"
    assert f"commit={COMMIT}" in caplog.text


def test_a_downloaded_model_is_found_again_offline(tmp_path: Path, hub: FakeHub) -> None:
    cache_dir = tmp_path / "cache"
    assert find_snapshot("org/model", None, environment(cache_dir, hub.endpoint)) is None
    assert hub.requests == []
    found = resolve_source("org/model", None, tmp_path, environment(cache_dir, hub.endpoint))
    num_requests = len(hub.requests)
    assert resolve_source("org/model", None, tmp_path, environment(cache_dir, hub.endpoint, is_offline=True)) == found
    assert find_snapshot("org/model", None, environment(cache_dir, hub.endpoint)) == found
    assert len(hub.requests) == num_requests


def test_what_an_ended_download_has_left_is_not_taken_for_the_model(tmp_path: Path, hub: FakeHub) -> None:
    hub.files = {"config.json": b"{}"} | {f"model-0000{n}-of-00002.safetensors": b"weights" for n in (1, 2)}
    env, offline = (environment(tmp_path / "cache", hub.endpoint, is_offline=off) for off in (False, True))
    found = resolve_source("org/model", None, tmp_path, env)
    (found / "model-00002-of-00002.safetensors").unlink()
    for mark in (tmp_path / "cache" / ".locks" / "rayshard").glob("*.all"):
        mark.unlink()
    pinned = ModelSource(str(found), "org/model", COMMIT)
    assert local_directory(pinned, env) == found
    assert len(list(found.glob("*.safetensors"))) == 2
    num_requests = len(hub.requests)
    assert local_directory(pinned, env) == local_directory(pinned, offline) == found  # known to be whole
    assert len(hub.requests) == num_requests


def modules_json(*modules: tuple[str, str]) -> bytes:
    entries = [{"type": f"sentence_transformers.models.{kind}", "path": path} for kind, path in modules]
    return json.dumps(entries).encode()


def files_below(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def test_the_directories_of_modules_come_with_a_hub_model(tmp_path: Path, hub: FakeHub) -> None:
    hub.files |= {
        "modules.json": modules_json(("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense")),
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"dense",
        "2_Dense/pytorch_model.bin": b"pickle",
        "onnx/model.safetensors": b"the weights in another format",
    }
    env = environment(tmp_path / "cache", hub.endpoint)
    found = resolve_source("org/model", None, tmp_path, env)
    modules = ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    assert files_below(found) == [*modules, "chat_template.jinja", "config.json", "model.safetensors", "modules.json"]
    assert find_snapshot("org/model", None, env) == found
    (found / "1_Pooling" / "config.json").unlink()  # as an older version of ours had fetched it
    assert find_snapshot("org/model", None, env) is None
    with pytest.raises(ConfigError, match=r"source=org/model: 1_Pooling, which modules\.json names, is not on this"):
        resolve_source("org/model", None, tmp_path, environment(tmp_path / "cache", hub.endpoint, is_offline=True))
    pinned = ModelSource(str(found), "org/model", COMMIT)
    assert local_directory(pinned, env) == found
    assert (found / "1_Pooling" / "config.json").is_file()


def test_a_transformer_in_a_directory_of_its_own_comes_with_its_weights(tmp_path: Path, hub: FakeHub) -> None:
    del hub.files["model.safetensors"], hub.files["original/model.safetensors"]
    hub.files |= {
        "modules.json": modules_json(("Transformer", "0_Transformer"), ("Pooling", "1_Pooling")),
        "0_Transformer/config.json": b"{}",
        "0_Transformer/tokenizer.json": b"{}",
        "0_Transformer/model.safetensors": b"weights",
        "0_Transformer/old/model.safetensors": b"other weights",
        "1_Pooling/config.json": b"{}",
    }
    env = environment(tmp_path / "cache", hub.endpoint)
    text = local_directory(ModelSource("/not/here", "org/model", COMMIT), env, needs_weights=False)
    assert files_below(text / "0_Transformer") == ["config.json", "tokenizer.json"]
    found = resolve_source("org/model", None, tmp_path, env)
    assert files_below(found / "0_Transformer") == ["config.json", "model.safetensors", "tokenizer.json"]


def test_processes_of_a_node_download_one_after_another(tmp_path: Path, hub: FakeHub) -> None:
    cache_dir = tmp_path / "cache"
    lock = cache_dir / ".locks" / "rayshard" / "org--model.lock"
    lock.parent.mkdir(parents=True)
    found: list[Path] = []

    def resolve() -> None:
        found.append(resolve_source("org/model", None, tmp_path, environment(cache_dir, hub.endpoint)))

    threads = [threading.Thread(target=resolve) for _ in range(3)]
    with FileLock(lock):
        for thread in threads:
            thread.start()
        threads[0].join(timeout=0.3)
        assert hub.requests == []
    for thread in threads:
        thread.join()
    assert [path.name for path in found] == [COMMIT] * 3
    weights = [request for request in hub.requests if request.startswith("GET") and "model.safetensors" in request]
    assert len(weights) == 1


@pytest.mark.parametrize(
    ("source", "revision", "expected"),
    [
        ("org/none", None, "source=org/none is neither a directory nor a model on the hub that you may read; correct"),
        ("gated/model", None, "source=gated/model is gated; accept its terms on the hub and log in"),
        ("org/model", "v9", "revision=v9 is not a branch, tag or commit of source=org/model; correct it"),
        ("org/a--b", None, "source=org/a--b is neither a directory nor a model on the hub"),
    ],
)
def test_what_the_hub_refuses_is_named(
    tmp_path: Path, hub: FakeHub, source: str, revision: str | None, expected: str
) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_source(source, revision, tmp_path, environment(tmp_path / "cache", hub.endpoint))
    assert error.value.message.startswith(expected)


def test_a_hub_that_is_out_of_reach_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"source=org/model is not on this node and the hub did not answer; download"):
        resolve_source("org/model", None, tmp_path, environment(tmp_path, "http://127.0.0.1:9"))
    with pytest.raises(
        ConfigError, match=r"not on this node and the hub is switched off by HF_HUB_OFFLINE; download it"
    ):
        resolve_source("org/model", None, tmp_path, environment(tmp_path, "http://127.0.0.1:9", is_offline=True))
