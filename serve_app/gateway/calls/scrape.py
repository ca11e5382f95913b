"""What a Gateway replica's metrics stand at: its own, and those of the copies that have told it theirs."""

from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.metrics import families
from serve_app.metrics.of_copies import copy_readings
from serve_app.metrics.readings import Reading
from serve_app.types.models import CopyState


def gateway_readings(plane: DataPlane) -> list[Reading]:
    """What this replica alone can tell. Other replicas have metrics of their own under the same names."""
    report, at = plane.backend.health(), plane.metrics.gateway
    found = plane.metrics.readings()
    for model, copies in report.models.items():
        is_ready = model in report.asleep or any(copy.state == "ready" for copy in copies)
        found += [
            Reading(families.MODEL_READY, (at, model), int(is_ready)),
            Reading(families.RESUMES, (at, model), report.num_resumes.get(model, 0)),
        ]
        choices = report.num_choices.get(model, {})
        found += [Reading(families.COPY_CHOICES, (at, model, reason), count) for reason, count in choices.items()]
    found.append(Reading(families.LINK_BYTES, ("calls", at), report.num_call_bytes))
    return found


def all_readings(plane: DataPlane) -> list[Reading]:
    """The same, and what every copy of every model has told last, which is half a second old at most."""
    models: dict[str, list[str]] = {}  # by copy: several may share one
    states: dict[str, CopyState] = {}
    for model, copies in plane.backend.health().models.items():
        for copy in copies:
            models.setdefault(copy.replica_id, []).append(model)
            states[copy.replica_id] = copy
    return gateway_readings(plane) + [
        reading for replica_id, state in states.items() for reading in copy_readings(models[replica_id], state)
    ]
