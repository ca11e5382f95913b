"""What a copy of a model was predicted to take and do, beside what it takes and does."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class MemoryTaken:
    """What a shard's process says of its memory, in bytes."""

    kv_cache_bytes: int  # of its tensors
    process_bytes: int  # of the host's memory, resident
    device_bytes: int | None = None  # held for tensors on its GPU, in use or not; None: it runs on CPU


@dataclass(frozen=True, slots=True)
class PredictedBytes:
    """What one shard was to take."""

    weights_bytes: int
    kv_cache_bytes: int
    activation_bytes: int
    reserve_bytes: int
    total_bytes: int


@dataclass(frozen=True, slots=True)
class MeasuredBytes:
    """What one shard takes; None: it has not said yet. total_bytes: of its GPU, or of the host where it runs on CPU."""

    weights_bytes: int
    kv_cache_bytes: int | None = None
    process_bytes: int | None = None
    device_bytes: int | None = None
    total_bytes: int | None = None

    @classmethod
    def of(cls, weights_bytes: int, taken: MemoryTaken | None) -> "MeasuredBytes":
        """What was loaded, and what the process says."""
        if taken is None:
            return cls(weights_bytes)
        total = taken.process_bytes if taken.device_bytes is None else taken.device_bytes
        return cls(weights_bytes, taken.kv_cache_bytes, taken.process_bytes, taken.device_bytes, total)


@dataclass(frozen=True, slots=True)
class ShardAccount:
    """One shard of a copy: `layers` are [first, end)."""

    stage: int
    rank: int
    layers: tuple[int, int]
    predicted: PredictedBytes | None
    measured: MeasuredBytes | None  # None: it is being started


@dataclass(frozen=True, slots=True)
class Rates:
    """What one copy was predicted to do with sequences of `context_tokens`."""

    context_tokens: int
    prefill_tokens_per_s: float
    time_to_first_token_s: float  # of a prompt of context_tokens, nothing else running
    decode_tokens_per_s: float  # of one sequence alone
    decode_sequences: int  # as many as run at once
    total_decode_tokens_per_s: float  # of all of them together
    bound: str  # what decoding all of them waits for


@dataclass(frozen=True, slots=True)
class EntryRates:
    """What one copy of a model that is done after one step was predicted to do."""

    tokens: int | None  # of each text; None: it takes tensors
    entries_in_step: int
    entries_per_s: float  # in full steps
    latency_s: float  # of one entry, nothing else running
    bound: str  # what full steps wait for


@dataclass(frozen=True, slots=True)
class SeenRates:
    """What one copy has done of late; None: too little to tell."""

    prefill_tokens_per_s: float | None = None  # of prompts, in steps that have some, whatever decodes beside them
    decode_tokens_per_s: float | None = None  # of all sequences together, in steps without prompts
    decode_sequences: float | None = None  # in such a step
    entries_per_s: float | None = None  # of models that are done after one step, all of an application together


@dataclass(frozen=True, slots=True)
class CopyAccount:
    """One model of one copy."""

    model: str
    replica_id: str
    device: str | None  # that it was planned on
    shards: list[ShardAccount]
    predicted: Rates | None  # of a model that generates
    measured: SeenRates
    notes: list[str] = field(default_factory=list)  # why something was not predicted
    predicted_entries: EntryRates | None = None  # of a model that is done after one step
