"""How fast a model decodes in this process, and what it holds."""

import time
from dataclasses import dataclass

from serve_app.compress.local_model import LocalModel

BATCH_SIZES = (1, 8, 32)


@dataclass(frozen=True, slots=True)
class Speed:
    """Greedy decoding of `batch_size` sequences at once."""

    batch_size: int
    tokens_per_s: float
    ms_per_step: float
    weight_bytes: int  # in memory
    cache_bytes: int  # of keys and values, for as many tokens as these sequences have


def measure_speed(model: LocalModel, num_tokens: int = 32, prompt_tokens: int = 16) -> list[Speed]:
    """For each batch size, after a warm-up; wall-clock."""
    found = []
    longest = model.spec.default_max_tokens or 2048
    num_tokens = min(num_tokens, longest - prompt_tokens)
    for batch_size in BATCH_SIZES:
        prompts = [
            [(7 * place + row) % model.spec.vocab_size for place in range(prompt_tokens)] for row in range(batch_size)
        ]
        model.generate(prompts, 2, ignore_eos=True)
        begin_s = time.perf_counter()
        model.generate(prompts, num_tokens, ignore_eos=True)
        elapsed_s = time.perf_counter() - begin_s
        speed = Speed(
            batch_size=batch_size,
            tokens_per_s=batch_size * num_tokens / elapsed_s,
            ms_per_step=1000 * elapsed_s / num_tokens,
            weight_bytes=model.num_weight_bytes,
            cache_bytes=model.cache_bytes(batch_size, prompt_tokens + num_tokens),
        )
        found.append(speed)
    return found
