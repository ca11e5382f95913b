"""Chats on several copies of a model whose schedulers and prefix caches are real, and whose time is not."""

import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean

from serve_app.backend.copy_choice import Choice, CopyChooser
from serve_app.backend.prompt_marks import RoutedPrompt
from serve_app.scheduling.block_manager import extend_keys
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput

BLOCK = 16
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=512, max_model_len=4096, block_size=BLOCK, num_blocks=800)
_STEP_S, _TOKEN_S = 0.005, 0.0005  # what a step takes, and each token in it


@dataclass
class SimulatedCopy:
    """One copy."""

    replica_id: str
    scheduler: Scheduler = field(default_factory=lambda: Scheduler(LIMITS, num_stages=1, max_queued=10_000))
    step: StepInput | None = None
    most_load: float = 0.0
    num_blocks: int = LIMITS.num_blocks

    @property
    def load(self) -> float:
        """As a single Gateway sees it, which has sent all that is there."""
        return self.scheduler.num_running + self.scheduler.num_waiting


@dataclass
class Turn:
    """One request of a chat."""

    prompt: list[int]
    num_answer_tokens: int
    sent_s: float
    salt: str = ""
    session: str = ""
    num_reusable: int = 0  # prompt tokens that one cache, of any size, would have had when it came
    first_s: float | None = None  # until its first token
    then: Callable[["Turn", float, list[int]], None] = lambda *_: None
    answer: list[int] = field(default_factory=list)


Chooser = Callable[[Sequence[SimulatedCopy], Turn], SimulatedCopy]


class ByPrefix:
    """As one Gateway chooses."""

    def __init__(self) -> None:
        self.chooser = CopyChooser()
        self.choices: list[Choice] = []

    def __call__(self, copies: Sequence[SimulatedCopy], turn: Turn) -> SimulatedCopy:
        """A copy for the turn."""
        prompt = RoutedPrompt(turn.prompt, BLOCK, turn.salt, turn.session)
        copy, choice = self.chooser.choose(copies, prompt)
        self.chooser.note_sent(copy, prompt, choice)
        self.chooser.note_ended(prompt.num_tokens - choice.num_held_tokens, turn.num_answer_tokens)
        self.choices.append(choice)
        return copy


class PowerOfTwo:
    """The less busy one of two that are drawn."""

    def __init__(self, seed: int = 0) -> None:
        self._draw = random.Random(seed)

    def __call__(self, copies: Sequence[SimulatedCopy], _turn: Turn) -> SimulatedCopy:
        """A copy for any turn."""
        return min(self._draw.sample(list(copies), 2), key=lambda copy: copy.load)


class Simulation:
    """Requests, copies and a clock."""

    def __init__(self, choose: Chooser | Sequence[Chooser], num_copies: int = 3, seed: int = 0) -> None:
        """choose: of one Gateway, or of several, which get the turns in random order."""
        self._gateways = [choose] if callable(choose) else list(choose)
        self._draw = random.Random(seed)
        self.copies = [SimulatedCopy(f"copy-{index}") for index in range(num_copies)]
        self.turns: list[Turn] = []
        self.num_hits = 0  # of what is reusable
        self.draw = random.Random(seed)
        self._known: set[bytes] = set()  # blocks that were computed anywhere
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._number = itertools.count()

    @property
    def hit_share(self) -> float:
        """Of the reusable prompt tokens, those that were found."""
        return self.num_hits / sum(turn.num_reusable for turn in self.turns)

    @property
    def first_s(self) -> float:
        """Mean time to first token."""
        return mean(turn.first_s for turn in self.turns if turn.first_s is not None)

    def at(self, when_s: float, act: Callable[[float], None]) -> None:
        """Do something then."""
        heapq.heappush(self._events, (when_s, next(self._number), act))

    def send(self, turn: Turn) -> None:
        """A request comes."""
        self.turns.append(turn)
        keys = self._keys(turn, turn.prompt[:-1])
        turn.num_reusable = BLOCK * next((i for i, key in enumerate(keys) if key not in self._known), len(keys))
        copy = self._draw.choice(self._gateways)(self.copies, turn)
        params = SamplingParams(turn.num_answer_tokens, seed=0, ignore_eos=True)
        name = str(len(self.turns) - 1)
        copy.scheduler.add(GenerateRequest(name, turn.prompt, params, cache_salt=turn.salt))
        copy.most_load = max(copy.most_load, copy.load)
        self._go_on(copy, turn.sent_s)

    def run(self) -> None:
        """To the end of all requests."""
        while self._events:
            when_s, _, act = heapq.heappop(self._events)
            act(when_s)

    def _go_on(self, copy: SimulatedCopy, now_s: float) -> None:
        if copy.step is None and (step := copy.scheduler.schedule()) is not None:
            copy.step = step
            self.at(now_s + _STEP_S + _TOKEN_S * len(step.token_ids), lambda then_s: self._end_step(copy, then_s))

    def _end_step(self, copy: SimulatedCopy, now_s: float) -> None:
        step, copy.step = copy.step, None
        assert step is not None
        drawn = [self.draw.randrange(1000, 2000) for _ in range(sum(step.samples))]
        for output in copy.scheduler.update(StepOutput(step.step_id, drawn)):
            turn = self.turns[int(output.sequence.request_id)]
            self.num_hits += min(output.chunk.num_cached_tokens, turn.num_reusable)
            turn.answer += output.chunk.token_ids
            turn.first_s = now_s - turn.sent_s if turn.first_s is None else turn.first_s
            if output.chunk.finish_reason is not None:
                self._known.update(self._keys(turn, [*turn.prompt, *turn.answer[:-1]]))
                turn.then(turn, now_s, turn.answer)
        self._go_on(copy, now_s)

    def _keys(self, turn: Turn, token_ids: list[int]) -> list[bytes]:
        keys: list[bytes] = []
        extend_keys(keys, token_ids, len(token_ids) // BLOCK, BLOCK, turn.salt)
        return keys


@dataclass(frozen=True)
class Chats:
    """Conversations over one system prompt, each with a document of its own."""

    num_chats: int = 15
    num_turns: int = 6
    num_system_tokens: int = 160
    num_document_tokens: int = 400
    num_question_tokens: int = 24
    num_answer_tokens: int = 32
    arrivals_s: float = 0.4  # between two chats
    pause_s: float = 2.0  # between an answer and the next question
    has_sessions: bool = False

    def start(self, simulation: Simulation) -> None:
        """Let them come as a Poisson process."""
        draw, now_s = random.Random(1), 0.0
        system = [draw.randrange(1000) for _ in range(self.num_system_tokens)]
        for number in range(self.num_chats):
            history = system + [draw.randrange(1000) for _ in range(self.num_document_tokens)]
            self._ask(simulation, history, now_s, 1, f"chat-{number}" if self.has_sessions else "")
            now_s += draw.expovariate(1 / self.arrivals_s)

    def _ask(self, simulation: Simulation, history: list[int], when_s: float, turn_number: int, session: str) -> None:
        def go_on(turn: Turn, now_s: float, answer: list[int]) -> None:
            if turn_number < self.num_turns:
                pause_s = simulation.draw.expovariate(1 / self.pause_s)
                self._ask(simulation, [*turn.prompt, *answer], now_s + pause_s, turn_number + 1, session)

        def send(now_s: float) -> None:
            question = [simulation.draw.randrange(1000) for _ in range(self.num_question_tokens)]
            prompt = history + question
            simulation.send(Turn(prompt, self.num_answer_tokens, now_s, session=session, then=go_on))

        simulation.at(when_s, send)
