"""Requests of a benchmark: drawn from a seed, or read from a file so that several engines get the same."""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.generated import WorkItem

_FIRST_PLAIN_TOKEN = 256  # those below stand for single bytes


def poisson_workload(
    num_requests: int,
    requests_per_s: float,
    prompt_tokens: tuple[int, int],
    output_tokens: tuple[int, int],
    vocab_size: int,
    seed: int = 0,
) -> list[WorkItem]:
    """Requests that arrive as a Poisson process; lengths are uniform within the bounds, both included."""
    draw = random.Random(seed)
    items: list[WorkItem] = []
    arrival_s = 0.0
    for _ in range(num_requests):
        prompt = [draw.randrange(_FIRST_PLAIN_TOKEN, vocab_size) for _ in range(draw.randint(*prompt_tokens))]
        items.append(WorkItem(arrival_s, prompt, draw.randint(*output_tokens)))
        arrival_s += draw.expovariate(requests_per_s)
    return items


def equal_workload(
    num_requests: int, num_prompt_tokens: int, num_outputs: int, vocab_size: int, seed: int = 0
) -> list[WorkItem]:
    """Requests of one length that are all there from the begin."""
    lengths = (num_prompt_tokens, num_prompt_tokens), (num_outputs, num_outputs)
    items = poisson_workload(num_requests, 1.0, *lengths, vocab_size, seed)
    return [WorkItem(0.0, item.prompt_token_ids, item.num_outputs) for item in items]


def write_workload(items: Sequence[WorkItem], path: Path) -> Path:
    """Write requests as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(item) for item in items]))
    return path


def read_workload(path: Path) -> list[WorkItem]:
    """Read what `write_workload` wrote."""
    return [WorkItem(**item) for item in json.loads(path.read_bytes())]
