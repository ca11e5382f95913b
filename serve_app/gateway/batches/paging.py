"""Pages of a list that sorts by id."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from serve_app.errors import RequestError

ItemT = TypeVar("ItemT")


@dataclass(frozen=True, slots=True)
class Paging:
    """What a caller wants of a list. after: the id that the page before ended with, "": the first page."""

    limit: int
    after: str = ""
    is_ascending: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[ItemT]):
    """One page."""

    items: list[ItemT]
    has_more: bool


def paging_of(query: Mapping[str, str], default_limit: int, max_limit: int, *, has_order: bool) -> Paging:
    """Of a request's query. Raises RequestError."""
    given, order = query.get("limit", str(default_limit)), query.get("order", "desc")
    limit = int(given[:9]) if given.isascii() and given.isdecimal() else 0
    if not 1 <= limit <= max_limit:
        raise RequestError(f"limit={given[:40]} is not an integer from 1 to {max_limit}", field="limit")
    if order not in ("asc", "desc"):
        raise RequestError(f"order={order[:40]} is neither asc nor desc", field="order")
    if order == "asc" and not has_order:
        raise RequestError("order=asc is not for this list, which begins with the newest; leave it out", field="order")
    return Paging(limit, query.get("after", ""), order == "asc")


def page_of(names: Sequence[str], paging: Paging, load: Callable[[str], ItemT | None]) -> Page[ItemT]:
    """The page of names (the oldest first) that `load` has something for; None is passed over."""
    ordered = names if paging.is_ascending else names[::-1]
    items: list[ItemT] = []
    for name in ordered:
        if paging.after and (name <= paging.after if paging.is_ascending else name >= paging.after):
            continue
        item = load(name)
        if item is None:
            continue
        if len(items) == paging.limit:
            return Page(items, has_more=True)
        items.append(item)
    return Page(items, has_more=False)
