"""A scheduler with random clients, and shards whose cache knows what every slot must hold."""

import random
from collections import Counter, deque
from dataclasses import dataclass, field, replace
from functools import partial

from serve_app.errors import QueueFullError, RequestError
from serve_app.scheduling.scheduler import Scheduler
from serve_app.scheduling.sequence import Sequence, SequenceState
from serve_app.types.generation import FinishReason, GenerateRequest, Progress, SamplingParams, TokenLogprobs
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import DRAWN_BEFORE, StepInput, StepOutput
from tests.fakes_engine import CacheOracle, FakeModel, Reference, logprob_at, run_alone

EOS = frozenset({0, 5})
NUM_EVENTS = 400


@dataclass(slots=True)
class Client:
    """A request, and what came back for it."""

    request: GenerateRequest
    sequences: list[Sequence]
    references: list[Reference]
    token_ids: list[list[int]] = field(default_factory=list)
    logprobs: list[list[TokenLogprobs]] = field(default_factory=list)
    finish_reasons: list[FinishReason | None] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    failed: set[int] = field(default_factory=set)  # choices that a step was lost with

    def __post_init__(self) -> None:
        count = len(self.sequences)
        self.token_ids = [[] for _ in range(count)]
        self.logprobs = [[] for _ in range(count)]
        self.finish_reasons = [None] * count


@dataclass(slots=True)
class Seen:
    """How often what must be survived has happened: a simulation in which it does not proves nothing."""

    events: Counter[str] = field(default_factory=Counter)

    def abort_of(self, sequence: Sequence) -> None:
        if _is_preempted(sequence):
            state = "pre-empted"
        elif sequence.state is SequenceState.WAITING:
            state = "waiting"
        elif sequence.is_draw_in_flight:
            state = "with its draw in flight"
        elif sequence.num_steps_in_flight:
            state = "with prefill chunks in flight"
        else:
            state = "between two steps"
        self.events[f"aborted {state}"] += 1


class World:
    """One scheduler, the shards it drives, its clients, and a coin."""

    def __init__(
        self,
        seed: int,
        num_stages: int,
        limits: EngineLimits,
        seen: Seen,
        failing_share: float = 0.0,
        *,
        overlaps: bool = False,
        owners: tuple[str, ...] = (*[""] * 6, "a", "b"),
        priorities: tuple[int, ...] = (0,),
        timed_share: float = 0.0,
    ) -> None:
        self.priorities = priorities
        self.timed_share = timed_share  # of requests that have a deadline
        self.now_s = 1.0
        self.owners = owners
        self.coin = random.Random(seed)
        self.failing_share = failing_share  # of steps that the shards have no memory for
        self.limits = limits
        self.overlaps = overlaps
        self.max_in_flight = num_stages + overlaps
        self.seen = seen
        self.model = FakeModel(broken_seeds=frozenset(range(0, 10_000, 17)))
        self.oracle = CacheOracle(limits, self.model)
        self.new_scheduler = partial(
            Scheduler,
            limits,
            num_stages=num_stages,
            max_queued=12,
            max_num_prefill_tokens=(None, 3, limits.max_num_batched_tokens // 2)[seed % 3],
            eos_token_ids=EOS,
            joins_blocks=seed % 2 == 1,
            overlaps_steps=overlaps,
        )
        self.scheduler = self.new_scheduler()
        self.in_flight: deque[tuple[StepOutput, set[tuple[int, int]]]] = deque()  # with who draws in it
        self.clients: dict[int, Client] = {}  # by seed
        self.waiting_first: list[tuple[int, int]] = []  # never started, in order of arrival
        self._next_seed = 1

    def arrive(self) -> None:
        """A random request comes."""
        request = self._random_request()
        try:
            sequences = self.scheduler.add(request, self.now_s)
        except QueueFullError as error:
            if "needs about" in error.message:
                assert request.time_left_s is not None
                self.seen.events["refused: too late"] += 1
                return
            assert self.scheduler.num_waiting + request.num_choices > 12
            self.seen.events["refused: queue full"] += 1
            return
        except RequestError:
            assert len(request.prompt_token_ids) >= self.scheduler.max_request_tokens
            self.seen.events["refused: too long"] += 1
            return
        limit = self.scheduler.max_request_tokens
        references = [run_alone(self.model, request, choice, limit, EOS) for choice in range(request.num_choices)]
        self.clients[request.params.seed] = Client(request, sequences, references)
        self.waiting_first += [(request.params.seed, sequence.choice) for sequence in sequences]

    def schedule(self) -> bool:
        """Schedule one step if there is one; the shards run it, its output is on the way."""
        self.now_s += 0.01
        before = list(self.scheduler._running)
        priorities = {one: one.priority for one in (*before, *self.scheduler._waiting)}
        step = self.scheduler.schedule(self.now_s)
        self._see_expired()
        self._check_pre_empted(before)
        self._check_places(priorities)
        if step is None:
            return False
        assert len(set(step.slot_rows)) == len(step.slot_rows), "a sequence is in the step twice"
        is_failing = self.failing_share > 0 and self.coin.random() < self.failing_share
        output = self.oracle.fail(step, "no memory") if is_failing else self.oracle.run(step)
        members = self.oracle.sequences(step)
        drawing = Counter(member for _output, earlier in self.in_flight for member in earlier)
        assert len(set(members)) == len(members)
        again = [member for member in members if drawing[member]]
        assert not again or self.overlaps, "scheduled again while its draw is in flight"
        assert step.token_ids.count(DRAWN_BEFORE) == len(again) == sum(drawing[member] for member in again)
        self.seen.events["overlapped"] += len(again)
        self._check_first_come_first_served(step)
        drawn = {member for member, is_drawn in zip(members, step.samples, strict=True) if is_drawn}
        self.in_flight.append((output, drawn))
        assert len(self.in_flight) == self.scheduler.num_steps_in_flight <= self.max_in_flight
        assert self.scheduler.num_running <= self.limits.max_num_seqs
        self._check_trials()
        self.seen.events["steps"] += 1
        self.seen.events["moved"] += len(step.moved)
        self.seen.events[f"{len(self.in_flight)} in flight"] += 1
        return True

    def step_back(self) -> None:
        """The oldest output on the way arrives."""
        output, _drawing = self.in_flight.popleft()
        self.now_s += 0.01
        waiting = set(self.scheduler._waiting)
        for news in self.scheduler.update(output, self.now_s):
            client = self.clients[news.sequence.params.seed]
            chunk = news.chunk
            assert client.finish_reasons[chunk.choice] is None, "tokens of a sequence that has ended"
            assert client.sequences[chunk.choice] is news.sequence
            assert chunk.first_index == len(client.token_ids[chunk.choice])
            if news.sequence in waiting:
                kind = "token" if chunk.finish_reason is None else "end"
                self.seen.events[f"{kind} of one that made way"] += 1
            client.token_ids[chunk.choice] += chunk.token_ids
            self.seen.events["cached"] += chunk.num_cached_tokens > 0
            assert chunk.num_cached_tokens < len(client.request.prompt_token_ids)
            client.logprobs[chunk.choice] += chunk.logprobs or []
            client.prompt_logprobs += chunk.prompt_logprobs or []
            client.finish_reasons[chunk.choice] = chunk.finish_reason
            if chunk.error is not None:
                client.failed.add(chunk.choice)
                self.seen.events["failed"] += 1
            if chunk.finish_reason == "stop":
                assert chunk.stop_token_id == chunk.token_ids[-1]
            else:
                assert chunk.stop_token_id is None

    def abort_someone(self) -> None:
        """A client leaves, with all its choices or one."""
        alive = [one for one in self.clients.values() if None in one.finish_reasons]
        if not alive:
            return
        preempted = [one for one in alive if any(map(_is_preempted, one.sequences))]
        client = self.coin.choice(preempted or alive)
        gone = client.sequences if self.coin.random() < 0.5 else [self.coin.choice(client.sequences)]
        for sequence in gone:
            if not sequence.is_finished:
                self.seen.abort_of(sequence)
                client.finish_reasons[sequence.choice] = "abort"
            self.scheduler.abort(sequence)

    def lose_shards(self) -> None:
        """The shards are gone, with their caches and what was on its way; what has come stands, and others go on."""
        self.seen.events["pre-emptions"] += self.scheduler.num_preemptions
        lost = {id(sequence) for step in self.scheduler._in_flight.values() for sequence in step.sequences}
        self.in_flight.clear()
        self.scheduler, self.oracle = self.new_scheduler(), CacheOracle(self.limits, self.model)
        self.waiting_first.clear()
        for seed, client in self.clients.items():
            ended = [reason is not None for reason in client.finish_reasons]
            if all(ended):
                continue
            is_suspect = any(id(sequence) in lost for sequence in client.sequences)
            progress = Progress(
                list(map(list, client.token_ids)),
                ended,
                len(client.prompt_logprobs),
                is_suspect=is_suspect,
                is_replayed=self.coin.random() < 0.5,
            )
            left_s = None if client.sequences[0].deadline_s is None else client.sequences[0].deadline_s - self.now_s
            request = replace(client.request, progress=progress, time_left_s=left_s)
            for sequence in self.scheduler.add(request, self.now_s):
                client.sequences[sequence.choice] = sequence
                self.waiting_first.append((seed, sequence.choice))
                self.seen.events["resumed"] += sequence.num_outputs > 0
            self.seen.events["suspects"] += is_suspect

    def pump(self) -> None:
        """Schedule until nothing more can be: what the step loop does. Some step must be on its way afterwards."""
        while self.schedule():
            pass
        assert self.in_flight or not self.scheduler.has_work, "deadlock"

    def drain(self) -> None:
        """No more requests: all that are here end, and everything is free."""
        self.pump()
        while self.in_flight:
            self.step_back()
            self.pump()
        self.scheduler.check()
        assert self.scheduler.num_waiting == self.scheduler.num_running == self.scheduler.num_steps_in_flight == 0
        assert self.scheduler.num_free_blocks == self.limits.num_blocks
        assert not self.scheduler._blocks._reservations
        assert 1 not in self.scheduler._blocks._states, "a block is reserved for nobody"

    def check_answers(self) -> None:
        """Each client has what its request gives when it runs alone; one that left has a beginning of it."""
        for client in self.clients.values():
            params = client.request.params
            for choice, reference in enumerate(client.references):
                got, reason = client.token_ids[choice], client.finish_reasons[choice]
                self.seen.events[f"ended by {reason}"] += 1
                if reason == "abort" or choice in client.failed:
                    assert got == reference.token_ids[: len(got)]
                else:
                    assert (got, reason) == (reference.token_ids, reference.finish_reason)
                wanted = enumerate(got, len(client.request.prompt_token_ids)) if params.num_logprobs is not None else ()
                assert client.logprobs[choice] == [logprob_at(token_id, position) for position, token_id in wanted]
            self._check_prompt_logprobs(client)

    def _check_prompt_logprobs(self, client: Client) -> None:
        """Each position once, in order; none is missing once the first token is out."""
        prompt = client.request.prompt_token_ids
        is_wanted = client.request.params.num_prompt_logprobs is not None
        all_of_them = [logprob_at(token_id, position) for position, token_id in enumerate(prompt)][1:]
        got = client.prompt_logprobs
        assert got == (all_of_them[: len(got)] if is_wanted else [])
        if is_wanted and client.token_ids[0]:
            assert len(got) == len(all_of_them)
            self.seen.events["prompt logprobs"] += 1
            self.seen.events["prompt logprobs over a pre-emption"] += client.sequences[0].num_preemptions > 0

    def _see_expired(self) -> None:
        """Nothing goes on whose time has passed; the clients know."""
        for client in self.clients.values():
            for sequence in client.sequences:
                is_late = sequence.deadline_s is not None and sequence.deadline_s <= self.now_s
                assert sequence.is_finished or not is_late
                if sequence.is_finished and is_late and client.finish_reasons[sequence.choice] is None:
                    client.finish_reasons[sequence.choice] = "abort"
                    self.seen.events["expired running" if sequence.last_step_id >= 0 else "expired waiting"] += 1

    def _check_pre_empted(self, before: list[Sequence]) -> None:
        """Of those that no step holds the last ones went; the first only for one that goes before it."""
        running = self.scheduler._running
        for victim in (one for one in before if one.state is SequenceState.WAITING):
            free = [one for one in running if one in before and one.num_steps_in_flight == 0]
            self.seen.events["made way"] += victim.num_steps_in_flight > 0
            assert all(one.priority <= victim.priority for one in free)
            if victim is before[0]:
                assert running[0].priority < victim.priority, "the first to come was pre-empted"
                self.seen.events["first one outranked"] += 1
            self.seen.events["outranked"] += any(one.priority < victim.priority for one in running if one not in before)

    def _check_places(self, before: dict[Sequence, int]) -> None:
        """Who was let past others keeps the place."""
        for sequence, priority in before.items():
            assert sequence.priority <= priority
            self.seen.events["let past"] += sequence.priority < priority

    def _check_first_come_first_served(self, step: StepInput) -> None:
        self.waiting_first = [
            (seed, choice)
            for seed, choice in self.waiting_first
            if not self.clients[seed].sequences[choice].is_finished
        ]
        for start in step.starts:
            started = (start.params.seed, start.choice)
            if started in self.waiting_first:
                request = self.clients[start.params.seed].request
                equal = [
                    one
                    for one in self.waiting_first
                    if self.clients[one[0]].request.owner == request.owner
                    and self.clients[one[0]].request.priority == request.priority
                ]
                assert equal[0] == started
                self.waiting_first.remove(started)

    def _check_trials(self) -> None:
        """A suspect's first steps and its draw are apart from those of others; what is replayed comes one by one."""
        on_trial = {one.request_id for one in self.scheduler._running if one.is_on_trial}
        assert len(on_trial) <= 1, "were a step lost now, nobody could tell of which request"
        step = next(reversed(self.scheduler._in_flight.values()))
        for index, sequence in enumerate(step.sequences):
            if sequence.is_suspect and step.samples[index]:
                assert sequence.is_on_trial or not on_trial
                self.seen.events["suspect drawn"] += 1
            start, end = step.num_computed[index], step.end_of(index)
            if sequence.num_replayed and sequence.num_prompt_tokens < end <= sequence.num_replayed:
                assert end - max(start, sequence.num_prompt_tokens) <= 1
                self.seen.events["replayed"] += 1

    def _random_request(self) -> GenerateRequest:
        coin, seed = self.coin, self._next_seed
        self._next_seed += 1
        longest = self.scheduler.max_request_tokens
        num_tokens = coin.choice([1, coin.randint(1, 8), coin.randint(1, longest - 1), coin.randint(1, longest + 2)])
        params = SamplingParams(
            max_tokens=coin.choice([1, 4, 20, 1000]),
            seed=seed,
            min_tokens=coin.choice([0, 0, 3]),
            stop_token_ids=tuple(coin.sample(range(29), coin.choice([0, 0, 2]))),
            ignore_eos=coin.random() < 0.5,
            repetition_penalty=coin.choice([1.0, 1.1]),
            num_logprobs=coin.choice([None, 0]),
            num_prompt_logprobs=coin.choice([None, None, 0]),
        )
        prompt = [coin.randrange(29) for _ in range(num_tokens)]
        if self.clients and coin.random() < 0.6:  # begins like another, or is one that goes on
            other = coin.choice(list(self.clients.values()))
            known = [*other.request.prompt_token_ids, *other.token_ids[0]]
            num_shared = coin.randint(0, num_tokens)
            prompt[:num_shared] = known[:num_shared]
        num_choices, owner = coin.choice([1, 1, 1, 2, 3]), coin.choice(self.owners)
        return GenerateRequest(
            f"request-{seed}",
            prompt,
            params,
            num_choices,
            owner=owner,
            priority=coin.choice(self.priorities),
            time_left_s=coin.choice([0.05, 0.5, 5.0]) if coin.random() < self.timed_share else None,
        )


def _is_preempted(sequence: Sequence) -> bool:
    return sequence.num_preemptions > 0 and sequence.state is SequenceState.WAITING


def random_limits(coin: random.Random) -> EngineLimits:
    """Small ones: blocks run out, budgets cut prompts into chunks."""
    block_size = coin.choice([1, 2, 4])
    max_num_seqs = coin.randint(1, 6)
    return EngineLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_seqs + coin.choice([0, 1, 5, 40]),
        max_model_len=coin.choice([10, 24, 40]),
        block_size=block_size,
        num_blocks=coin.randint(2, 32 // block_size),
    )


def run_world(
    seed: int,
    num_stages: int,
    seen: Seen,
    failing_share: float = 0.0,
    losses: float = 0.0,
    *,
    overlaps: bool = False,
    priorities: tuple[int, ...] = (0,),
    timed_share: float = 0.0,
) -> None:
    """Random events until the end of the day; some worlds are crowded, in some the outputs come late."""
    coin = random.Random(seed * 7919 + num_stages)
    world = World(
        seed,
        num_stages,
        random_limits(coin),
        seen,
        failing_share,
        overlaps=overlaps,
        priorities=priorities,
        timed_share=timed_share,
    )
    arrivals, lateness, leaving = coin.choice([0.1, 0.2, 0.6]), coin.choice([1.0, 2.0, 4.0]), coin.choice([0.0, 0.2])
    events = (world.arrive, world.schedule, world.step_back, world.abort_someone, world.lose_shards)
    for _ in range(NUM_EVENTS):
        (event,) = coin.choices(events, weights=(arrivals, lateness, 1.0, leaving, losses))
        if event == world.step_back and not world.in_flight:
            continue
        event()
        world.scheduler.check()
        if not world.in_flight and world.scheduler.has_work:
            assert world.schedule() or not world.scheduler.has_work, "deadlock: nothing in flight, and no step"
    world.drain()
    world.check_answers()
    seen.events["pre-emptions"] += world.scheduler.num_preemptions
    seen.events["cached tokens"] += world.scheduler.num_cached_tokens
