"""Chats of several turns on three copies of a model: what choosing the copy by prefix spares, beside power of two.

The Gateway's side (`ServeBackend`), the Routers and the links in this process, the shards in processes of their own, a
random llama in float32. Both choices take turns on the same copies; salts keep their caches apart. No round begins that
would not end within `--limit-s`, as the last one took. `--record` adds the table to bench/results.md.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median

import torch

from bench.random_llama import LlamaSize, write_checkpoint
from bench.results import describe_machine, record
from bench.serving import BUILD_DIR
from serve_app.backend.application import ROUTER_NAME
from serve_app.backend.control import RunningApplication
from serve_app.backend.copy_choice import Choice, Copy, CopyChooser, CopyT
from serve_app.backend.prompt_marks import RoutedPrompt
from serve_app.backend.serve_backend import ServeBackend
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.deployments.copy_work import CopyWork
from serve_app.deployments.generator_calls import GeneratorCalls
from serve_app.deployments.model_replica import ModelReplica
from serve_app.deployments.replica_links import ReplicaIdentity
from serve_app.engine.plain_processes import ProcessShardGroup
from serve_app.planning.generator_plan import plan_generator
from serve_app.scheduling.block_manager import extend_keys
from serve_app.types.generation import GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.links import LinkAddress
from serve_app.types.models import ModelDescription
from serve_app.wire.links import LOOPBACK, Senders

NAME = "bench"
SIZE = LlamaSize(384, 1024, 6, 6, 3, 8192)
NUM_COPIES = 3
BLOCK = 16
NUM_SYSTEM_TOKENS, NUM_DOCUMENT_TOKENS = 128, 512  # one for all chats, one for each
NUM_QUESTION_TOKENS, NUM_ANSWER_TOKENS = 24, 16
PATIENT = {"heartbeat_s": 60.0, "collective_s": 300.0}  # the machine may be busy with other work
PAUSE_S = 1.0  # at most, between an answer and the next question
MIN_HIT_SHARE = 0.8


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is asked."""

    num_rounds: int = 3
    num_chats: int = 6
    num_turns: int = 5
    limit_s: float = 300.0  # of all rounds


@dataclass(frozen=True, slots=True)
class Answered:
    """A turn that has ended."""

    turn: int
    first_s: float  # from its sending to its first token
    num_hits: int  # of the reusable tokens, those that were found
    num_reusable: int  # tokens of the prompt that a single cache would have had


class PowerOfTwo(CopyChooser):
    """Takes the less busy of two copies that are drawn."""

    def choose(self, copies: Sequence[CopyT], _prompt: RoutedPrompt) -> tuple[CopyT, Choice]:
        """See CopyChooser."""
        best = min(random.sample(list(copies), min(2, len(copies))), key=_load_of)
        return best, Choice(best.replica_id, "load", 0)


def _load_of(copy: Copy) -> float:
    return copy.load


class Copies:
    """Copies of one model, and what Serve would say of them: a Control."""

    node = LOOPBACK

    def __init__(self, config: ModelConfig) -> None:
        self._plan = plan_generator(config, Path.cwd(), read_environment()).refuse_problems()
        self._replicas = [self._make(f"copy-{index}") for index in range(NUM_COPIES)]

    async def start(self) -> None:
        """Return when all are ready."""
        await asyncio.gather(*(replica.start() for replica in self._replicas))

    def close(self) -> None:
        """End them."""
        for replica in self._replicas:
            replica.close_now()

    async def applications(self, **_: bool) -> dict[str, RunningApplication]:
        """See Control."""
        return {NAME: RunningApplication("RUNNING", "", (ROUTER_NAME,))}

    async def num_nodes(self) -> int:
        """See Control."""
        return 1

    async def register(self, _application: str, _deployment: str, address: LinkAddress) -> list[list[ModelDescription]]:
        """See Control."""
        for replica in self._replicas:
            replica.links.register(address)
        return [replica.describe() for replica in self._replicas]

    async def hold(self, _application: str, _deployment: str, seconds: float) -> None:
        """See Control."""
        await asyncio.sleep(seconds)

    def _make(self, name: str) -> ModelReplica:
        senders = Senders(LOOPBACK)
        calls = GeneratorCalls(self._plan, name, senders)
        identity = ReplicaIdentity(name, NAME, ROUTER_NAME, LOOPBACK)
        return ModelReplica(identity, calls.work, calls, _processes, senders)


def _processes(work: CopyWork) -> ProcessShardGroup:
    return ProcessShardGroup([work.settings(shard, 1) for shard in work.shards])


class Chats:
    """Conversations that run at once, under one salt."""

    def __init__(self, backend: ServeBackend, scale: Scale, salt: str, seed: int) -> None:
        self._backend = backend
        self._scale = scale
        self._salt = salt
        self._draw = random.Random(seed)
        self._known: set[bytes] = set()  # keys of blocks that were computed for this salt
        self._system = self._tokens(NUM_SYSTEM_TOKENS)
        self.answered: list[Answered] = []

    async def run(self) -> None:
        """To the end of all."""
        async with asyncio.TaskGroup() as group:
            for number in range(self._scale.num_chats):
                group.create_task(self._chat(number, self._system + self._tokens(NUM_DOCUMENT_TOKENS)))

    async def _chat(self, number: int, history: list[int]) -> None:
        draw = random.Random(number)
        await asyncio.sleep(draw.uniform(0, 3 * PAUSE_S))
        for turn in range(self._scale.num_turns):
            history = history + self._tokens(NUM_QUESTION_TOKENS)
            history = history + await self._ask(turn, history)
            await asyncio.sleep(draw.uniform(0, PAUSE_S))

    async def _ask(self, turn: int, prompt: list[int]) -> list[int]:
        params = SamplingParams(NUM_ANSWER_TOKENS, seed=0, temperature=0.0, ignore_eos=True)
        request = GenerateRequest("chat", prompt, params, queue_timeout_s=60.0, cache_salt=self._salt)
        keys = self._keys(prompt[:-1])
        num_reusable = BLOCK * next((i for i, key in enumerate(keys) if key not in self._known), len(keys))
        began_s, first_s, num_cached, answer = time.perf_counter(), list[float](), 0, list[int]()

        def take(chunk: OutputChunk) -> bool:
            nonlocal num_cached
            if not first_s:
                first_s.append(time.perf_counter() - began_s)
            num_cached += chunk.num_cached_tokens
            answer.extend(chunk.token_ids)
            return chunk.finish_reason is None

        await self._backend.generate(NAME, request, take)
        self._known.update(self._keys(prompt + answer[:-1]))
        self.answered.append(Answered(turn, first_s[0], min(num_cached, num_reusable), num_reusable))
        return answer

    def _keys(self, token_ids: list[int]) -> list[bytes]:
        keys: list[bytes] = []
        extend_keys(keys, token_ids, len(token_ids) // BLOCK, BLOCK, self._salt)
        return keys

    def _tokens(self, count: int) -> list[int]:
        return [self._draw.randrange(SIZE.vocab_size) for _ in range(count)]


@asynccontextmanager
async def running(source: Path) -> AsyncIterator[ServeBackend]:
    """A backend, and the copies that it calls."""
    engine = {"max_num_seqs": 8, "max_num_batched_tokens": 512, "block_size": BLOCK, "kv_cache_bytes": 256 << 20}
    settings = {"name": NAME, "source": str(source), "dtype": "float32", "max_model_len": 2048, "engine": engine}
    copies = Copies(ModelConfig.model_validate({**settings, "device": {"cpu_threads": 1}, "timeouts": PATIENT}))
    backend = ServeBackend(copies)
    try:
        await copies.start()
        await backend.find_running_models()
        backend.start()  # it registers again and again, or the copies would forget it
        await _until_all_are_ready(backend)
        yield backend
    finally:
        copies.close()
        backend.close()
        await asyncio.sleep(0)


async def _until_all_are_ready(backend: ServeBackend) -> None:
    async with asyncio.timeout(30):
        while True:
            if sum(one.state == "ready" for one in backend.health().models.get(NAME, [])) == NUM_COPIES:
                return
            await asyncio.sleep(0.05)


async def measure(source: Path, scale: Scale) -> tuple[str, bool]:
    """The table, and whether the aims are met."""
    answered: dict[str, list[Answered]] = {"power of two": [], "prefix": []}
    choices: Counter[str] = Counter()
    async with running(source) as backend:
        calls = backend._calls(NAME, ROUTER_NAME)
        calls.chooser = PowerOfTwo()
        began_s = time.perf_counter()
        await Chats(backend, replace(scale, num_turns=1), "warm-up", seed=-1).run()
        for number in range(scale.num_rounds):
            round_s = time.perf_counter()
            for name in sorted(answered, reverse=number % 2 == 0):
                calls.chooser = CopyChooser() if name == "prefix" else PowerOfTwo()
                chats = Chats(backend, scale, f"{name} {number}", seed=number)
                await chats.run()
                answered[name] += chats.answered
                if name == "prefix":
                    choices.update(calls.chooser.counts())
            now_s = time.perf_counter()
            print(f"round {number + 1} of {scale.num_rounds}: {now_s - round_s:.0f} s", flush=True)
            if now_s - began_s + (now_s - round_s) > scale.limit_s:
                break
    return format_answered(answered, choices, replace(scale, num_rounds=number + 1))


def format_answered(answered: dict[str, list[Answered]], choices: Counter[str], scale: Scale) -> tuple[str, bool]:
    """The table, and whether the aims are met."""
    lines = [
        f"{scale.num_chats} chats of {scale.num_turns} turns at once on {NUM_COPIES} copies, {scale.num_rounds} "
        "rounds: "
        f"{NUM_SYSTEM_TOKENS} tokens that all share, {NUM_DOCUMENT_TOKENS} of each chat's own, questions of "
        f"{NUM_QUESTION_TOKENS}, answers of {NUM_ANSWER_TOKENS}.",
        "",
        "| choice | reusable tokens that were hits | first token, ms: mean | median | median from turn 2 |",
        "| --- | --- | --- | --- | --- |",
    ]
    shares, firsts = {}, {}
    for name, found in answered.items():
        shares[name] = sum(one.num_hits for one in found) / sum(one.num_reusable for one in found)
        firsts[name] = mean(one.first_s for one in found)
        later = [one.first_s for one in found if one.turn > 0]
        lines.append(
            f"| {name} | {shares[name]:.2f} | {1000 * firsts[name]:.0f} | "
            f"{1000 * median(one.first_s for one in found):.0f} | {1000 * median(later):.0f} |"
        )
    told = ", ".join(f"{reason} {count}" for reason, count in choices.items() if count)
    lines += ["", f"Chosen by: {told}. Aim: {MIN_HIT_SHARE} of the reusable tokens or more."]
    return "\n".join(lines), shares["prefix"] >= MIN_HIT_SHARE and firsts["prefix"] < firsts["power of two"]


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=Scale().num_rounds)
    parser.add_argument("--chats", type=int, default=Scale().num_chats)
    parser.add_argument("--turns", type=int, default=Scale().num_turns)
    parser.add_argument("--limit-s", type=float, default=Scale().limit_s)
    parser.add_argument("--record", action="store_true", help="append the figures to bench/results.md")
    options = parser.parse_args()
    machine = describe_machine()
    source = write_checkpoint(SIZE, torch.float32, BUILD_DIR / "prefix-copies")
    table, is_met = asyncio.run(measure(source, Scale(options.rounds, options.chats, options.turns, options.limit_s)))
    print(table)
    if options.record:
        record("The copy that holds the prefix", machine, table)
    raise SystemExit(0 if is_met else 1)


if __name__ == "__main__":
    main()
