"""Numbers in words of 32 bits: any range of them comes out of the words that hold it, and of no other word."""

import pytest
import torch
from torch import Tensor

from serve_app.engine import packed_words
from serve_app.engine.packed_words import AWQ_PACKING, Packing, stream_packing, unpack
from tests.quantized_checkpoints import AWQ_ORDER, bit_stream, loose_words

COUNT = 88  # of a row: whole words of AWQ; no whole number of them in 3 bits
PACKINGS = {f"{bits} bits, dense": stream_packing(bits) for bits in (1, 2, 3, 4, 5, 6, 7, 8)}
PACKINGS |= {f"{bits} bits, no number across words": stream_packing(bits, is_dense=False) for bits in (3, 4, 5, 8)}
PACKINGS |= {"awq": AWQ_PACKING}
RANGES = [(0, COUNT), (0, 1), (COUNT - 1, COUNT), (10, 11), (13, 47), (31, 33), (8, 16), (21, 22), (5, 5), (63, 85)]


def pack(numbers: Tensor, name: str, bits: int) -> Tensor:
    """By loops that know nothing of patterns."""
    if name == "awq":
        return bit_stream(numbers.view(len(numbers), -1, 8)[:, :, AWQ_ORDER].flatten(1), 4)
    return bit_stream(numbers, bits) if name.endswith("dense") else loose_words(numbers, bits)


def numbers_of(packing: Packing, num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(packing.bits)
    return torch.randint(0, 2**packing.bits, (num_rows, COUNT), generator=generator)


@pytest.mark.parametrize("numbers", RANGES)
@pytest.mark.parametrize("name", PACKINGS)
def test_a_range_comes_out_of_its_words(name: str, numbers: tuple[int, int]) -> None:
    packing, (start, end) = PACKINGS[name], numbers
    expected = numbers_of(packing, 5)
    words = pack(expected, name, packing.bits)
    assert packing.num_words(COUNT) == words.shape[1]
    first, last = packing.words_of(numbers)
    out = torch.full((5, end - start), 255, dtype=torch.uint8)
    unpack(words[:, first:last], packing, numbers, out)
    assert out.tolist() == expected[:, start:end].tolist()


@pytest.mark.parametrize("name", PACKINGS)
def test_words_of_a_range_are_those_that_hold_a_bit_of_it(name: str) -> None:
    packing = PACKINGS[name]
    for start, end in RANGES[:-2]:
        marked = torch.zeros(1, COUNT, dtype=torch.int64)
        marked[0, start:end] = 2**packing.bits - 1
        held = pack(marked, name, packing.bits)[0].nonzero().flatten().tolist()
        assert packing.words_of((start, end)) == (held[0], held[-1] + 1)


@pytest.mark.parametrize("slice_numbers", [1, 200, 1000])
@pytest.mark.parametrize("is_turned", [False, True])
def test_rows_are_unpacked_a_slice_at_a_time(
    slice_numbers: int, is_turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_words, "_SLICE_NUMBERS", slice_numbers)
    packing = stream_packing(3)
    expected = numbers_of(packing, 13)
    words = bit_stream(expected, 3)
    if is_turned:  # as words that run down a stored tensor are
        words = words.t().contiguous().t()
    out = torch.empty(COUNT, 13, dtype=torch.uint8).t() if is_turned else torch.empty(13, COUNT, dtype=torch.uint8)
    unpack(words, packing, (0, COUNT), out)
    assert out.tolist() == expected.tolist()
