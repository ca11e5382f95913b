"""The table of docs/observability.md is that of the code."""

import re
from pathlib import Path

from serve_app.metrics import families

DOCUMENT = Path(__file__).parents[3] / "docs" / "observability.md"
ROW = re.compile(r"^\| `(rayshard_\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \|$", re.MULTILINE)


def test_every_family_is_documented_and_no_other() -> None:
    rows = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), text)
        for name, kind, labels, text in ROW.findall(DOCUMENT.read_text())
    ]
    assert rows == [(one.name, one.kind, one.labels, one.help) for one in families.ALL]


def test_names_say_what_they_are() -> None:
    for family in families.ALL:
        assert family.name.endswith("_total") == (family.kind == "counter")
        assert bool(family.bounds_s) == (family.kind == "histogram")
        assert list(family.bounds_s) == sorted(set(family.bounds_s))
        assert family.help.endswith(".")
