"""What `rayshard serve` and its child tell each other."""

import pytest

from serve_app.cli.serve_events import (
    ApplicationState,
    DashboardUp,
    Drained,
    Draining,
    Event,
    Phase,
    RayLost,
    event_line,
    read_event,
)


@pytest.mark.parametrize(
    "event",
    [
        Phase("starting Ray Serve", is_ray_up=True),
        DashboardUp("http://127.0.0.1:8265"),
        Draining(3),
        Drained(0),
        RayLost("Ray's raylet (pid 7) ended with status -9"),
        ApplicationState("demo", "DEPLOY_FAILED", "Traceback\n\x1b[31mValueError: no such model"),
    ],
)
def test_an_event_is_one_line_that_is_read_back(event: Event) -> None:
    line = event_line(event)
    assert "\n" not in line
    assert read_event(line) == event


@pytest.mark.parametrize("line", ["", "INFO model ready", "rayshard serve: ", 'rayshard serve: {"type":"other"}'])
def test_another_line_is_not_an_event(line: str) -> None:
    assert read_event(line) is None
