"""Writes tickets.csv: about 1,500 labelled support tickets, put together from phrases. Run again, same bytes.

heldout.csv beside it is written by hand and phrased differently: no phrase here comes near to one of its tickets.
"""

import argparse
import csv
import itertools
import random
from pathlib import Path

import yaml

SEED = 20261124
ROWS_PER_LABEL = 250
EXAMPLE = Path(__file__).parent

OPENINGS = [
    "",
    "",
    "",
    "Hi, ",
    "Hello, ",
    "Dear support, ",
    "Good morning, ",
    "Hey there, ",
    "Please help: ",
    "Hi team, ",
    "Quick question: ",
    "To whom it may concern, ",
    "I am writing because ",
    "Second time I write: ",
    "Urgent! ",
]
CLOSINGS = [
    "",
    "",
    "",
    "",
    " Thanks.",
    " Thank you in advance.",
    " Please advise.",
    " Please get back to me soon.",
    " Regards",
    " I am waiting for an answer.",
    " What should I do?",
    " Can you look into it?",
    " This is really annoying.",
    " Cheers",
]
ITEMS = [
    "headphones",
    "jacket",
    "coffee machine",
    "phone case",
    "lamp",
    "keyboard",
    "backpack",
    "running shoes",
    "blender",
    "desk chair",
    "camera",
    "book",
    "tablet",
    "sweater",
    "toaster",
    "watch",
    "monitor",
    "bike helmet",
    "tent",
    "dress",
]
TIMES = [
    "yesterday",
    "last week",
    "two days ago",
    "on Monday",
    "this morning",
    "three weeks ago",
    "on Friday",
    "last month",
    "since the weekend",
    "today",
    "a few days ago",
    "on the 3rd",
    "since Tuesday",
    "earlier this month",
]
AMOUNTS = [
    "19.99",
    "45 euros",
    "12 dollars",
    "89.50",
    "130 euros",
    "7.49",
    "the full amount",
    "250 dollars",
    "60 pounds",
]
PAGES = [
    "checkout page",
    "settings screen",
    "search",
    "cart",
    "profile page",
    "mobile app",
    "order history",
    "start page",
    "wish list",
    "payment form",
    "filter menu",
    "desktop version",
]

PHRASES = yaml.safe_load((EXAMPLE / "phrases.yaml").read_text(encoding="utf-8"))  # by label


def make_rows(label: str, randomness: random.Random) -> list[tuple[str, str]]:
    """Different tickets of one label."""
    texts: dict[str, None] = {}
    for body in itertools.cycle(PHRASES[label]):
        filled = body.format(
            item=randomness.choice(ITEMS),
            time=randomness.choice(TIMES),
            amount=randomness.choice(AMOUNTS),
            page=randomness.choice(PAGES),
        )
        opening = randomness.choice(OPENINGS)
        sentence = filled if opening else filled[0].upper() + filled[1:]
        texts[f"{opening}{sentence}.{randomness.choice(CLOSINGS)}"] = None
        if len(texts) == ROWS_PER_LABEL:
            return [(text, label) for text in texts]
    raise AssertionError("cycle never ends")


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=EXAMPLE / "tickets.csv")
    randomness = random.Random(SEED)
    rows = [row for label in PHRASES for row in make_rows(label, randomness)]
    randomness.shuffle(rows)
    with parser.parse_args().output.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("text", "label"))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
