"""What the metrics of a Gateway cost for each token, and what a scrape costs: `python -m bench.metrics_cost`."""

import time
from collections.abc import Callable

from serve_app.deployments.step_meter import StepMeter
from serve_app.metrics.exposition import expose
from serve_app.metrics.of_gateway import GatewayMetrics
from serve_app.metrics.tokens import TokenMeters, TokenTimes

_NUM_CALLS = 200_000
_NUM_ROUNDS = 5
_NUM_MODELS = 10


def nanoseconds_each(call: Callable[[], object], num_calls: int = _NUM_CALLS) -> float:
    """CPU time of the fastest of several rounds: others use the machine too."""
    best_s = float("inf")
    for _ in range(_NUM_ROUNDS):
        started_s = time.thread_time()
        for _ in range(num_calls):
            call()
        best_s = min(best_s, time.thread_time() - started_s)
    return best_s / num_calls * 1e9


def token() -> Callable[[], object]:
    """One token of a choice."""
    times = TokenTimes(TokenMeters(), 1, 0.0)
    times.see(0, 1)
    return lambda: times.see(0, 1)


def step() -> Callable[[], object]:
    """One step of a copy: sent, and back."""
    meter = StepMeter(num_stages=1)

    def run() -> None:
        meter.send()
        meter.end()

    return run


def scrape() -> Callable[[], object]:
    """All families of a Gateway with several models."""
    metrics = GatewayMetrics("gateway")
    for index in range(_NUM_MODELS):
        model = f"model{index}"
        TokenTimes(metrics.tokens_of(model), 1, 0.0).see(0, 2)
        metrics.count_request("/v1/chat/completions", model, 200, None)
        metrics.add_latency("/v1/chat/completions", model, 1.0)
    return lambda: expose(metrics.readings(), "")


def main() -> None:
    """Print a line for each; a call that does nothing is subtracted."""
    nothing_ns = nanoseconds_each(lambda: None)
    for name, call in (("token at the Gateway", token()), ("step at the Router", step())):
        print(f"{name}: {nanoseconds_each(call) - nothing_ns:.0f} ns")
    print(f"scrape of {_NUM_MODELS} models: {nanoseconds_each(scrape(), 20) / 1e6:.1f} ms")


if __name__ == "__main__":
    main()
