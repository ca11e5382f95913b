"""Keep the score table of the model card equal to scores.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TABLE_START, TABLE_END = "<!-- scores -->\n", "<!-- /scores -->\n"


def main() -> None:
    """Rewrite the table in README.md."""
    card = HERE / "README.md"
    records = json.loads((HERE / "scores.json").read_text())
    card.write_text(replace_table(card.read_text(), score_table(records)))


def add_record(path: Path, source: str, record: Mapping[str, Any]) -> None:
    """Set one source's scores in a score file, which need not exist yet."""
    records = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(records | {source: record}, indent=2) + "\n")


def score_table(records: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table: a line per task and form, a column per source, exact answers in percent."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for source, record in records.items():
        for score in record["scores"]:
            percent = 100 * score["num_exact"] / score["num_inputs"]
            cells.setdefault((score["task"], score["form"]), {})[source] = f"{percent:.1f} %"
    lines = [table_line(["task", "form", *records]), table_line(["---", "---", *["---:" for _ in records]])]
    for (task, form), by_source in cells.items():
        lines.append(table_line([task, form, *[by_source.get(source, "") for source in records]]))
    return "".join(lines)


def table_line(cells: Sequence[str]) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(cells)} |\n"


def replace_table(card: str, table: str) -> str:
    """The card with its score table exchanged."""
    head, rest = card.split(TABLE_START)
    return f"{head}{TABLE_START}{table}{TABLE_END}{rest.split(TABLE_END)[1]}"


if __name__ == "__main__":
    main()
