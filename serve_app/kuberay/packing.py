"""How many pods hold copies of models: first fit, the largest pieces first."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve_app.kuberay.demand import Copies

_ROUNDING = 1e-6  # of sums of shares


@dataclass(frozen=True, slots=True)
class Share:
    """The copies of one model, and the pieces of each that must not be split."""

    copies: Copies
    pieces: tuple[float, ...]  # in GPUs, or cores; the first has the Router beside it


@dataclass(frozen=True, slots=True)
class Pods:
    """Pods for the copies that there may be."""

    copies: Copies  # of the pods: at least, at first, at most
    num_answering: int  # of the first pods, those with a Router


def pods_for(shares: Sequence[Share], room: float, least: int) -> Pods:
    """Pods with `room` each; `least` is the smallest number of them. No piece is larger than `room`."""
    fewest = _pack([(share, share.copies.least) for share in shares], room)
    first = _pack([(share, share.copies.first) for share in shares], room)
    most = _pack([(share, share.copies.most) for share in shares], room)
    copies = Copies(*(max(one.num_pods, least) for one in (fewest, first, most)))
    return Pods(copies, max(first.num_answering, least))


@dataclass(frozen=True, slots=True)
class _Packed:
    num_pods: int
    num_answering: int


def _pack(counted: Sequence[tuple[Share, int]], room: float) -> _Packed:
    free: list[float] = []
    answering: set[int] = set()
    for share, number in sorted(counted, key=lambda one: -sum(one[0].pieces)):
        for _ in range(number):
            whole = sum(share.pieces)
            pod = _first_with(free, whole)  # Ray packs a copy into one node where it can
            for index, piece in enumerate(share.pieces):
                place = pod if pod is not None else _first_with(free, piece)
                if place is None:
                    free.append(room)
                    place = len(free) - 1
                    pod = place if whole <= room + _ROUNDING and index == 0 else None
                free[place] -= piece
                if index == 0:
                    answering.add(place)
    return _Packed(len(free), len(answering))


def _first_with(free: Sequence[float], wanted: float) -> int | None:
    return next((pod for pod, left in enumerate(free) if left + _ROUNDING >= wanted), None)
