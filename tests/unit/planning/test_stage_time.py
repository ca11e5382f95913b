"""How long stages take: windows, links, what shards of a node share."""

from dataclasses import fields, replace

import pytest

from serve_app.checkpoints.model_spec import ModelSpec, read_model_spec
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile, load_profiles
from serve_app.planning.memory_plan import plan_memory
from serve_app.planning.planner import weigh_as_served
from serve_app.planning.stage_time import Batch, StageTimes, StepTime
from tests.published_models import write_published


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    return read_model_spec(write_published("llama-3.1-8B", tmp_path_factory.mktemp("models") / "llama"))


def times(
    spec: ModelSpec, batch: Batch, profile: DeviceProfile, is_full: bool = False, *, split: dict[str, int] | None = None
) -> list[StepTime]:
    device = {} if profile.type == "cpu" else {"device": {"type": "cuda"}}
    config = ModelConfig.model_validate(
        {"name": "a", "source": "b", "max_model_len": 65536} | device | {"parallel": split or {}}
    )
    memory = plan_memory(spec, config, weigh_as_served(spec, config), profile, profile.memory or 2**36)
    return StageTimes(spec, config, profile, memory).of(batch, is_full=is_full)


def test_windowed_layers_look_back_no_further_than_their_window(spec: ModelSpec) -> None:
    h100 = load_profiles()["h100"]
    windowed = replace(spec, sliding_window=1024, windowed_layers=frozenset(range(0, 32, 2)))
    (whole,), (half,) = (times(one, Batch(1, 1, 32_768), h100) for one in (spec, windowed))
    token_bytes = 2 * 8 * 128 * 2
    assert (whole.read_s - half.read_s) * h100.read_rate == pytest.approx(16 * (32_768 - 1024) * token_bytes, rel=1e-6)


def test_measured_attention_stands_for_bandwidth_and_rate(spec: ModelSpec) -> None:
    cpu = load_profiles()["cpu"]
    measured = cpu.model_copy(update={"attention_s_per_gb": {"bfloat16": {1: 0.5, 4: 1.5, 400: 100.0}}})
    gb = 32 * 2 * 8 * 128 * 2 / 1e9  # of a token, whose keys meet four queries each

    def attention_s(num_tokens: int, num_sequences: int) -> StepTime:
        far, near = (times(spec, Batch(num_tokens, num_sequences, count), measured)[0] for count in (1000, 0))
        return StepTime(*(getattr(far, name) - getattr(near, name) for name in [one.name for one in fields(StepTime)]))

    decoding, prompt = attention_s(10, 10), attention_s(200, 1)
    assert decoding.read_s == pytest.approx(10 * 1000 * gb * 0.5)
    assert decoding.work_s == decoding.compute_s == pytest.approx(10 * 1000 * gb * 1.5)
    assert prompt.work_s == pytest.approx(1000 * gb * 200.0)


def test_stages_of_different_nodes_are_joined_by_the_network(spec: ModelSpec) -> None:
    h100 = load_profiles()["h100"].model_copy(update={"devices_per_node": 2})
    split = {"pipeline": 2, "tensor": 2}
    first, last = times(spec, Batch(2048, 1, 1024), h100, split=split)
    assert first.link_s - last.link_s == pytest.approx(1e-5 + 2048 * 4096 * 2 / h100.network_bandwidth)
    assert last.link_s == pytest.approx(2 * 16 * (1e-5 + 2048 * 4096 * 2 / h100.link_bandwidth))


def test_shards_on_one_cpu_share_it_when_they_work_at_the_same_time(spec: ModelSpec) -> None:
    cpu = load_profiles()["cpu"]
    split = {"pipeline": 2}
    alone, together = (times(spec, Batch(1, 1, 16), cpu, one, split=split)[0].read_s for one in (False, True))
    assert together == pytest.approx(2 * alone)
