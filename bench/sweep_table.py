"""What a sweep over the architectures leaves: the records that work, and the table in docs/models.md."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from bench.derive_records import TABLE, write_table
from serve_app.architectures.decoders import DECODERS
from serve_app.architectures.encoders import ENCODERS

DOCS = Path(__file__).parents[1] / "docs" / "models.md"
_BEGIN, _END = "<!-- sweep -->\n", "<!-- end of sweep -->\n"
_DIFFERS = "what its class computes is not what our attention and its splits give"
_MOST_NAMES = 30
_WHOLE, _TWO_STAGES, _TWO_RANKS = (1, 1), (2, 1), (1, 2)


@dataclass(slots=True)
class Result:
    """What came of one type: by split, an empty text where it equals transformers, or what differs."""

    model_type: str
    by_split: dict[tuple[int, int], str] = field(default_factory=dict)
    refusal: str | None = None


def keep_what_works(results: list[Result]) -> None:
    """Refuse what differs whole or in two stages, do not cut what differs on two ranks; write table and docs."""
    table = json.loads(TABLE.read_text())
    records, refused = table["records"], table["refused"]
    for result in results:
        if result.model_type not in records:
            continue
        if result.by_split.get(_WHOLE) != "" or result.by_split.get(_TWO_STAGES) != "":
            del records[result.model_type]
            refused.setdefault(_DIFFERS, []).append(result.model_type)
        elif result.by_split.get(_TWO_RANKS) != "":
            records[result.model_type].pop("tensor_cut", None)
    write_table(records, {reason: sorted(names) for reason, names in refused.items()})
    served = DECODERS.keys() | records.keys() | ENCODERS.keys()
    text = DOCS.read_text()
    before, after = text.partition(_BEGIN)[0], text.partition(_END)[2]
    DOCS.write_text(
        before + _BEGIN + markdown([one for one in results if one.model_type in served], refused) + _END + after
    )


def markdown(results: list[Result], refused: dict[str, list[str]]) -> str:
    """Two tables: types served, with the splits that equal transformers; and why others are not."""
    lines = ["| type | whole | two stages | two ranks |", "| --- | --- | --- | --- |"]
    for result in sorted(results, key=lambda one: (one.model_type in ENCODERS, one.model_type)):
        kind = " (embeds)" if result.model_type in ENCODERS else ""
        cells = ["yes" if result.by_split.get(split) == "" else "no" for split in (_WHOLE, _TWO_STAGES, _TWO_RANKS)]
        lines.append(f"| {result.model_type}{kind} | {' | '.join(cells)} |")
    lines += ["", "| not served, because | types |", "| --- | --- |"]
    for reason, names in sorted(refused.items()):
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        lines.append(f"| {reason} | {', '.join(sorted(names)[:_MOST_NAMES])}{more} |")
    return "\n".join(lines) + "\n"
