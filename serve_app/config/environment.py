"""The environment of the process."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve_app.config.server_variables import SHARD_SERVER_VARIABLE, WORKER_SERVER_VARIABLE
from serve_app.config.tracing import TracingSettings, read_tracing
from serve_app.errors import ConfigError

LOG_FORMAT_VARIABLE = "RAYSHARD_LOG_FORMAT"


@dataclass(frozen=True, slots=True)
class Environment:
    """What the project takes from environment variables."""

    hub_cache_dir: Path
    is_hub_offline: bool
    hub_endpoint: str | None  # None: the hub's own
    weights_cache_dir: Path
    kernel_times_file: Path  # what the kernels of linear layers take on this CPU
    compiled_dir: Path  # libraries that are compiled for this CPU
    cxx_compiler: str | None = None  # None: the first that is found
    openai_api_key: str | None = None  # sent to servers whose models are evaluated
    has_own_resources: bool = False  # Ray is told how many CPUs and GPUs there are
    max_visible_gpus: int | None = None  # None: all that there are
    shard_server: str | None = None  # the socket of the process that forks shards on CPU
    worker_server: str | None = None  # of the process that forks Ray's other workers
    log_format: str = "text"  # of our processes' log lines: text, json
    tracing: TracingSettings | None = None  # None: no request is traced

    @property
    def measured_devices_file(self) -> Path:
        """What `rayshard plan --calibrate` has found of this machine."""
        return self.kernel_times_file.parent / "devices.json"


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The environment of this process; `variables` stands in for it in tests. Raises ConfigError."""
    given = os.environ if variables is None else variables
    cache_dir = Path(given.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    home = cache_dir / "huggingface"
    hub_home = Path(given.get("HF_HOME") or home).expanduser()
    offline = {given.get("HF_HUB_OFFLINE", "").upper(), given.get("TRANSFORMERS_OFFLINE", "").upper()}
    return Environment(
        hub_cache_dir=Path(given.get("HF_HUB_CACHE") or hub_home / "hub").expanduser(),
        is_hub_offline=bool(offline & {"1", "ON", "YES", "TRUE"}),
        hub_endpoint=given.get("HF_ENDPOINT") or None,
        weights_cache_dir=cache_dir / "rayshard" / "weights",
        kernel_times_file=cache_dir / "rayshard" / "linear-kernels.json",
        compiled_dir=cache_dir / "rayshard" / "compiled",
        cxx_compiler=given.get("CXX") or None,
        openai_api_key=given.get("OPENAI_API_KEY") or None,
        has_own_resources=bool(given.get("RAY_OVERRIDE_RESOURCES")),
        max_visible_gpus=_num_devices(given.get("CUDA_VISIBLE_DEVICES")),
        shard_server=given.get(SHARD_SERVER_VARIABLE) or None,
        worker_server=given.get(WORKER_SERVER_VARIABLE) or None,
        log_format=_log_format(given.get(LOG_FORMAT_VARIABLE) or "text"),
        tracing=read_tracing(given),
    )


def add_variables(variables: Mapping[str, str]) -> None:
    """Set variables for what this process imports and starts from now on."""
    os.environ.update(variables)


def own_variables() -> dict[str, str]:
    """The environment that processes of this one have, as it is now."""
    return dict(os.environ)


def prepare_ray_client() -> bool:
    """Keep Ray from sending usage reports; whether no cluster is named, so that one must be started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def _log_format(asked: str) -> str:
    if asked not in ("text", "json"):
        raise ConfigError(f"{LOG_FORMAT_VARIABLE}={asked[:80]} is not a format; set it to text or json")
    return asked


def _num_devices(visible: str | None) -> int | None:
    """How many CUDA_VISIBLE_DEVICES names, counted as Ray does; "-1" is how people write none."""
    if visible is None:
        return None
    return 0 if visible in ("", "-1", "NoDevFiles") else len(visible.split(","))
