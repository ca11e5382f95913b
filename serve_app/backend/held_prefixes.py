"""What the KV cache of one copy holds of prompts' beginnings, as far as one backend knows that has sent them there."""

from bisect import bisect_left
from collections import OrderedDict

from serve_app.backend.prompt_marks import Marks


class HeldPrefixes:
    """Marks of prompts that went to the copy, the least recently used first.

    As in the copy's own cache the end of a prefix is forgotten before its beginning, so that of a prompt's marks those
    that are known come before those that are not.
    """

    def __init__(self) -> None:
        self._blocks: OrderedDict[bytes, int] = OrderedDict()  # by key: how many lie behind the mark before
        self.num_blocks = 0

    def __len__(self) -> int:
        return len(self._blocks)

    def num_held(self, marks: Marks) -> int:
        """Blocks of a prompt's beginning that the copy holds."""
        num_known = bisect_left(marks.keys, True, key=lambda key: key not in self._blocks)
        return marks.ends[num_known - 1] if num_known else 0

    def add(self, marks: Marks, max_blocks: int, max_marks: int) -> None:
        """The copy has been sent a prompt. Of what it holds, no more than the limits is kept."""
        starts = [0, *marks.ends][:-1]
        for key, start, end in zip(reversed(marks.keys), reversed(starts), reversed(marks.ends), strict=True):
            self.num_blocks += end - start - self._blocks.pop(key, 0)
            self._blocks[key] = end - start
        while self._blocks and (self.num_blocks > max_blocks or len(self._blocks) > max_marks):
            self.num_blocks -= self._blocks.popitem(last=False)[1]
