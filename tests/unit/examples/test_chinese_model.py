"""The Chinese tickets: what a model that is trained on them is worth on tickets that are phrased differently."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from serve_app.training.csv_rows import read_csv

EXAMPLE = Path(__file__).parents[3] / "examples" / "chinese_classifier"
_MAX_SHARED = 0.3  # of the pairs of characters of a phrase and a held-out ticket


def pairs(text: str) -> set[str]:
    letters = re.sub(r"\{\w+\}|\W", "", text)
    return {letters[place : place + 2] for place in range(len(letters) - 1)}


@pytest.mark.process
def test_a_model_trained_by_the_readme_knows_tickets_that_are_phrased_differently(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "serve_app.cli.main", "train", str(EXAMPLE / "tickets.csv"), str(tmp_path)]
    command += ["--held-out", str(EXAMPLE / "heldout.csv"), "--max-epochs", "12"]
    finished = subprocess.run(command, cwd=EXAMPLE.parents[1], capture_output=True, text=True, check=True, timeout=280)
    told = re.search(r"accuracy on 100 held-out rows (\S+)", finished.stdout)
    assert told is not None
    assert float(told[1]) >= 0.9


def test_no_phrase_comes_near_to_a_held_out_ticket() -> None:
    held_out = [pairs(row.text) for row in read_csv(EXAMPLE / "heldout.csv", "text", "label").rows]
    words = yaml.safe_load((EXAMPLE / "phrases.yaml").read_text(encoding="utf-8"))
    for label in ("配送", "账单", "登录", "退换"):
        for phrase in words[label]:
            own = pairs(phrase)
            assert max(len(own & other) / len(own | other) for other in held_out) < _MAX_SHARED, phrase


@pytest.mark.process
def test_the_tickets_are_made_again_byte_by_byte(tmp_path: Path) -> None:
    made = tmp_path / "tickets.csv"
    subprocess.run([sys.executable, str(EXAMPLE / "make_tickets.py"), "--output", str(made)], check=True, timeout=60)
    assert made.read_bytes() == (EXAMPLE / "tickets.csv").read_bytes()
