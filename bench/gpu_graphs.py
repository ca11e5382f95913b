"""Decoding by captured steps against the same steps launched kernel by kernel, while sequences join and leave."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.engine_alone import EngineAlone
from bench.generated import Generated, WorkItem
from bench.gpu_device import Bench
from bench.gpu_part import Note, Rows
from bench.random_llama import SIZES, make_model, stage_of
from bench.workload import equal_workload, poisson_workload
from serve_app.engine import decode_graphs
from serve_app.models.torch_dtypes import DTYPE_NAMES
from serve_app.models.transformers_model import TransformersStage
from serve_app.types.shards import EngineLimits

HEADER = f"{'model':>6} {'dtype':>8} {'tokens/s':>9} {'with graphs':>11} {'ratio':>6} {'capture s':>9}  tokens"
_NUM_SEQUENCES = 64
_MAX_PROMPT_TOKENS = 96
_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class _Job:
    size: str
    dtype: torch.dtype
    max_num_seqs: int  # fewer than sequences: one joins when one leaves
    output_tokens: tuple[int, int]


# float32: rounding leaves tokens as they are, so that any difference is the graphs'. bfloat16: as it is served; rows of
# padding may have cuBLAS take another kernel, whose last bits are others.
_JOBS = (
    _Job("120M", torch.float32, 24, (4, 28)),
    _Job("1B", torch.bfloat16, 64, (64, 128)),
)


@dataclass(frozen=True, slots=True)
class GraphRow:
    """Speed with and without graphs, and how many sequences differ."""

    model: str
    dtype: str
    eager_tokens_per_s: float
    graph_tokens_per_s: float
    capture_s: float  # of an engine's making, graphs and all
    num_sequences: int
    num_different: int
    warnings: list[str]  # of the engine: why steps are not captured

    @property
    def problem(self) -> str | None:
        """Other tokens in float32, or no graphs."""
        if self.warnings:
            return "; ".join(self.warnings)
        if self.dtype == "float32" and self.num_different:
            return f"{self.num_different} of {self.num_sequences} sequences have other tokens with graphs"
        return None

    def __str__(self) -> str:
        ratio = self.graph_tokens_per_s / self.eager_tokens_per_s
        speeds = f"{self.eager_tokens_per_s:9.1f} {self.graph_tokens_per_s:11.1f} {ratio:6.2f} {self.capture_s:9.1f}"
        return (
            f"{self.model:>6} {self.dtype:>8} {speeds}  {self.num_different} of {self.num_sequences} sequences differ"
        )


def check_graphs(bench: Bench) -> Rows:
    """A row for each model."""
    if not bench.is_cuda:
        yield Note("not on cpu: nothing is captured there")
        return
    for job in _JOBS:
        yield _measure(job, bench.device)


class _Warnings(logging.Handler):
    """What the engine warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _measure(job: _Job, device: torch.device) -> GraphRow:
    stage = stage_of(make_model(SIZES[job.size], job.dtype, device))
    vocab_size = SIZES[job.size].vocab_size
    drawn = poisson_workload(_NUM_SEQUENCES, 1.0, (4, _MAX_PROMPT_TOKENS), job.output_tokens, vocab_size)
    items = [WorkItem(0.0, one.prompt_token_ids, one.num_outputs) for one in drawn]
    warm_up = equal_workload(job.max_num_seqs, 8, 4, vocab_size)
    eager = EngineAlone(stage, _limits(job), device, has_graphs=False)
    eager.run(warm_up)
    expected = eager.run(items)
    del eager
    graphed, capture_s, warnings = _captured(stage, job, device)
    graphed.run(warm_up)
    found = graphed.run(items)
    return GraphRow(
        job.size,
        DTYPE_NAMES[job.dtype],
        tokens_per_s(expected),
        tokens_per_s(found),
        capture_s,
        len(items),
        sum(one.token_ids != other.token_ids for one, other in zip(expected, found, strict=True)),
        warnings,
    )


def _captured(stage: TransformersStage, job: _Job, device: torch.device) -> tuple[EngineAlone, float, list[str]]:
    """An engine, the seconds of its making, and what it has warned of."""
    handler = _Warnings()
    decode_graphs.logger.addHandler(handler)
    begin_s = time.perf_counter()
    try:
        engine = EngineAlone(stage, _limits(job), device)
        torch.cuda.synchronize(device)
    finally:
        decode_graphs.logger.removeHandler(handler)
    return engine, time.perf_counter() - begin_s, handler.texts


def tokens_per_s(answers: Sequence[Generated]) -> float:
    """Of a run whose requests are there from the begin."""
    return sum(len(one.token_ids) for one in answers) / max(one.times_s[-1] for one in answers)


def _limits(job: _Job) -> EngineLimits:
    max_model_len = _MAX_PROMPT_TOKENS + job.output_tokens[1]
    return EngineLimits(
        max_num_seqs=job.max_num_seqs,
        max_num_batched_tokens=512,
        max_model_len=max_model_len,
        block_size=_BLOCK_SIZE,
        num_blocks=(job.max_num_seqs + 1) * (-(-max_model_len // _BLOCK_SIZE) + 1),
    )
