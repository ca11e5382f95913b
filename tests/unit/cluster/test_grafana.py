"""The dashboard against Grafana's own schema, as its SDK has it: nothing in it is unknown there."""

import json
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest

from tests.unit.cluster.test_monitoring import dashboard

pytest.importorskip("grafana_foundation_sdk", reason="Grafana's types are not here; pip install grafana-foundation-sdk")
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard


def lost(board: dict[str, Any]) -> list[str]:
    """What the schema does not have, by its place."""
    register_default_plugins()
    known = json.loads(json.dumps(Dashboard.from_json(deepcopy(board)), cls=JSONEncoder))
    return list(differences(board, known, ""))


def differences(given: object, known: object, place: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for name, value in given.items():
            yield from differences(value, known.get(name), f"{place}.{name}")
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for index, (one, other) in enumerate(zip(given, known, strict=True)):
            yield from differences(one, other, f"{place}[{index}]")
    elif given != known:
        yield place


def test_grafana_knows_all_that_the_dashboard_says() -> None:
    assert lost(dashboard()) == []


@pytest.mark.parametrize(
    "place",
    [
        (),
        ("panels", 1),
        ("panels", 1, "gridPos"),
        ("panels", 1, "targets", 0),
        ("panels", 1, "fieldConfig", "defaults"),
        ("panels", 1, "fieldConfig", "defaults", "custom"),
        ("panels", 1, "options", "legend"),
        ("templating", "list", 1),
    ],
)
def test_a_slip_anywhere_would_be_found(place: tuple[str | int, ...]) -> None:
    board: Any = dashboard()
    at = board
    for key in place:
        at = at[key]
    at["tooltipp"] = "x"
    assert [one.rpartition(".")[2] for one in lost(board)] == ["tooltipp"]
