"""What metrics stand at, and the same as single samples: what Prometheus's formats and Ray's exporter are made of."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from serve_app.metrics.families import Family
from serve_app.types.models import TimeCounts


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric of a family; labels are in the family's order."""

    family: Family
    labels: tuple[str, ...]
    value: float | TimeCounts


@dataclass(frozen=True, slots=True)
class Sample:
    """One number under the name that a query uses."""

    family: Family
    name: str
    labels: dict[str, str]
    value: float


def samples_of(readings: Iterable[Reading]) -> Iterator[Sample]:
    """One for each counter and gauge; a histogram's cumulative buckets, count and sum."""
    for reading in readings:
        family = reading.family
        labels = dict(zip(family.labels, reading.labels, strict=True))
        value = reading.value
        if not isinstance(value, TimeCounts):
            yield Sample(family, family.name, labels, value)
            continue
        bounds = [*map(str, family.bounds_s), "+Inf"]
        counts = list(accumulate(value.bucket_counts or [0] * len(bounds)))
        for bound, count in zip(bounds, counts, strict=True):
            yield Sample(family, f"{family.name}_bucket", {**labels, "le": bound}, count)
        yield Sample(family, f"{family.name}_count", labels, counts[-1])
        yield Sample(family, f"{family.name}_sum", labels, value.sum_s)
