"""The shipped ticket classifier: its data, and what it is worth on tickets that are phrased differently."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.training.csv_rows import read_csv
from serve_app.training.text_training import evaluate

EXAMPLE = Path(__file__).parents[3] / "examples" / "text_classifier"
_MAX_SHARED = 0.5  # of the words of a phrase and a held-out ticket


def words(text: str) -> set[str]:
    return set(re.findall(r"[a-z0-9']+", re.sub(r"\{\w+\}", "", text.lower())))


def test_the_shipped_model_knows_tickets_that_are_phrased_differently() -> None:
    rows = read_csv(EXAMPLE / "heldout.csv", "text", "label").rows
    assert len(rows) == 120
    assert evaluate(EXAMPLE / "model", rows) >= 0.9


def test_no_phrase_comes_near_to_a_held_out_ticket() -> None:
    held_out = [words(row.text) for row in read_csv(EXAMPLE / "heldout.csv", "text", "label").rows]
    for phrases in yaml.safe_load((EXAMPLE / "phrases.yaml").read_text()).values():
        for phrase in phrases:
            own = words(phrase)
            assert max(len(own & other) / len(own | other) for other in held_out) < _MAX_SHARED, phrase


@pytest.mark.process
def test_the_tickets_are_made_again_byte_by_byte(tmp_path: Path) -> None:
    made = tmp_path / "tickets.csv"
    subprocess.run([sys.executable, str(EXAMPLE / "make_tickets.py"), "--output", str(made)], check=True, timeout=60)
    assert made.read_bytes() == (EXAMPLE / "tickets.csv").read_bytes()
