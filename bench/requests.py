"""What a request of generation costs beside the model: CPU of all processes over requests, with short answers.

`python -m bench.requests --record` takes two minutes on a quiet machine; `--quick` shows that it runs.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from bench.overhead import FULL, PROFILES, Scale, ServingCost, measure_serving_cost
from bench.results import describe_machine, record

NUM_OUTPUTS = 4
SHORT = replace(FULL, idle_s=5.0, num_streams=16, num_rounds=60, num_stream_outputs=NUM_OUTPUTS)
QUICK = replace(SHORT, idle_s=2.0, num_rounds=4)


def format_requests(costs: Sequence[ServingCost], scale: Scale) -> str:
    """A table: a line for each of Serve's profiles."""
    lines = [
        f"Requests of {NUM_OUTPUTS} tokens to a model that computes nothing, {scale.num_streams} clients; CPU of all "
        "processes, idling subtracted:",
        "",
        "| profile | ms CPU per request | requests/s | requests | first token, ms (median) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        num_requests = cost.load.num_tokens // NUM_OUTPUTS
        lines.append(
            f"| {cost.profile} | {cost.cpu_ms_per_token * NUM_OUTPUTS:.2f} | {num_requests / cost.load.elapsed_s:.0f} "
            f"| {num_requests} | {cost.load.first_token_ms:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure both profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true", help="append the figures to bench/results.md")
    options = parser.parse_args()
    scale = QUICK if options.quick else SHORT
    machine = describe_machine()
    text = format_requests([measure_serving_cost(scale, profile) for profile in PROFILES], scale)
    print(text)
    if options.record:
        record("A request of generation", machine, text)


if __name__ == "__main__":
    main()
