"""How one token is drawn: keyed random numbers and the inverse transform of a distribution."""

import torch
from torch import Tensor

NUM_CANDIDATES = 1024  # tokens ranked at first where a nucleus may be as large as the vocabulary
_CPU_CANDIDATES_PART = 8  # of a vocabulary, ranked next: on a CPU a quarter of the cost of sorting all, 13 ms a row
_CHUNK_ELEMENTS = 1 << 23  # logits handled at a time: 64 MiB in float64
_GAMMA = 0x9E3779B97F4A7C15
_MIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_UINT64_MASK = (1 << 64) - 1
_ID_MASK = (1 << 32) - 1


def draw_rows(scores: Tensor, best: Tensor, index: Tensor, controls: Tensor, max_ranked: int) -> Tensor:
    """Tokens of some rows of scores, drawn in the vocabulary's order where `max_ranked` is 0, else by rank.

    scores [B, V], best [B], index [n] int64, controls [n, 5] float64: temperature, min_p, top_p, top_k, uniform number
    -> [n] int64. max_ranked: the largest top_k of these rows; V where one has top_p alone, and only then the host waits
    for the device: once on CUDA, whatever n is.
    """
    sizes = _ranking_sizes(max_ranked, scores.shape[1], scores.device.type)
    drawn = _draw_chunks(scores, best, index, controls, sizes[0])
    for num_ranked in sizes[1:]:
        short = ((drawn < 0) & (drawn >= -num_ranked)).nonzero().squeeze(1)  # the wait
        if len(short) > 0:
            drawn[short] = _draw_chunks(scores, best, index[short], controls[short], num_ranked)
    return drawn


def draw_plain(distances: Tensor, controls: Tensor) -> Tensor:
    """Inverse transform over the vocabulary's order.

    distances [B, V] float32 below the best logit, controls [B, 5] float64 -> tokens [B] int64.
    """
    temperature, min_p, _, _, uniform = controls[:, :, None].unbind(1)  # [B, 1] each
    cumulated = _weights(distances, temperature, min_p).cumsum(dim=-1)
    return _index_of(cumulated, cumulated[:, -1:], uniform)


def draw_ranked(distances: Tensor, controls: Tensor, num_ranked: int) -> Tensor:
    """The same over the most probable tokens: in falling order, min_p, top_k and top_p each keep a prefix.

    distances [B, V] float32, controls [B, 5] float64 -> tokens [B] int64; -n where `num_ranked` are too few and n are
    needed at least, n <= V. Any larger `num_ranked` gives the same token. Does not wait for the device.
    """
    temperature, min_p, top_p, top_k, uniform = controls[:, :, None].unbind(1)  # [B, 1] each
    weights = _weights(distances, temperature, min_p)  # [B, V]
    ids = ranked_ids(distances, num_ranked)
    cumulated = weights.gather(1, ids).cumsum(dim=-1)  # [B, num_ranked]
    vocab_size = distances.shape[1]
    last_k = (top_k.long() - 1).clamp(max=num_ranked - 1)
    total = torch.where(top_k < vocab_size, cumulated.gather(1, last_k), _row_sums(weights))
    last_p = torch.searchsorted(cumulated, top_p * total).clamp(max=num_ranked - 1)
    kept = cumulated.gather(1, torch.minimum(last_p, last_k))
    drawn = ids.gather(1, _index_of(cumulated, kept, uniform)[:, None]).squeeze(1)
    if num_ranked == vocab_size:
        return drawn
    is_beyond = cumulated[:, -1:] < top_p * total  # not so of NaN, which no ranking mends
    is_short = (top_k > num_ranked) & ((top_k < vocab_size) | is_beyond)
    num_needed = num_ranked * (top_p * total / cumulated[:, -1:])  # as weights only fall
    num_needed = torch.where(top_k < vocab_size, top_k, num_needed.clamp(max=vocab_size))
    return torch.where(is_short, -num_needed.long(), drawn[:, None]).squeeze(1)


def ranked_ids(distances: Tensor, num_ranked: int) -> Tensor:
    """Ids of the smallest distances, the lowest id of equals first: [B, num_ranked] int64.

    distances [B, V] float32, none negative: so their bits order as they do, and bits and id make one unique key.
    """
    ids = torch.arange(distances.shape[1], device=distances.device)
    keys = distances.view(torch.int32).long().bitwise_left_shift_(32).bitwise_or_(ids)
    if num_ranked < distances.shape[1]:
        return keys.topk(num_ranked, largest=False).values & _ID_MASK
    return keys.sort(dim=-1).values & _ID_MASK


def stream_key(seed: int, choice: int) -> int:
    """Start of a SplitMix64 stream of its own for each seed and choice, as an int64."""
    return _signed(_mix(_mix(seed + _GAMMA) + (choice + 1) * _GAMMA))


def uniforms(stream_keys: Tensor, positions: Tensor) -> Tensor:
    """Element `positions` of each stream of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014), in (0, 1) exclusive.

    stream_keys [B] int64, positions [B] int64 -> [B] float64 with 52 random bits.
    """
    mixed = stream_keys + (positions + 1) * _signed(_GAMMA)  # int64 wraps around as uint64 does
    for shift, factor in _MIX_STEPS:
        mixed = (mixed ^ _logical_shift(mixed, shift)) * _signed(factor)
    mixed = mixed ^ _logical_shift(mixed, 31)
    return (_logical_shift(mixed, 12).double() + 0.5) * 2.0**-52


def _ranking_sizes(max_ranked: int, vocab_size: int, device_type: str) -> list[int]:
    """How many tokens to rank, one size after another as long as a row needs more; on CUDA two at most."""
    if max_ranked < vocab_size:
        return [max_ranked]
    sizes = [NUM_CANDIDATES]
    if device_type == "cpu" and vocab_size // _CPU_CANDIDATES_PART > NUM_CANDIDATES:
        sizes.append(vocab_size // _CPU_CANDIDATES_PART)
    return [size for size in sizes if size < vocab_size] + [vocab_size]


def _draw_chunks(scores: Tensor, best: Tensor, index: Tensor, controls: Tensor, num_ranked: int) -> Tensor:
    """Draws with `num_ranked` tokens ranked, a chunk of the rows at a time: [n] int64, -n as draw_ranked has it."""
    step = max(1, _CHUNK_ELEMENTS // scores.shape[1])
    chunks: list[Tensor] = []
    for first in range(0, len(index), step):
        rows, part = index[first : first + step], controls[first : first + step]
        distances = (best[rows, None].float() - scores[rows].float()).contiguous()
        chunks.append(draw_ranked(distances, part, num_ranked) if num_ranked else draw_plain(distances, part))
    return torch.cat(chunks)


def _weights(distances: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """Probabilities relative to the best token's: [B, V] float64."""
    weights = distances.double().div_(-temperature).exp_()
    return weights.mul_(weights >= min_p)


def _row_sums(weights: Tensor) -> Tensor:
    """weights [B, V] float64 -> [B, 1] float64; on a CPU the same bits whatever B is."""
    if len(weights) > 1:
        return weights.sum(dim=-1, keepdim=True)
    return weights.expand(2, -1).sum(dim=-1, keepdim=True)[:1]  # the sum of one row alone is split over the threads


def _index_of(cumulated: Tensor, total: Tensor, uniform: Tensor) -> Tensor:
    """First index whose cumulated weight exceeds uniform * total: [B] int64; never one of weight 0.

    cumulated [B, n] float64, total [B, 1] float64: one of its values, uniform [B, 1] float64 in (0, 1).
    """
    targets = torch.minimum(uniform * total, total.nextafter(torch.zeros_like(total)))
    index = torch.searchsorted(cumulated, targets, right=True)
    return index.squeeze(1).clamp(max=cumulated.shape[1] - 1)  # NaN in, any index out


def _mix(value: int) -> int:
    value &= _UINT64_MASK
    for shift, factor in _MIX_STEPS:
        value = ((value ^ (value >> shift)) * factor) & _UINT64_MASK
    return value ^ (value >> 31)


def _logical_shift(values: Tensor, num_bits: int) -> Tensor:
    return (values >> num_bits) & ((1 << (64 - num_bits)) - 1)


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value
