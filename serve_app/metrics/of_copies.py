"""What a copy of a model tells of itself, as metrics."""

from collections.abc import Sequence

from serve_app.metrics import families
from serve_app.metrics.readings import Reading
from serve_app.types.models import CopyState


def copy_readings(models: Sequence[str], state: CopyState) -> list[Reading]:
    """Of one copy; several models that share it are named together, so that its numbers are there once."""
    at = (",".join(models), state.replica_id)
    counts = state.counts
    num_held_blocks = state.num_blocks - state.num_free_blocks
    return [
        Reading(families.REPLICAS, (*at, state.state), 1),
        Reading(families.RUNNING, at, state.num_running),
        Reading(families.WAITING, at, state.num_waiting),
        Reading(families.KV_USAGE, at, num_held_blocks / state.num_blocks if state.num_blocks else 0.0),
        Reading(families.PREFIX_QUERIES, at, state.num_prompt_tokens),
        Reading(families.PREFIX_HITS, at, state.num_cached_tokens),
        Reading(families.PREEMPTIONS, at, counts.num_preemptions),
        Reading(families.QUEUE, at, counts.queue),
        Reading(families.STEPS, at, counts.steps),
        Reading(families.STAGE_BUSY, at, counts.stage_busy_s),
        Reading(families.STAGE_IDLE, at, counts.stage_idle_s),
        *(Reading(families.STAGE_COMPUTE, (*at, str(stage)), one.busy_s) for stage, one in enumerate(counts.stages)),
        *(Reading(families.STAGE_STEPS, (*at, str(stage)), one.num_steps) for stage, one in enumerate(counts.stages)),
        Reading(families.BUBBLE, at, state.bubble or 0.0),
        Reading(families.REBUILDS, at, counts.num_rebuilds),
        Reading(families.LINK_BYTES, ("control", state.replica_id), counts.num_control_bytes),
        Reading(families.LINK_BYTES, ("tokens", state.replica_id), counts.num_token_bytes),
    ]
