"""Curves of copies beside their load, and what counts as good ones."""

from pathlib import Path

import httpx

from bench.autoscale_live import (
    NUM_OUTPUTS,
    Load,
    Outcome,
    Phase,
    Sample,
    format_curves,
    format_phases,
    is_met,
    num_ready_copies,
)
from serve_app.config.gateway import GatewayConfig
from serve_app.errors import UnavailableError
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from tests.fakes import ScriptedBackend, save_model_dir, serving

LITTLE, MUCH, NONE = Phase("little", 1, 10.0), Phase("much", 4, 20.0), Phase("none", 0, 20.0)


def samples_of(copies: str, clients: str) -> list[Sample]:
    """One every five seconds."""
    pairs = zip(clients, copies, strict=True)
    return [Sample(5.0 * index, int(load), int(count)) for index, (load, count) in enumerate(pairs)]


def test_copies_that_can_answer_are_counted() -> None:
    lines = [
        "# TYPE rayshard_replicas gauge",
        'rayshard_replicas{model="m",copy="a",state="ready"} 1.0',
        'rayshard_replicas{model="m",copy="b",state="starting"} 1.0',
        'rayshard_replicas{model="m",copy="c",state="ready"} 1.0',
    ]
    assert num_ready_copies("\n".join(lines)) == 2
    assert num_ready_copies("") == 0


def test_both_curves_have_a_digit_for_each_column() -> None:
    assert format_curves(samples_of("11233100012", "11444110022"), column_s=5.0).splitlines() == [
        "```",
        "seconds  0         50",
        "clients  11444110022",
        "copies   11233100012",
        "```",
    ]


def test_a_phase_has_its_own_samples_and_failures() -> None:
    outcomes = [
        Outcome(LITTLE, 10.0, [0.5, 0.1, 0.2]),
        Outcome(MUCH, 20.0, [2.0], ["503"]),
        Outcome(NONE, 19.0),
    ]
    rows = format_phases(outcomes, samples_of("1112322110", "1144440000")).splitlines()[2:]
    assert rows == [
        "| little | 1 | 10 | 3 | 0 | 0.20 | 0.50 | 1 → 1, at most 1 |",
        "| much | 4 | 20 | 2 | 1 | 2.00 | 2.00 | 1 → 2, at most 3 |",
        "| none | 0 | 19 | 0 | 0 | - | - | 2 → 0, at most 2 |",
    ]


def test_good_is_up_down_to_none_and_from_none_without_a_failure() -> None:
    good = samples_of("123310012", "144411022")
    assert is_met([Outcome(MUCH, 1.0, [0.1])], good)
    assert not is_met([Outcome(MUCH, 1.0, [0.1], ["500"])], good)
    for copies in ("111110012", "123311112", "123310000"):
        assert not is_met([], samples_of(copies, "144411022"))


async def test_clients_ask_until_their_time_is_over_and_what_fails_is_told(tmp_path: Path) -> None:
    backend = ScriptedBackend(save_model_dir(tmp_path / "model"), name="bench")
    app = build_http_app(DataPlane(backend, GatewayConfig(), "g"))
    async with serving(app) as url, httpx.AsyncClient(base_url=url, timeout=20) as client:
        load = Load(client)
        (asked,) = await load.run([Phase("much", 2, 0.3)])
        assert len(asked.first_s) >= 2
        assert asked.failures == []
        assert all(request.params.max_tokens == NUM_OUTPUTS for request in backend.requests)
        assert [one.num_copies for one in load.samples][:1] == [1]
        backend.error = UnavailableError("no copy is up")
        (failed,) = await load.run([Phase("much", 1, 0.05)])
    assert failed.first_s == []
    assert failed.failures
