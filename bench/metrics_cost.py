"""What metrics and traces cost for each token, step and request, and a scrape: `python -m bench.metrics_cost`."""

import time
from collections.abc import Callable

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NoOpTracer

from serve_app.deployments.bubble import BubbleMeter
from serve_app.deployments.call_trace import TimedStep
from serve_app.deployments.step_traces import StepTraces
from serve_app.metrics.exposition import expose
from serve_app.metrics.families import STEPS
from serve_app.metrics.of_gateway import GatewayMetrics
from serve_app.metrics.times import Times
from serve_app.metrics.tokens import TokenMeters, TokenTimes
from serve_app.tracing.tracing import Tracing, carried
from serve_app.types.steps import StepInput

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
    """One step of a copy: the loop looks after it was sent, and counts when it is back."""
    bubble, times = BubbleMeter([0], time.monotonic()), Times(STEPS.bounds_s)

    def run() -> None:
        bubble.note(time.monotonic(), is_working=True)
        times.add(0.01)
        bubble.note(time.monotonic(), is_working=False)

    return run


def untraced_step() -> Callable[[], object]:
    """What tracing adds to a step of a copy without a traced call; nothing of it is called where it is off."""
    traces = StepTraces(Tracing(NoOpTracer()), "prefill", [0])
    step = StepInput(0, [], [], [], [], [], [], [])

    def run() -> None:
        traces.send(step)
        traces.end(0)
        traces.see([])

    return run


def traced_request() -> Callable[[], object]:
    """The spans of a generation, at Gateway and Router, without their way to a collector."""
    tracing = Tracing(TracerProvider(ALWAYS_ON, shutdown_on_exit=False).get_tracer("bench"))
    traces = StepTraces(tracing, "prefill", [0])

    def run() -> None:
        with tracing.serving("request", {}, {}):
            with tracing.part("tokenize"):
                pass
            with tracing.part("text_completion"), traces.call("generate", carried(), {}) as call:
                assert call is not None
                now_s = time.monotonic()
                call.start(now_s)
                call.see_token(now_s)
                call.add_step(TimedStep(0, now_s, 1, 1, now_s, {0: 0.1}))

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
    print(f"step at the Router, traces on and no traced call: {nanoseconds_each(untraced_step()) - nothing_ns:.0f} ns")
    print(f"a traced generation's eight spans: {nanoseconds_each(traced_request(), 2_000) / 1000:.0f} us")
    print(f"scrape of {_NUM_MODELS} models: {nanoseconds_each(scrape(), 20) / 1e6:.1f} ms")


if __name__ == "__main__":
    main()
