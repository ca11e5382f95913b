"""Split models give the tokens and the log-probabilities that transformers gives (fp32)."""

import asyncio
import time
import pytest

from serve_app.engine.plain_processes import PlainProcesses
from serve_app.types import EngineLimits
from tests.checkpoints import ARCHITECTURES
from tests.parity.comparison import LOGPROB_TOLERANCE, Comparison, logprob_error
from tests.parity.conftest import NUM_OUTPUTS, References
from tests.plain_driver import Split, greedy, load_group, plain_copy

SPLITS = (Split(1, 1), Split(2, 1), Split(1, 2), Split(2, 2), Split(3, 1))
# Eight sequences of up to 72 tokens want 144 blocks; prompts above 32 tokens are prefilled in chunks.
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=32, max_model_len=128, block_size=4, num_blocks=64)


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return Comparison()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_output_of_the_checkpoint_is_varied(reference_of: References, name: str) -> None:
    _, references = reference_of(name)
    assert min(len(set(reference.token_ids)) for reference in references) >= 8


@pytest.mark.parametrize("split", SPLITS, ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
async def test_batches_and_single_requests_give_what_transformers_gives(
    pool: PlainProcesses, reference_of: References, comparison: Comparison, name: str, split: Split
) -> None:
    import psutil
    def cpu(): return sum(sum(psutil.Process(p.pid).cpu_times()[:2]) for p in pool.processes)+time.process_time()
    t0=cpu(); w0=time.time()
    directory, references = reference_of(name)
    t1=cpu()
    load_group(pool, directory, split, block_size=LIMITS.block_size)
    t2=cpu()
    async with plain_copy(pool, split, LIMITS) as copy:
        batch = await copy.generate(
            (
                greedy(f"batch {index}", reference.prompt, NUM_OUTPUTS, with_prompt_logprobs=True)
                for index, reference in enumerate(references)
            ),
            gap_s=0.003,
        )
        num_preemptions = copy.scheduler.num_preemptions
        t3=cpu()
        singles = []
        for index, reference in enumerate(references):
            singles += await copy.generate([greedy(f"single {index}", reference.prompt, NUM_OUTPUTS)])
        t4=cpu()
    print('WALL %.1f'%(time.time()-w0),name,split,'pre',num_preemptions,'ref %.2f load %.2f batch %.2f single %.2f err %.1e'%(t1-t0,t2-t1,t3-t2,t4-t3,max(map(logprob_error, references, batch))))
    comparison.add(f"{name} {split} batch", references, batch)
    comparison.add(f"{name} {split} single", references, singles)
    assert num_preemptions > 0
    assert max(map(logprob_error, references, batch)) < LOGPROB_TOLERANCE
    assert comparison.problems() == []
