"""Text generation between processes: a request, the tokens that come back."""

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one request are drawn. Values are already checked; `seed` is always set."""

    max_tokens: int
    seed: int
    min_tokens: int = 0
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    allowed_token_ids: tuple[int, ...] = ()  # no other is drawn; empty: all are allowed
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_logprobs: int | None = None  # top alternatives beside the chosen token; 0: the chosen one only; None: off
    logprob_token_ids: tuple[
        int, ...
    ] = ()  # alternatives in place of the top ones, whatever their rank; empty: the top
    num_prompt_logprobs: int | None = None
    grammar: str | None = None  # that the text is held to, as preprocessing/grammar_text.py writes it; None: free

    @property
    def has_penalties(self) -> bool:
        """Whether the draw depends on the tokens before it."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """How tokens are drawn where a request does not say; None: as SamplingParams has it."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None  # of an answer in a conversation; a completion has its own


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a request had come when the copy that ran it was lost: another goes on behind it."""

    token_ids: list[list[int]]  # drawn and handed on, of each choice
    ended: list[bool]  # of each choice
    num_prompt_logprobs: int = 0  # handed on
    is_suspect: bool = False  # it ran in the step that was lost, which may be its doing
    is_replayed: bool = False  # token by token, as it was drawn: a prefill of many at once rounds differently


LAST_PRIORITY = 1000  # that of a batch's requests: who has it waits on purpose, and is in no histogram of waiting


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation request as it enters a Router: tokens only."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    num_choices: int = 1
    queue_timeout_s: float | None = None
    cache_salt: str = ""  # what is computed of a prompt is shared under one salt only
    progress: Progress | None = None  # None: it begins
    owner: str = ""  # whose it is: owners share a copy by tokens
    priority: int = 0  # the lowest comes first
    time_left_s: float | None = None  # from when it was sent; None: any
    session: str = ""  # a digest of the conversation's name: its requests go to one copy where that pays
    trace: dict[str, str] = field(default_factory=dict)  # its W3C trace context; empty: it is not traced


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probability (natural) of one token and of the most probable alternatives, under the unmodified logits."""

    token_id: int
    logprob: float
    rank: int  # 1: the most probable token
    top_token_ids: list[int]
    top_logprobs: list[float]


@dataclass(slots=True)  # not frozen: to make one that is takes longer than all else that is done with it
class OutputChunk:
    """New tokens of one choice of one request, in order. Nobody changes it."""

    choice: int
    first_index: int  # index of token_ids[0] among the choice's outputs: a gap shows as a jump
    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None  # one per token, when asked for
    prompt_logprobs: list[TokenLogprobs] | None = None  # prompt tokens 1..; sent in pieces with choice 0
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None  # the token that ended it; the last of token_ids
    num_cached_tokens: int = 0  # of the prompt; with the first token of choice 0
    error: str | None = None  # beside finish_reason "error": what was wrong, and what to do; None: see the log
    is_request_at_fault: bool = False  # beside error: the same request would fail anywhere


@dataclass(frozen=True, slots=True)
class Completion:
    """What a Router's unary call returns when a request has ended: counts to check the stream against."""

    num_prompt_tokens: int
    num_output_tokens: list[int]  # per choice
    finish_reasons: list[FinishReason]  # per choice
