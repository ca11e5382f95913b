"""The blocks of running sequences: beginnings that they share, and runs that they are moved into."""

from serve_app.scheduling.block_manager import BlockManager, extend_keys
from serve_app.scheduling.sequence import Sequence
from serve_app.scheduling.step import Step

_BLOCKS_BETWEEN_JOINS = 16


class SequenceBlocks:
    """What is done to block tables while a step is filled.

    has_prefix_cache: others may find full blocks. joins_blocks: so that attention reads them in place.
    """

    def __init__(self, blocks: BlockManager, block_size: int, *, has_prefix_cache: bool, joins_blocks: bool) -> None:
        self._blocks = blocks
        self._block_size = block_size
        self._has_prefix_cache = has_prefix_cache
        self._joins_blocks = joins_blocks

    def find_prefix(self, sequence: Sequence) -> list[int]:
        """Blocks that hold the beginning of a sequence already; its last token is always computed."""
        if not self._has_prefix_cache or sequence.params.num_prompt_logprobs is not None:
            return []
        num_blocks = (len(sequence.token_ids) - 1) // self._block_size
        extend_keys(sequence.block_keys, sequence.token_ids, num_blocks, self._block_size, sequence.cache_salt)
        return self._blocks.find(sequence.block_keys[:num_blocks])

    def join(self, step: Step, sequence: Sequence, max_tokens: int, num_running: int) -> None:
        """Move the blocks of a sequence that decodes into one run, where there is room; again after as many more.

        max_tokens: that it may come to.
        """
        table = sequence.block_table
        if not self._joins_blocks or len(table) < sequence.num_blocks_to_join:
            return
        if self._blocks.is_run(table):
            sequence.num_blocks_to_join = len(table) + 1  # not looked at again for each token
            return
        sequence.num_blocks_to_join = len(table) + _BLOCKS_BETWEEN_JOINS
        if self._blocks.num_free >= len(table) + num_running:
            copies = self._blocks.join(table, max_tokens - sequence.num_scheduled)
            if copies:
                step.move(sequence, copies)

    def put(self, step: Step, sequence: Sequence, num_tokens: int, max_tokens: int) -> None:
        """Add a sequence's next tokens to the step, with blocks for them. max_tokens: that it may come to."""
        end = sequence.num_scheduled + num_tokens
        self._blocks.grow(sequence.block_table, end, max_tokens - end)
        step.put(sequence, num_tokens)
        num_full = min(sequence.num_scheduled, len(sequence.token_ids)) // self._block_size
        if self._has_prefix_cache and num_full > sequence.num_shared_blocks:
            self._share(step, sequence, num_full)

    def _share(self, step: Step, sequence: Sequence, num_full: int) -> None:
        """Let others find the blocks that this step fills: theirs comes after it, or beside it, on every stage."""
        extend_keys(sequence.block_keys, sequence.token_ids, num_full, self._block_size, sequence.cache_salt)
        for index in range(sequence.num_shared_blocks, num_full):
            self._blocks.share(sequence.block_table[index], sequence.block_keys[index])
        step.keyed_blocks += [
            (sequence, block) for block in sequence.block_table[sequence.num_shared_blocks : num_full]
        ]
        sequence.num_shared_blocks = num_full
