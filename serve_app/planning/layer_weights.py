"""What a model's parameters weigh as they are served, layer by layer, and what of that tensor ranks share."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.architectures.record import TensorCut
from serve_app.architectures.tensor_names import (
    is_before_layers,
    is_embedding,
    is_head,
    is_router,
    is_unused,
    layer_of,
)
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.checkpoints.stored_weights import is_scale, num_stored_numbers
from serve_app.types.dtypes import DTYPES, DTYPES_BY_CODE, SERVED_DTYPES
from serve_app.types.shards import LoadQuantization, ShardSpec

_SCALE_BYTES = 4  # of a quantized weight's scale, for each output or group, however the checkpoint stores it
_EXPERTS = ".experts."


@dataclass(frozen=True, slots=True)
class PartWeights:
    """Of one part of a model: all its bytes, and how many numbers it multiplies a token by."""

    whole_bytes: int = 0  # that each tensor rank holds
    cut_bytes: int = 0  # that the ranks share
    expert_bytes: int = 0  # of both, what only the tokens of an expert need
    num_products: int = 0  # numbers of matrices that every token is multiplied by
    num_expert_products: int = 0  # of all experts

    def on_rank(self, num_ranks: int) -> int:
        """Bytes on one tensor rank."""
        return self.whole_bytes + self.cut_bytes // num_ranks


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """All parts of a model that generates or embeds."""

    layers: tuple[PartWeights, ...]
    before: PartWeights  # of the first stage: embeddings, which a token reads one row of
    after: PartWeights  # of the last stage: norm and head
    tied: PartWeights  # the embedding as head, where that is apart from it: on another stage, or in another form
    shares_embedding: bool = False  # the head of a single stage is its embedding

    def parts_on(self, shard: ShardSpec) -> list[PartWeights]:
        """Parts of the stage of a shard."""
        parts = list(self.layers[shard.first_layer : shard.end_layer])
        if shard.is_first:
            parts.append(self.before)
        if shard.is_last:
            parts.append(self.after)
        if shard.is_last and not (shard.is_first and self.shares_embedding):
            parts.append(self.tied)
        return parts

    def head_on(self, shard: ShardSpec) -> PartWeights | None:
        """What draws multiply by, of the stage of a shard; None: it is on another."""
        if not shard.is_last:
            return None
        if not shard.is_first or not self.shares_embedding:
            return _sum([self.after, self.tied])
        table = replace(self.before, num_products=0) if self.tied.cut_bytes else PartWeights()  # the head itself
        return _sum([self.after, table])

    def bytes_on(self, shard: ShardSpec) -> int:
        """Bytes that one shard holds; vectors count as whole, though some are cut."""
        return sum(part.on_rank(shard.num_ranks) for part in self.parts_on(shard))


def weigh(spec: ModelSpec, dtype: str, quantization: LoadQuantization | None = None) -> ModelWeights:
    """What the model weighs when served in `dtype`."""
    weighed = _Weighed(spec, dtype, quantization)
    layers: list[list[PartWeights]] = [[] for _ in range(spec.num_layers)]
    before: list[PartWeights] = []
    after: list[PartWeights] = []
    tied: list[PartWeights] = []
    for name, tensor in spec.tensors.items():
        layer = layer_of(name)
        if is_unused(name) or (layer is not None and layer >= spec.num_layers):
            continue
        if layer is not None:
            layers[layer].append(weighed.part(name, tensor))
        elif is_before_layers(name):
            before.append(weighed.part(name, tensor))
            if spec.is_tied and is_embedding(name):
                tied.append(weighed.head_of_embedding(tensor))
        elif not (spec.is_tied and is_head(name)):
            after.append(weighed.part(name, tensor))
    is_plain = quantization is None or not (quantization.has_embedding or quantization.has_head)
    summed = _sum(tied)
    after.append(PartWeights(num_products=summed.num_products))  # counted on any last stage, beside its bytes or not
    return ModelWeights(tuple(map(_sum, layers)), _sum(before), _sum(after), replace(summed, num_products=0), is_plain)


def weigh_encoder(
    spec: ModelSpec, dtype: str, quantization: LoadQuantization | None = None, *, has_pooler: bool = True
) -> ModelWeights:
    """The same of a model that draws no tokens: its embedding is not its head; an embedder has no pooler."""
    if not has_pooler:
        kept = {name: tensor for name, tensor in spec.tensors.items() if "pooler." not in name}
        spec = replace(spec, tensors=kept)
    return replace(weigh(spec, dtype, quantization), tied=PartWeights(), shares_embedding=True)


class _Weighed:
    def __init__(self, spec: ModelSpec, dtype: str, quantization: LoadQuantization | None) -> None:
        self._spec = spec
        self._dtype = dtype
        self._quantization = quantization
        architecture = ARCHITECTURES.get(spec.model_type)
        self._cut = None if architecture is None else _Cut(architecture.tensor_cut)

    def part(self, name: str, tensor: TensorHeader) -> PartWeights:
        """One tensor."""
        num_bytes, is_expert = self._bytes_of(name, tensor), _EXPERTS in name
        is_cut = len(tensor.shape) > 1 and (self._cut is None or self._cut.shares(name))
        count = 0 if is_before_layers(name) else num_stored_numbers(name, tensor, self._spec.quantization)
        return PartWeights(
            0 if is_cut else num_bytes,
            num_bytes if is_cut else 0,
            num_bytes if is_expert else 0,
            0 if is_expert else count,
            count if is_expert else 0,
        )

    def head_of_embedding(self, tensor: TensorHeader) -> PartWeights:
        """A tied head as one of its own."""
        quantization = self._quantization
        if quantization is not None and quantization.has_head:
            return PartWeights(cut_bytes=_quantized_bytes(tensor, quantization), num_products=tensor.num_elements)
        return PartWeights(cut_bytes=_bytes_in(tensor, self._dtype), num_products=tensor.num_elements)

    def _bytes_of(self, name: str, tensor: TensorHeader) -> int:
        if self._quantization is not None and _is_quantized(name, tensor, self._quantization):
            return _quantized_bytes(tensor, self._quantization)
        if self._spec.quantization is not None and is_scale(name):
            return tensor.num_elements * _SCALE_BYTES
        return _bytes_in(tensor, self._dtype)


class _Cut:
    """Which matrices of a checkpoint tensor ranks share."""

    def __init__(self, cut: TensorCut | None) -> None:
        self._has_whole_attention = cut is not None and cut.has_whole_attention
        styles = None if cut is None else cut.plan
        self._named = None  # None: all of a layer
        if styles is not None:
            self._named = {name.partition("*.")[2] for name in styles}

    def shares(self, name: str) -> bool:
        """Those of layers that its plan names, but routers; along the vocabulary embedding and head."""
        if layer_of(name) is None:
            return is_embedding(name) or is_head(name)
        if is_router(name) or (self._has_whole_attention and "attn." in name):
            return False
        if self._named is None:
            return True
        if _EXPERTS in name:  # a checkpoint has a matrix for each expert, the model one for all
            return any(_EXPERTS in f".{one}." for one in self._named)
        module = name.removesuffix(".weight")
        return any(module.endswith(f".{one}") for one in self._named)


def _sum(parts: Iterable[PartWeights]) -> PartWeights:
    listed = list(parts)
    return PartWeights(
        sum(part.whole_bytes for part in listed),
        sum(part.cut_bytes for part in listed),
        sum(part.expert_bytes for part in listed),
        sum(part.num_products for part in listed),
        sum(part.num_expert_products for part in listed),
    )


def _is_quantized(name: str, tensor: TensorHeader, quantization: LoadQuantization) -> bool:
    module = name.removesuffix(".weight")
    if len(tensor.shape) != 2 or any(module == one or module.endswith(f".{one}") for one in quantization.ignored):
        return False
    if layer_of(name) is not None:
        return True
    if is_embedding(name):
        return quantization.has_embedding
    return is_head(name) and quantization.has_head


def _quantized_bytes(tensor: TensorHeader, quantization: LoadQuantization) -> int:
    """Numbers, and a float32 scale for each output or group."""
    num_rows, num_columns = tensor.shape
    scheme = quantization.scheme
    num_groups = 1 if scheme.group_size is None else num_columns // scheme.group_size
    return num_rows * num_columns * scheme.bits // 8 + _SCALE_BYTES * num_rows * num_groups


def _bytes_in(tensor: TensorHeader, dtype: str) -> int:
    if not DTYPES_BY_CODE[tensor.dtype].is_plain_float or dtype not in SERVED_DTYPES:
        return tensor.num_bytes
    return tensor.num_elements * DTYPES[dtype].num_bytes
