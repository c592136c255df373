"""The server's figures, in the form that Prometheus reads."""

from tsuzuri.apps.serve.engine import Engine


class Metrics:
    """Counters and times since the start; requires the package prometheus-client."""

    def __init__(self, engine: Engine):
        import prometheus_client as prometheus

        self._registry = prometheus.CollectorRegistry()

        def made(kind: type, name: str, text: str, **options: object):
            return kind(f"tsuzuri_{name}", text, registry=self._registry, **options)

        self.requests = made(
            prometheus.Counter, "requests_total", "Requests by status", labelnames=["status"]
        )
        self.prompt_tokens = made(prometheus.Counter, "prompt_tokens_total", "Tokens of prompts")
        self.completion_tokens = made(
            prometheus.Counter, "completion_tokens_total", "Tokens written"
        )
        self.first_token = made(
            prometheus.Histogram,
            "first_token_seconds",
            "From the request to its first token",
            buckets=[0.01 * 2**n for n in range(12)],
        )
        writing = made(prometheus.Gauge, "texts_being_written", "Texts in the batch")
        writing.set_function(lambda: engine.load[0])
        waiting = made(prometheus.Gauge, "texts_waiting", "Texts that wait for a row")
        waiting.set_function(lambda: engine.load[1])
        self.media_type = prometheus.CONTENT_TYPE_LATEST

    def text(self) -> str:
        import prometheus_client as prometheus

        return prometheus.generate_latest(self._registry).decode()
