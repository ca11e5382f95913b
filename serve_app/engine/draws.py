"""How one token is drawn: keyed random numbers and the inverse transform of a distribution."""

import torch
from torch import Tensor

_CPU_CANDIDATES = 1024  # tokens ranked before a whole vocabulary is sorted
_GAMMA = 0x9E3779B97F4A7C15
_MIX_STEPS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_UINT64_MASK = (1 << 64) - 1
_ID_MASK = (1 << 32) - 1


def draw_plain(distances: Tensor, controls: Tensor) -> Tensor:
    """Inverse transform over the vocabulary's order.

    distances [B, V] float32 below the best logit, controls [B, 5] float64 -> tokens [B] int64.
    """
    temperature, min_p, _, _, uniform = controls[:, :, None].unbind(1)  # [B, 1] each
    cumulated = _weights(distances, temperature, min_p).cumsum(dim=-1)
    return _index_of(cumulated, cumulated[:, -1:], uniform)


def draw_ranked(distances: Tensor, controls: Tensor, max_ranked: int) -> Tensor:
    """The same over the most probable tokens: in falling order, min_p, top_k and top_p each keep a prefix.

    distances [B, V] float32, controls [B, 5] float64, max_ranked: the largest top_k -> tokens [B] int64.
    """
    if distances.device.type == "cpu" and max_ranked > _CPU_CANDIDATES:  # sorting costs 10 ms a row
        drawn = _draw_prefix(distances, controls, _CPU_CANDIDATES)
        if bool((drawn >= 0).all()):
            return drawn
    return _draw_prefix(distances, controls, max_ranked).clamp(min=0)


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


def _draw_prefix(distances: Tensor, controls: Tensor, num_ranked: int) -> Tensor:
    """Draw from the `num_ranked` most probable tokens: [B] int64, -1 where more of them are needed."""
    temperature, min_p, top_p, top_k, uniform = controls[:, :, None].unbind(1)  # [B, 1] each
    weights = _weights(distances, temperature, min_p)  # [B, V]
    ids = ranked_ids(distances, num_ranked)
    cumulated = weights.gather(1, ids).cumsum(dim=-1)  # [B, num_ranked]
    vocab_size = distances.shape[1]
    last_k = (top_k.long() - 1).clamp(max=num_ranked - 1)
    total = torch.where(top_k < vocab_size, cumulated.gather(1, last_k), weights.sum(dim=-1, keepdim=True))
    last_p = torch.searchsorted(cumulated, top_p * total).clamp(max=num_ranked - 1)
    kept = cumulated.gather(1, torch.minimum(last_p, last_k))
    drawn = ids.gather(1, _index_of(cumulated, kept, uniform)[:, None]).squeeze(1)
    if num_ranked == vocab_size:
        return drawn
    is_enough = (top_k <= num_ranked) | ((top_k == vocab_size) & (cumulated[:, -1:] >= top_p * total))
    return torch.where(is_enough.squeeze(1), drawn, -1)


def _weights(distances: Tensor, temperature: Tensor, min_p: Tensor) -> Tensor:
    """Probabilities relative to the best token's: [B, V] float64."""
    weights = distances.double().div_(-temperature).exp_()
    return weights.mul_(weights >= min_p)


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
