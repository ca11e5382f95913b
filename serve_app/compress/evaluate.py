"""What a model has lost: perplexity, divergence from the original, agreement on the next token, exact answers.

Perplexity is exp of the mean negative log-likelihood per token. Its standard error follows from the sequences' own
means (they are independent, tokens of one sequence are not) by the delta method.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from serve_app.compress.texts import TaskExample
from serve_app.errors import ConfigError
from serve_app.preprocessing.tokenizer import Tokenizer

NUM_TOP = 20  # tokens that a served model gives at each place
_BATCH_TOKENS = 1024
_SMALLEST = 1e-9  # of the probability that is left for all other tokens


class Scored(Protocol):
    """A model that gives logits."""

    tokenizer: Tokenizer

    def logits(self, sequences: Sequence[Sequence[int]]) -> Tensor: ...

    def generate(self, prompts: Sequence[list[int]], max_tokens: int) -> list[list[int]]: ...


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Over `num_tokens` tokens."""

    value: float
    standard_error: float
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Divergence:
    """How far a model's next-token distributions are from the original's."""

    kl: float  # KL(original || model), nats, mean over tokens
    kl_standard_error: float
    top1_agreement: float  # share of tokens where both have the same most probable next token
    num_tokens: int


@dataclass(frozen=True, slots=True)
class TextScore:
    """What a model says of one text, from its second token on."""

    token_ids: list[int]
    logprobs: list[float]  # of those tokens, natural
    tops: list[
        dict[int, float]
    ]  # in the place of each, the NUM_TOP most probable tokens with their logprobs, best first

    @property
    def best_ids(self) -> list[int]:
        """The most probable token in the place of each."""
        return [next(iter(top)) for top in self.tops]


@dataclass(frozen=True, slots=True)
class TaskScore:
    """Exact answers."""

    task: str
    num_exact: int
    num_examples: int


@dataclass(frozen=True, slots=True)
class Quality:
    """A model beside its original on the same texts."""

    original: Perplexity
    model: Perplexity
    divergence: Divergence

    @property
    def perplexity_increase(self) -> float:
        """As a share of the original's."""
        return self.model.value / self.original.value - 1


@dataclass(frozen=True, slots=True)
class Labelling:
    """What a classifier makes of labelled texts, beside its original."""

    num_right: int
    original_num_right: int
    num_texts: int
    agreement: float  # share of texts that both give the same label
    kl: float  # KL(original || model) of the labels' probabilities, nats, mean over texts


def compare(original: Scored, model: Scored, sequences: Sequence[list[int]]) -> Quality:
    """Both models on the same token sequences, each of at least two tokens."""
    sums = {"original": _Sums(), "model": _Sums(), "kl": _Sums()}
    num_agreeing = num_tokens = 0
    for batch in tqdm(list(_batches(sequences)), desc="evaluate", unit="batch", disable=None):
        ours, theirs = (_logprobs(one, batch) for one in (model, original))
        start = 0
        for sequence in batch:
            rows = slice(start, start + len(sequence) - 1)
            targets = torch.tensor(sequence[1:])[:, None]
            sums["original"].add(-theirs[rows].gather(1, targets).sum().item(), len(sequence) - 1)
            sums["model"].add(-ours[rows].gather(1, targets).sum().item(), len(sequence) - 1)
            divergences = (theirs[rows].exp() * (theirs[rows] - ours[rows])).sum(dim=1)
            sums["kl"].add(divergences.sum().item(), len(sequence) - 1)
            num_agreeing += int((ours[rows].argmax(1) == theirs[rows].argmax(1)).sum())
            num_tokens += len(sequence) - 1
            start += len(sequence)
    kl = sums["kl"]
    divergence = Divergence(kl.mean, kl.standard_error, num_agreeing / num_tokens, num_tokens)
    return Quality(_perplexity(sums["original"]), _perplexity(sums["model"]), divergence)


def perplexity_of(scores: Sequence[TextScore]) -> Perplexity:
    """Of a model, from what it says of texts."""
    sums = _Sums()
    for score in scores:
        sums.add(-sum(score.logprobs), len(score.logprobs))
    return _perplexity(sums)


def top1_agreement(original: Sequence[TextScore], model: Sequence[TextScore]) -> float:
    """The share of tokens where both have the same most probable one. Raises ConfigError for different tokenizers."""
    num_agreeing = num_tokens = 0
    for theirs, ours in zip(original, model, strict=True):
        if theirs.token_ids != ours.token_ids:
            raise ConfigError("the two models have different tokenizers, so their tokens cannot be compared")
        num_agreeing += sum(one == two for one, two in zip(theirs.best_ids, ours.best_ids, strict=True))
        num_tokens += len(theirs.best_ids)
    return num_agreeing / num_tokens


def kl_lower_bound(original: Sequence[TextScore], model: Sequence[TextScore]) -> float:
    """KL(original || model), nats, mean over tokens, counting all tokens that one of them does not list as one.

    Never more than the divergence over all tokens (the data processing inequality).
    """
    total, num_tokens = 0.0, 0
    for theirs, ours in zip(original, model, strict=True):
        for their_top, our_top in zip(theirs.tops, ours.tops, strict=True):
            shared = [(their_top[token], our_top[token]) for token in their_top.keys() & our_top.keys()]
            rests = [math.log(max(_SMALLEST, 1 - sum(math.exp(pair[side]) for pair in shared))) for side in (0, 1)]
            total += sum(math.exp(one) * (one - two) for one, two in [*shared, (rests[0], rests[1])])
            num_tokens += 1
    return total / num_tokens


def perplexity(model: Scored, sequences: Sequence[list[int]]) -> Perplexity:
    """Of one model on token sequences, each of at least two tokens."""
    sums = _Sums()
    for batch in _batches(sequences):
        logprobs = _logprobs(model, batch)
        start = 0
        for sequence in batch:
            rows = logprobs[start : start + len(sequence) - 1]
            sums.add(-rows.gather(1, torch.tensor(sequence[1:])[:, None]).sum().item(), len(sequence) - 1)
            start += len(sequence)
    return _perplexity(sums)


def score_tasks(model: Scored, examples: Sequence[TaskExample], max_tokens: int) -> list[TaskScore]:
    """Greedy answers held against the right ones, by task."""
    prompts = [model.tokenizer.encode(example.prompt) for example in examples]
    answers = model.generate(prompts, max_tokens)
    return score_answers(examples, [model.tokenizer.decode_after(*pair) for pair in zip(prompts, answers, strict=True)])


def score_answers(examples: Sequence[TaskExample], answers: Sequence[str]) -> list[TaskScore]:
    """Answers held against the right ones, by task."""
    scores = []
    for task in dict.fromkeys(example.task for example in examples):
        own = [index for index, example in enumerate(examples) if example.task == task]
        num_exact = sum(answers[index].strip() == examples[index].answer.strip() for index in own)
        scores.append(TaskScore(task, num_exact, len(own)))
    return scores


class _Sums:
    """A mean over tokens of many sequences, and how sure it is."""

    def __init__(self) -> None:
        self._parts: list[tuple[float, int]] = []

    def add(self, total: float, count: int) -> None:
        self._parts.append((total, count))

    @property
    def num_tokens(self) -> int:
        return sum(count for _total, count in self._parts)

    @property
    def mean(self) -> float:
        return sum(total for total, _count in self._parts) / self.num_tokens

    @property
    def standard_error(self) -> float:
        """Of a ratio of sums over independent sequences (Cochran, Sampling Techniques, 2.11)."""
        if len(self._parts) < 2:
            return math.nan
        spread = sum((total - self.mean * count) ** 2 for total, count in self._parts)
        return math.sqrt(spread * len(self._parts) / (len(self._parts) - 1)) / self.num_tokens


def _perplexity(sums: _Sums) -> Perplexity:
    value = math.exp(min(sums.mean, 700.0))
    return Perplexity(value, value * sums.standard_error, sums.num_tokens)


def _batches(sequences: Sequence[list[int]]) -> Iterator[list[list[int]]]:
    """Sequences in their order, a bounded number of tokens at a time."""
    waiting: list[list[int]] = []
    for sequence in sequences:
        if waiting and sum(map(len, waiting)) + len(sequence) > _BATCH_TOKENS:
            yield waiting
            waiting = []
        waiting.append(sequence)
    if waiting:
        yield waiting


def _logprobs(model: Scored, batch: list[list[int]]) -> Tensor:
    """[T, V] float64, natural."""
    return model.logits(batch).to(torch.float64).log_softmax(dim=-1)


def take(sequences: Iterator[list[int]], count: int | None) -> list[list[int]]:
    """The first `count` of them; None: all."""
    return list(sequences if count is None else islice(sequences, count))
