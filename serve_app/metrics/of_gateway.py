"""What one Gateway replica counts: requests by their ends, tokens as they come."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from serve_app.metrics import families
from serve_app.metrics.readings import Reading
from serve_app.metrics.refusals import ALL_REASONS, reason_of
from serve_app.metrics.times import Times
from serve_app.metrics.tokens import TokenMeters

_STATUSES = ("2xx", "4xx", "5xx")


@dataclass(frozen=True, slots=True)
class TokenCounts:
    """What has gone into a model and come out of it."""

    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_first_tokens: int = 0  # prompts that have had one
    first_token_sum_s: float = 0.0  # how long they waited for it


class GatewayMetrics:
    """Since the replica started. gateway: what it is called."""

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self._requests: Counter[tuple[str, str, str]] = Counter()  # route, model, status class
        self._refused: Counter[tuple[str, str]] = Counter()  # model, reason
        self._latencies: dict[tuple[str, str], Times] = {}  # route, model
        self._prompt_tokens: Counter[str] = Counter()  # by model
        self._tokens: dict[str, TokenMeters] = {}  # by model
        self._batch_requests_left: Callable[[], int] = lambda: 0

    def tokens_of(self, model: str) -> TokenMeters:
        """The meters of a model that is served."""
        meters = self._tokens.get(model)
        if meters is None:
            meters = self._tokens[model] = TokenMeters()
        return meters

    def count_request(self, route: str, model: str, status: int, error: BaseException | None) -> None:
        """A request has ended. route: a template; model: one that is served, or ""."""
        if (route, model, _STATUSES[0]) not in self._requests:
            self._begin(route, model)
        self._requests[route, model, f"{status // 100}xx"] += 1
        if error is not None:
            self._refused[model, reason_of(error)] += 1

    def add_latency(self, route: str, model: str, seconds: float) -> None:
        """A model has answered a request."""
        times = self._latencies.get((route, model))
        if times is None:
            times = self._latencies[route, model] = Times(families.LATENCY.bounds_s)
        times.add(seconds)

    def add_prompt_tokens(self, model: str, num_tokens: int) -> None:
        """Tokens have gone into a model."""
        self._prompt_tokens[model] += num_tokens

    def token_counts(self, model: str) -> TokenCounts:
        """Of one model; zeros where nobody has called it."""
        meters, num_prompt_tokens = self._tokens.get(model), self._prompt_tokens.get(model, 0)
        if meters is None:
            return TokenCounts(num_prompt_tokens)
        first = meters.first_token
        return TokenCounts(num_prompt_tokens, meters.num_tokens, first.count, first.sum_s)

    def count_batch_requests_left(self, num_left: Callable[[], int]) -> None:
        """Batches are worked here; num_left: how many of their requests have not ended."""
        self._batch_requests_left = num_left

    def readings(self) -> list[Reading]:
        """What it has counted."""
        at = self.gateway
        found = [Reading(families.BATCH_REQUESTS_LEFT, (at,), self._batch_requests_left())]
        found += [Reading(families.REQUESTS, (at, *labels), count) for labels, count in self._requests.items()]
        found += [Reading(families.REFUSED, (at, *labels), count) for labels, count in self._refused.items()]
        found += [Reading(families.LATENCY, (at, *labels), one.counts()) for labels, one in self._latencies.items()]
        found += [Reading(families.PROMPT_TOKENS, (at, model), count) for model, count in self._prompt_tokens.items()]
        for model, meters in self._tokens.items():
            found += [
                Reading(families.FIRST_TOKEN, (at, model), meters.first_token.counts()),
                Reading(families.TOKEN_GAP, (at, model), meters.gaps.counts()),
                Reading(families.OUTPUT_TOKENS, (at, model), meters.num_tokens),
            ]
        return found

    def _begin(self, route: str, model: str) -> None:
        """Zeros, so that the first error is an increase that Prometheus sees."""
        self._requests.update({(route, model, status): 0 for status in _STATUSES})
        self._refused.update({(model, reason): 0 for reason in ALL_REASONS})
