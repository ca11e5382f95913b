"""A Scheduler of the size of a test, and steps that are answered by hand."""

from serve_app.scheduling.output import SequenceOutput
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import FinishReason, GenerateRequest, OutputChunk, SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import StepInput, StepOutput

EOS = 2


def scheduler_of(
    *,
    num_stages: int = 1,
    max_num_seqs: int = 8,
    budget: int = 64,
    max_model_len: int = 64,
    num_blocks: int = 64,
    max_queued: int = 16,
    prefill_budget: int | None = None,
) -> Scheduler:
    limits = EngineLimits(max_num_seqs, budget, max_model_len, block_size=4, num_blocks=num_blocks)
    return Scheduler(
        limits,
        num_stages=num_stages,
        max_queued=max_queued,
        max_num_prefill_tokens=prefill_budget,
        eos_token_ids=frozenset({EOS}),
    )


def request_of(
    num_tokens: int, *, seed: int = 1, num_choices: int = 1, params: SamplingParams | None = None
) -> GenerateRequest:
    params = params or SamplingParams(max_tokens=32, seed=seed)
    return GenerateRequest(f"request-{seed}", [10 + index for index in range(num_tokens)], params, num_choices)


def scheduled(scheduler: Scheduler) -> StepInput:
    step = scheduler.schedule()
    assert step is not None
    return step


def answered(scheduler: Scheduler, step: StepInput, token_id: int = 7) -> list[SequenceOutput]:
    """Every draw of the step gives the same token."""
    return scheduler.update(StepOutput(step.step_id, [token_id] * sum(step.samples)))


def chunks_of(scheduler: Scheduler, tokens: list[int]) -> list[OutputChunk]:
    """Run the only sequence with these draws, until it ends or they do."""
    chunks: list[OutputChunk] = []
    for token_id in tokens:
        if not scheduler.has_work:
            break
        chunks += [output.chunk for output in answered(scheduler, scheduled(scheduler), token_id)]
    return chunks


def ends(params: SamplingParams, tokens: list[int], **limits: int) -> tuple[int, FinishReason | None, int | None]:
    """Outputs of a request of three prompt tokens, why it ended, and the token that stopped it."""
    scheduler = scheduler_of(**limits)
    scheduler.add(request_of(3, params=params))
    chunks = chunks_of(scheduler, tokens)
    assert scheduler.has_work == (chunks[-1].finish_reason is None)
    assert [chunk.first_index for chunk in chunks] == list(range(len(chunks)))
    return sum(len(chunk.token_ids) for chunk in chunks), chunks[-1].finish_reason, chunks[-1].stop_token_id
