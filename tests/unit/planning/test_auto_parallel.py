"""`parallel: auto`: the fewest devices that hold a model, the same wherever it is asked."""

from dataclasses import replace
from pathlib import Path

import pytest

from serve_app.config.engine import AutoParallelConfig, ParallelConfig
from serve_app.config.environment import Environment, read_environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.auto_parallel import with_parallel
from serve_app.planning.device_choice import Surroundings
from serve_app.planning.device_profiles import load_profiles
from tests.published_models import write_published

LAPTOP = Surroundings(load_profiles(), memory_bytes=16 * 2**30)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return replace(read_environment({}), kernel_times_file=tmp_path / "cache" / "kernels.json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for name in ("llama-3.1-8B", "llama-3.1-70B", "qwen3-235B"):
        write_published(name, root / name)
    return root


def config(name: str, **changes: object) -> ModelConfig:
    return ModelConfig.model_validate({"name": "chat", "source": name, "parallel": "auto"} | changes)


def split(models: Path, environment: Environment, given: ModelConfig, around: Surroundings = LAPTOP) -> tuple[int, int]:
    parallel = with_parallel(given, models, environment, around).parallel
    assert type(parallel) is ParallelConfig
    return parallel.pipeline, parallel.tensor


def test_a_laptop_has_one_shard(environment: Environment) -> None:
    demo = Path(__file__).parents[3] / "examples" / "demo_model"
    assert split(demo, environment, config("model")) == (1, 1)


@pytest.mark.parametrize(
    ("name", "device", "changes", "expected"),
    [
        ("llama-3.1-8B", "H100", {}, (1, 1)),
        ("llama-3.1-8B", "L4", {"max_model_len": 8192}, (1, 1)),
        ("llama-3.1-8B", "L4", {}, (1, 2)),  # for one sequence of 131072 tokens
        ("llama-3.1-8B", "L4", {"engine": {"kv_cache_bytes": "8GiB"}}, (1, 2)),  # on each shard
        ("llama-3.1-70B", "H100", {"max_model_len": 8192}, (1, 2)),
        ("llama-3.1-70B", "H100", {"max_model_len": 8192, "quantization": {"scheme": "int8"}}, (1, 2)),
        ("llama-3.1-70B", "H200", {"max_model_len": 8192, "quantization": {"scheme": "int8"}}, (1, 1)),
        ("llama-3.1-70B", "L4", {"max_model_len": 8192}, (1, 8)),
        ("qwen3-235B", "A100-80G", {"max_model_len": 8192}, (7, 1)),
        ("qwen3-235B", "L4", {"max_model_len": 8192}, (3, 8)),  # two ranks hold each of 4 key-value heads
    ],
)
def test_the_fewest_gpus_are_taken_that_hold_the_wanted_cache(
    models: Path,
    environment: Environment,
    name: str,
    device: str,
    changes: dict[str, object],
    expected: tuple[int, int],
) -> None:
    given = config(name, device={"type": "cuda", "accelerator_type": device}, **changes)
    assert split(models, environment, given) == expected


def test_what_no_number_of_devices_holds_is_refused_with_the_way_out(models: Path, environment: Environment) -> None:
    with pytest.raises(ConfigError, match=r"parallel=auto: chat does not fit: .* of cpu; no split, int8 or") as error:
        split(models, environment, config("llama-3.1-70B"))
    assert error.value.field == "parallel"
    share = {"type": "cuda", "gpus_per_shard": 0.5, "accelerator_type": "L4"}
    with pytest.raises(ConfigError, match="parallel=auto: chat does not fit"):
        split(models, environment, config("llama-3.1-8B", device=share))


def test_a_gpu_that_is_not_named_is_that_of_this_machine(models: Path, environment: Environment) -> None:
    given = config("llama-3.1-70B", device={"type": "cuda"}, max_model_len=8192)
    with pytest.raises(ConfigError, match=r"parallel=auto: device.type=cuda does not say which GPU"):
        split(models, environment, given)
    assert split(models, environment, given, replace(LAPTOP, accelerator_type="H200")) == (1, 2)


def test_a_split_that_is_given_stays(models: Path, environment: Environment) -> None:
    given = config("nowhere", parallel={"pipeline": 3})
    assert with_parallel(given, models, environment, LAPTOP) is given


def test_only_models_that_generate_are_split_so() -> None:
    assert isinstance(config("a").parallel, AutoParallelConfig)
    with pytest.raises(ValueError, match="parallel=auto is for task=generate, not embed; write pipeline and tensor"):
        config("a", task="embed")
    with pytest.raises(ValueError, match="parallel"):
        config("a", parallel="automatic")
