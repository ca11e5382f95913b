"""The metrics of a copy follow from what it tells."""

from dataclasses import replace

from serve_app.metrics import families
from serve_app.metrics.of_copies import copy_readings
from serve_app.types.models import CopyCounts, CopyState, StageCounts, TimeCounts

COUNTS = CopyCounts(
    num_preemptions=3,
    num_rebuilds=1,
    queue=TimeCounts([1] * (len(families.QUEUE.bounds_s) + 1), 9.0),
    steps=TimeCounts(),
    stage_busy_s=6.0,
    stage_idle_s=2.0,
    num_control_bytes=10,
    num_token_bytes=20,
    stages=[StageCounts(7, 1.5), StageCounts(6, 2.5)],
)
STATE = CopyState("copy1", "draining", "", 2, 5, 16, 64, 100, 40, COUNTS, bubble=0.4)


def values(state: CopyState, *models: str) -> dict[tuple[str, ...], object]:
    return {(one.family.name, *one.labels): one.value for one in copy_readings(models, state)}


def test_every_number_has_its_family() -> None:
    found = values(STATE, "demo")
    at = ("demo", "copy1")
    assert found == {
        (families.REPLICAS.name, *at, "draining"): 1,
        (families.RUNNING.name, *at): 2,
        (families.WAITING.name, *at): 5,
        (families.KV_USAGE.name, *at): 0.75,
        (families.PREFIX_QUERIES.name, *at): 100,
        (families.PREFIX_HITS.name, *at): 40,
        (families.PREEMPTIONS.name, *at): 3,
        (families.QUEUE.name, *at): COUNTS.queue,
        (families.STEPS.name, *at): COUNTS.steps,
        (families.STAGE_BUSY.name, *at): 6.0,
        (families.STAGE_IDLE.name, *at): 2.0,
        (families.STAGE_COMPUTE.name, *at, "0"): 1.5,
        (families.STAGE_COMPUTE.name, *at, "1"): 2.5,
        (families.STAGE_STEPS.name, *at, "0"): 7,
        (families.STAGE_STEPS.name, *at, "1"): 6,
        (families.BUBBLE.name, *at): 0.4,
        (families.REBUILDS.name, *at): 1,
        (families.LINK_BYTES.name, "control", "copy1"): 10,
        (families.LINK_BYTES.name, "tokens", "copy1"): 20,
    }


def test_a_copy_without_cache_or_steps_divides_by_nothing() -> None:
    found = values(replace(STATE, num_blocks=0, num_free_blocks=0, counts=CopyCounts(), bubble=None), "demo")
    assert found[families.KV_USAGE.name, "demo", "copy1"] == 0
    assert found[families.BUBBLE.name, "demo", "copy1"] == 0


def test_models_that_share_a_copy_are_named_together() -> None:
    assert values(STATE, "a", "b")[families.RUNNING.name, "a,b", "copy1"] == 2
