"""The steps that take the most memory, made up to measure it: their tokens mean nothing."""

from serve_app.types.generation import SamplingParams
from serve_app.types.shards import EngineLimits
from serve_app.types.steps import MAX_LOGPROB_TOKENS, PromptTargets, SequenceStart, StepInput

_NUM_TOP = 20  # alternatives of each token: the most that clients may ask for by the OpenAI API
_WIDEST = SamplingParams(
    max_tokens=2,
    seed=0,
    top_p=0.9,
    min_p=0.01,
    repetition_penalty=1.1,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    ignore_eos=True,
    num_logprobs=_NUM_TOP,
    num_prompt_logprobs=_NUM_TOP,
)


def num_step_blocks(limits: EngineLimits) -> int:
    """KV blocks that the largest steps need: those of the tokens of one step, not those of a context."""
    return sum(-(-count // limits.block_size) for count in _spread(limits))


def largest_steps(limits: EngineLimits, vocab_size: int) -> list[StepInput]:
    """Steps that a shard runs in this order, in `num_step_blocks` blocks.

    As many sequences as there may be, in a step as large as there may be, each drawn with all that sampling has. Then
    the last chunk of the longest context, whose earlier keys and values are those of a few blocks over and over.
    """
    return [_widest_step(limits, vocab_size), _longest_step(limits, vocab_size)]


def _widest_step(limits: EngineLimits, vocab_size: int) -> StepInput:
    num_tokens = _spread(limits)
    new_blocks: list[list[int]] = []
    targets: dict[int, PromptTargets] = {}
    num_blocks = num_targets = 0
    for index, count in enumerate(num_tokens):
        taken = -(-count // limits.block_size)
        new_blocks.append(list(range(num_blocks, num_blocks + taken)))
        num_blocks += taken
        num_asked = min(count - 1, MAX_LOGPROB_TOKENS - num_targets)
        if num_asked > 0:
            targets[index] = PromptTargets(0, [0] * num_asked, _NUM_TOP)
            num_targets += num_asked
    return StepInput(
        step_id=0,
        starts=[_start(slot_row) for slot_row in range(len(num_tokens))],
        slot_rows=list(range(len(num_tokens))),
        num_tokens=num_tokens,
        num_computed=[0] * len(num_tokens),
        new_blocks=new_blocks,
        token_ids=_token_ids(sum(num_tokens), vocab_size),
        samples=[True] * len(num_tokens),
        prompt_targets=targets,
    )


def _longest_step(limits: EngineLimits, vocab_size: int) -> StepInput:
    num_tokens = min(limits.max_num_batched_tokens, limits.max_model_len)
    num_blocks = num_step_blocks(limits)
    return StepInput(
        step_id=1,
        starts=[_start(0)],
        slot_rows=[0],
        num_tokens=[num_tokens],
        num_computed=[limits.max_model_len - num_tokens],
        new_blocks=[[index % num_blocks for index in range(limits.max_blocks_per_seq)]],
        token_ids=_token_ids(num_tokens, vocab_size),
        samples=[True],
    )


def _spread(limits: EngineLimits) -> list[int]:
    """Tokens of each sequence of the widest step, as even as can be."""
    least, num_longer = divmod(limits.max_num_batched_tokens, limits.max_num_seqs)
    counts = [least + (index < num_longer) for index in range(limits.max_num_seqs)]
    return [min(count, limits.max_model_len) for count in counts if count]


def _start(slot_row: int) -> SequenceStart:
    return SequenceStart(slot_row, 0, _WIDEST, [], 0, [0], 1)


def _token_ids(count: int, vocab_size: int) -> list[int]:
    return [index % vocab_size for index in range(count)]
