"""What a Gateway replica has counted of one model."""

import pytest

from serve_app.metrics.of_gateway import GatewayMetrics, TokenCounts
from serve_app.metrics.tokens import TokenTimes


def test_tokens_of_a_model_are_those_that_its_metrics_show() -> None:
    metrics = GatewayMetrics("g")
    assert metrics.token_counts("m") == TokenCounts()
    assert all("m" not in one.labels for one in metrics.readings())  # looking makes no series
    metrics.add_prompt_tokens("m", 7)
    assert metrics.token_counts("m") == TokenCounts(num_prompt_tokens=7)
    now_s = [3.0]
    times = TokenTimes(metrics.tokens_of("m"), 1, 1.0, lambda: now_s[0])
    times.see(0, 1)
    now_s[0] = 4.0
    times.see(0, 2)
    counts = metrics.token_counts("m")
    assert (counts.num_prompt_tokens, counts.num_output_tokens, counts.num_first_tokens) == (7, 3, 1)
    assert counts.first_token_sum_s == pytest.approx(2.0)
