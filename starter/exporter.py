"""The exporter: the platform's figures at `/metrics`, for Prometheus.

It reads the database when it is asked, and at rest costs nothing. Where the database is away it says so, as
`nautilus_database_up 0`, and never answers with figures of before.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import structlog
from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError

from activities.monitoring import BUCKETS_S, Kind, Metric

log = structlog.get_logger()

UP = "nautilus_database_up"
TOOK = "nautilus_reading_duration_seconds"


class PlatformCollector(Collector):
    """Reads the platform anew for each scrape."""

    def __init__(self, read: Callable[[], list[Metric]]) -> None:
        self._read = read

    def collect(self) -> Iterable[Family]:
        began = perf_counter()
        try:
            families = [family(metric) for metric in self._read()]
        except SQLAlchemyError as error:
            # The cause alone: SQLAlchemy's own text quotes the statement and its values.
            log.warning("exporter.database_away", error=str(getattr(error, "orig", error)))
            families = []
        yield GaugeMetricFamily(UP, "1: the database can be read.", value=bool(families))
        yield GaugeMetricFamily(TOOK, "How long reading the figures took.", value=perf_counter() - began)
        yield from families


def family(metric: Metric) -> Family:
    """A metric as the library has it."""
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        for labels, observed in metric.samples.items():
            histogram.add_metric(labels, _buckets(observed), sum(observed))
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    samples = kind(metric.name, metric.help, labels=metric.labels)
    for labels, value in metric.samples.items():
        samples.add_metric(labels, value)
    return samples


def _buckets(observed: Sequence[float]) -> list[tuple[str, float]]:
    """How many were at most each bound."""
    counts = [0] * (len(BUCKETS_S) + 1)
    for value in observed:
        counts[bisect_left(BUCKETS_S, value)] += 1
    bounds = [*(str(bound) for bound in BUCKETS_S), "+Inf"]
    return [(bound, sum(counts[: number + 1])) for number, bound in enumerate(bounds)]


@contextmanager
def served(read: Callable[[], list[Metric]], host: str, port: int) -> Iterator[None]:
    """Serve what `read` returns for the length of the context. Raises OSError where the address is taken."""
    registry = CollectorRegistry()
    registry.register(PlatformCollector(read))
    server, thread = start_http_server(port, host, registry)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
