"""Counts of the server, for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector

from mirrorspark.serving.sources import Source
from mirrorspark.serving.traffic_split import TrafficSplit

CONTENT_TYPE = CONTENT_TYPE_LATEST
_FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_DIFFERENCES = (1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class ServerMetrics:
    """Counters and histograms of one server, and gauges that are read on request."""

    def __init__(
        self, sources: Iterable[Source], traffics: Iterable[TrafficSplit], waiting_rows: Callable[[], int]
    ) -> None:
        """Begin at zero.

        Args:
            sources: The models.
            traffics: How requests are divided.
            waiting_rows: Returns the number of rows that wait.
        """
        self._registry = CollectorRegistry()
        self._sources, self._traffics, self._waiting_rows = tuple(sources), tuple(traffics), waiting_rows
        self._registry.register(self)

        def histogram(name: str, text: str, label: str, bounds: tuple[float, ...]) -> Histogram:
            return Histogram(f"mirrorspark_{name}", text, [label], buckets=bounds, registry=self._registry)

        self.requests = Counter(
            "mirrorspark_requests",
            "Requests by protocol, model, version and status.",
            ["protocol", "model", "version", "code"],
            registry=self._registry,
        )
        self.request_seconds = histogram(
            "request_seconds", "Seconds from a request to its response.", "protocol", _SECONDS
        )
        self.batch_rows = histogram("batch_rows", "Rows of a batch.", "model", _ROWS)
        self.batch_requests = histogram("batch_requests", "Requests of a batch.", "model", _ROWS)
        self.batch_seconds = histogram("batch_seconds", "Seconds of a batch.", "model", _SECONDS)
        labels = ["traffic", "variant", "version", "outcome"]
        self.variant_requests = Counter(
            "mirrorspark_variant_requests", "Requests of variants and shadows.", labels, registry=self._registry
        )
        self.shadow_skipped = Counter(
            "mirrorspark_shadow_skipped", "Requests that shadows left out.", ["traffic"], registry=self._registry
        )
        self.exposures_lost = Counter(
            "mirrorspark_exposures_lost", "Exposures that were not written.", ["traffic"], registry=self._registry
        )
        self.shadow_difference = histogram(
            "shadow_difference", "How far a shadow's score of a row is from the answer's.", "shadow", _DIFFERENCES
        )

    def collect(self) -> Iterable[Metric]:
        """Return the metrics that other objects hold; the registry calls this."""
        yield GaugeMetricFamily("mirrorspark_queue_rows", "Rows that wait.", value=self._waiting_rows())
        labels = ["model", "source", "version"]
        versions = GaugeMetricFamily("mirrorspark_model_info", "The version that answers.", labels=labels)
        loads = GaugeMetricFamily("mirrorspark_model_loads", "Versions that were loaded.", labels=["source"])
        failures = GaugeMetricFamily(
            "mirrorspark_model_failures", "Look-ups and versions that failed.", labels=["source"]
        )
        for one in self._sources:
            versions.add_metric([one.model.name, one.uri, one.model.version], 1)
            loads.add_metric([one.uri], one.loads)
            failures.add_metric([one.uri], one.failures)
        yield from (versions, loads, failures, self._ages())
        yield from self._of_traffics()

    def _ages(self) -> Metric:
        ages = GaugeMetricFamily(
            "mirrorspark_catalogue_age_days",
            "Days since the catalogue was made; younger items are in no list.",
            labels=["model", "source", "version", "catalogue"],
        )
        now = datetime.now(UTC)
        for one in self._sources:
            for name, catalogue in one.model.catalogues.items():
                ages.add_metric([one.model.name, one.uri, one.model.version, name], catalogue.age_days(now))
        return ages

    def _of_traffics(self) -> Iterable[Metric]:
        labels = ["traffic", "variant"]
        shares = GaugeMetricFamily("mirrorspark_variant_share", "Share of the units.", labels=labels)
        stopped = GaugeMetricFamily("mirrorspark_variant_stopped", "1 if the variant was stopped.", labels=labels)
        for traffic in self._traffics:
            for name, share in traffic.shares.items():
                shares.add_metric([traffic.name, name], share)
                stopped.add_metric([traffic.name, name], int(traffic.is_stopped(traffic.variants[name])))
        yield from (shares, stopped)

    def text(self) -> bytes:
        """Return all in Prometheus's text format."""
        if _FOLDER_VARIABLE not in os.environ:
            return generate_latest(self._registry)
        # Counts of all processes behind the address are added up; gauges are those of this one.
        together = CollectorRegistry()
        MultiProcessCollector(together)
        together.register(self)
        return generate_latest(together)
