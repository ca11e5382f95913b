"""What the prefix cache spares: a chat of eight turns over a long start, and eight answers to one prompt.

The engine and its scheduler in this process, on a random 120M llama in float32; with the cache and without it in turn,
medians. `--record` adds the tables to bench/results.md.
"""

import argparse
import os
import time
from dataclasses import dataclass
from statistics import median

import torch

from bench.random_llama import SIZES, make_model, stage_of
from bench.results import describe_machine, record
from serve_app.engine.model_runner import ModelRunner
from serve_app.models.transformers_model import TransformersStage
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits

NUM_TURNS = 8
NUM_START_TOKENS = 640
NUM_QUESTION_TOKENS = 24
NUM_ANSWER_TOKENS = 32
NUM_CHOICES = 8
MAX_SHARE = 0.25  # of the time to first token without the cache, from the second turn on
LIMITS = EngineLimits(max_num_seqs=16, max_num_batched_tokens=2048, max_model_len=2048, block_size=16, num_blocks=512)


@dataclass(frozen=True, slots=True)
class Answered:
    """A request that has ended."""

    first_s: float  # from its arrival to its first token
    token_ids: list[int]  # of choice 0
    num_computed: int  # prompt tokens that went through the model, over all choices


class Engine:
    """A model whose cache lasts from request to request."""

    def __init__(self, stage: TransformersStage, *, has_prefix_cache: bool) -> None:
        self._runner = ModelRunner(stage, LIMITS, LoneCommunicator(), torch.device("cpu"))
        self._scheduler = Scheduler(LIMITS, num_stages=1, max_queued=64, has_prefix_cache=has_prefix_cache)

    def answer(self, prompt: list[int], num_choices: int = 1) -> Answered:
        """Run one request to its end."""
        params = SamplingParams(max_tokens=NUM_ANSWER_TOKENS, seed=0, temperature=0.0, ignore_eos=True)
        began_s = time.perf_counter()
        self._scheduler.add(GenerateRequest("request", prompt, params, num_choices))
        first_s, token_ids, num_computed = 0.0, list[int](), 0
        while (step := self._scheduler.schedule()) is not None:
            output = self._runner.run(step)
            assert output is not None
            if first_s == 0.0:
                num_computed += len(step.token_ids)
            for news in self._scheduler.update(output):
                first_s = first_s or time.perf_counter() - began_s
                if news.sequence.choice == 0:
                    token_ids += news.chunk.token_ids
        return Answered(first_s, token_ids, num_computed)


def chat(engine: Engine, seed: int) -> list[Answered]:
    """Each turn sends all that was said before."""
    drawn = torch.Generator().manual_seed(seed)
    history = torch.randint(0, SIZES["120M"].vocab_size, (NUM_START_TOKENS,), generator=drawn).tolist()
    turns = []
    for _ in range(NUM_TURNS):
        history += torch.randint(0, SIZES["120M"].vocab_size, (NUM_QUESTION_TOKENS,), generator=drawn).tolist()
        turns.append(engine.answer(history))
        history += turns[-1].token_ids
    return turns


def measure(num_rounds: int) -> tuple[str, bool]:
    """The tables, and whether the aims are met."""
    stage = stage_of(make_model(SIZES["120M"], torch.float32, torch.device("cpu")))
    engines = {name: Engine(stage, has_prefix_cache=name == "with") for name in ("without", "with")}
    for engine in engines.values():
        engine.answer([1, 2, 3])
    rounds = [{name: chat(engine, seed) for name, engine in engines.items()} for seed in range(num_rounds)]
    lines = ["| turn | without, ms to the first token | with | share |", "| --- | --- | --- | --- |"]
    shares = []
    for turn in range(NUM_TURNS):
        before, after = (median(one[name][turn].first_s for one in rounds) for name in ("without", "with"))
        shares.append(after / before)
        lines.append(f"| {turn + 1} | {before * 1000:.0f} | {after * 1000:.0f} | {after / before:.2f} |")
    is_same = all(
        old.token_ids == new.token_ids for one in rounds for old, new in zip(one["without"], one["with"], strict=True)
    )
    prompts = torch.randint(0, 1000, (2, NUM_START_TOKENS), generator=torch.Generator().manual_seed(99)).tolist()
    one, eight = engines["with"].answer(prompts[0]), engines["with"].answer(prompts[1], NUM_CHOICES)
    lines += [
        "",
        f"Aim: {MAX_SHARE} or less from the second turn on; most: {max(shares[1:]):.2f}. "
        f"The answers are {'the same' if is_same else 'NOT the same'}.",
        f"n={NUM_CHOICES}: {eight.num_computed} prompt tokens computed for {one.num_computed} of n=1, "
        f"{eight.first_s * 1000:.0f} ms to the first token for {one.first_s * 1000:.0f}.",
    ]
    is_one_prefill = eight.num_computed <= one.num_computed + NUM_CHOICES * LIMITS.block_size
    return "\n".join(lines), max(shares[1:]) <= MAX_SHARE and is_same and is_one_prefill


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    table, is_met = measure(options.rounds)
    print(table)
    if options.record:
        record("Prefix cache", machine, table)
    raise SystemExit(0 if is_met else 1)


if __name__ == "__main__":
    main()
