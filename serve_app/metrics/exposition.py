"""Metrics in the formats that Prometheus scrapes.

https://prometheus.io/docs/instrumenting/exposition_formats, https://prometheus.io/docs/specs/om/open_metrics_spec
"""

from collections.abc import Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.exposition import choose_encoder

from serve_app.metrics.readings import Reading, samples_of


def expose(readings: Iterable[Reading], accept: str) -> tuple[bytes, str]:
    """A scrape and its media type: OpenMetrics where the `Accept` header names it, else the text format 0.0.4."""
    encode, media_type = choose_encoder(accept)
    return encode(_Collector(readings)), media_type


class _Collector:
    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        metrics: dict[str, Metric] = {}
        for sample in samples_of(self._readings):
            family = sample.family
            metric = metrics.get(family.name)
            if metric is None:
                name = family.name.removesuffix("_total")
                metric = metrics[family.name] = Metric(name, family.help, family.kind)
            metric.add_sample(sample.name, sample.labels, sample.value)
        yield from metrics.values()
