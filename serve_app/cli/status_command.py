"""`rayshard status`: applications, their states, copies and queues, as a table or as JSON."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from serve_app.cli.cluster_status import ApplicationStatus, ClusterStatus, ModelStatus, read_status
from serve_app.cli.ray_dashboard import Dashboard, read_body

_HEAD = ("application", "state", "copies", "model", "is", "running", "waiting", "bubble")


def show_status(cluster: Dashboard, *, as_json: bool) -> int:
    """Print the status of a cluster; gives the exit status. Raises DashboardError when it cannot be asked."""
    status = read_status(cluster.serve_view(), cluster.url, read_body)
    if as_json:
        print(msgspec.json.format(msgspec.json.encode(status), indent=2).decode())
    else:
        print(status_text(status))
    return 0


def status_text(status: ClusterStatus) -> str:
    """A table of the applications and their models, and what is wrong with them."""
    if not status.applications:
        return f"no application is deployed at {status.dashboard}"
    rows = [row for one in status.applications for row in _rows(one)]
    lines = _table([_HEAD, *rows])
    where = "" if status.gateway is None else f" at {status.gateway}"
    lines.append(f"Gateway{where}: {status.health}" + (f": {status.detail}" if status.detail else ""))
    lines += [f"{one.name}: {one.detail}" for one in status.applications if one.detail]
    return "\n".join(lines)


def _rows(application: ApplicationStatus) -> list[tuple[str, ...]]:
    own = (application.name, application.state, f"{application.num_running} of {application.num_wanted}")
    models = [_cells(model) for model in application.models] or [("", "", "", "", "")]
    return [(*(own if number == 0 else ("", "", "")), *cells) for number, cells in enumerate(models)]


def _cells(model: ModelStatus) -> tuple[str, ...]:
    states = Counter(copy.state for copy in model.copies)
    shown = ", ".join(f"{count} {state}" for state, count in states.items())
    running = sum(copy.num_running for copy in model.copies)
    waiting = sum(copy.num_waiting for copy in model.copies)
    bubbles = [copy.bubble for copy in model.copies if copy.bubble is not None]
    bubble = f"{sum(bubbles) / len(bubbles):.0%}" if bubbles else ""
    return model.name, shown or "no copy", str(running), str(waiting), bubble


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
