"""Values between the steps of a graph: those of several inputs are joined for one call, and cut apart again."""

from collections.abc import Sequence
from dataclasses import replace

from serve_app.types.graphs import GraphValue


def num_entries(value: GraphValue) -> int:
    """Texts, label lists or items that a value holds."""
    return len(value.texts) + len(value.labels) + len(value.items)


def join(values: Sequence[GraphValue]) -> GraphValue:
    """The entries of several values of one kind, one after the other."""
    assert len({value.kind for value in values}) == 1, "check_graph lets one kind through"
    return replace(
        values[0],
        texts=[text for value in values for text in value.texts],
        labels=[label for value in values for label in value.labels],
        items=[item for value in values for item in value.items],
    )


def cut(joined: GraphValue, like: Sequence[GraphValue]) -> list[GraphValue]:
    """A value with one entry for each entry of `like`, as one value for each of them."""
    assert num_entries(joined) == sum(num_entries(value) for value in like)
    pieces, start = [], 0
    for value in like:
        part = slice(start, start + num_entries(value))
        pieces.append(
            replace(
                joined,
                is_list=value.is_list,
                texts=joined.texts[part],
                labels=joined.labels[part],
                items=joined.items[part],
            )
        )
        start = part.stop
    return pieces
