"""`rayshard status`: applications, their states, copies and queues, as a table or as JSON."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from serve_app.cli.cluster_status import ApplicationStatus, ClusterStatus, ModelStatus, read_status
from serve_app.cli.ray_dashboard import Dashboard, DashboardError, read_body
from serve_app.types.models import CopyState

_HEAD = ("application", "state", "copies", "model", "is", "running", "waiting", "kv", "bubble")
_WAITS: dict[str, str] = {  # by CopyState.waits_for
    "kv_cache": "for room in the KV cache: raise engine.kv_cache_bytes, or run more copies",
    "sequences": "for one of engine.max_num_seqs places: raise it where the KV cache has room, or run more copies",
    "trial": "until it is known whether a request kills the shards",
    "step": "for the next step",
    "grammar": "for the shard that draws to compile a grammar",
}


def show_status(cluster: Dashboard, *, as_json: bool) -> int:
    """Print the status of a cluster; gives the exit status. Raises DashboardError when it cannot be asked."""
    view = cluster.serve_view()
    status = read_status(view, cluster.url, read_body, {} if view.is_placed else _rooms(cluster))
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        print(status_text(status))
    return 0


def _rooms(cluster: Dashboard) -> dict[str, str]:
    """Why copies have no place; nothing where the dashboard has Serve's part alone."""
    try:
        return cluster.rooms()
    except DashboardError:
        return {}


def status_text(status: ClusterStatus) -> str:
    """A table of the applications and their models, and what is wrong with them."""
    if not status.applications:
        return f"no application is deployed at {status.dashboard}"
    rows = [row for one in status.applications for row in _rows(one)]
    lines = _table([_HEAD, *rows])
    where = "" if status.gateway is None else f" at {status.gateway}"
    lines.append(f"Gateway{where}: {status.health}" + (f": {status.detail}" if status.detail else ""))
    lines += [f"{one.name}: {one.detail}" for one in status.applications if one.detail]
    lines += [line for one in status.applications for model in one.models for line in _reasons(model)]
    return "\n".join(lines)


def _rows(application: ApplicationStatus) -> list[tuple[str, ...]]:
    own = (application.name, application.state, f"{application.num_running} of {application.num_wanted}")
    models = [_cells(model) for model in application.models] or [("", "", "", "", "", "")]
    return [(*(own if number == 0 else ("", "", "")), *cells) for number, cells in enumerate(models)]


def _cells(model: ModelStatus) -> tuple[str, ...]:
    states = Counter(copy.state for copy in model.copies)
    shown = ", ".join(f"{count} {state}" for state, count in states.items())
    running = sum(copy.num_running for copy in model.copies)
    waiting = sum(copy.num_waiting for copy in model.copies)
    bubbles = [copy.bubble for copy in model.copies if copy.bubble is not None]
    bubble = f"{sum(bubbles) / len(bubbles):.0%}" if bubbles else ""
    stages = _stage_bubbles(model.copies)
    shown_bubble = f"{bubble} ({stages})" if stages else bubble
    return model.name, shown or "no copy", str(running), str(waiting), _kv_share(model.copies), shown_bubble


def _kv_share(copies: Sequence[CopyState]) -> str:
    """Of the KV cache, what sequences hold; empty where there is none."""
    num_blocks = sum(copy.num_blocks for copy in copies)
    return f"{1 - sum(copy.num_free_blocks for copy in copies) / num_blocks:.0%}" if num_blocks else ""


def _stage_bubbles(copies: Sequence[CopyState]) -> str:
    """The bubble of each stage, over the copies that know it; empty of a model on one stage."""
    known = [copy.stage_bubbles for copy in copies if len(copy.stage_bubbles) > 1 and None not in copy.stage_bubbles]
    if not known or len({len(one) for one in known}) > 1:
        return ""
    means = [sum(stage or 0.0 for stage in column) / len(known) for column in zip(*known, strict=True)]
    return ", ".join(f"{mean:.0%}" for mean in means)


def _reasons(model: ModelStatus) -> list[str]:
    """Why copies do not serve, and what requests wait for."""
    found = [f"{model.name}: a copy is {one.state}: {one.detail}" for one in model.copies if one.detail]
    waiting: Counter[str] = Counter()
    for one in model.copies:
        if one.waits_for:
            waiting[one.waits_for] += one.num_waiting
    return found + [f"{model.name}: {count} waiting {_WAITS[reason]}" for reason, count in waiting.items()]


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
