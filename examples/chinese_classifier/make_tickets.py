"""Writes tickets.csv: 600 labelled support tickets in Chinese, put together from phrases. Run again, same bytes.

heldout.csv beside it is written by hand and phrased differently: no phrase here comes near to one of its tickets.
"""

import argparse
import csv
import itertools
import random
from pathlib import Path

import yaml

SEED = 20261128
ROWS_PER_LABEL = 150
EXAMPLE = Path(__file__).parent
WORDS = yaml.safe_load((EXAMPLE / "phrases.yaml").read_text(encoding="utf-8"))
LABELS = ("配送", "账单", "登录", "退换")


def make_rows(label: str, randomness: random.Random) -> list[tuple[str, str]]:
    """Different tickets of one label."""
    texts: dict[str, None] = {}
    for body in itertools.cycle(WORDS[label]):
        filled = body.format(
            item=randomness.choice(WORDS["items"]),
            time=randomness.choice(WORDS["times"]),
            amount=randomness.choice(WORDS["amounts"]),
        )
        texts[f"{randomness.choice(WORDS['openings'])}{filled}{randomness.choice(WORDS['closings'])}"] = None
        if len(texts) == ROWS_PER_LABEL:
            return [(text, label) for text in texts]
    raise AssertionError("cycle never ends")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=EXAMPLE / "tickets.csv")
    randomness = random.Random(SEED)
    rows = [row for label in LABELS for row in make_rows(label, randomness)]
    randomness.shuffle(rows)
    with parser.parse_args().output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
