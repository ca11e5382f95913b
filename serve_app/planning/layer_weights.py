"""What a model's parameters weigh as they are served, layer by layer, and what of that tensor ranks share."""

from dataclasses import replace

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.architectures.rank_shares import kv_heads_of_layer
from serve_app.architectures.tensor_names import is_before_layers, is_embedding, is_head, is_unused, layer_of
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.checkpoints.stored_weights import is_note, is_scale, num_stored_numbers
from serve_app.planning.layer_cut import EXPERTS, LayerCut, Share
from serve_app.planning.part_weights import ModelWeights, PartWeights, sum_parts
from serve_app.types.dtypes import DTYPES, DTYPES_BY_CODE, SERVED_DTYPES
from serve_app.types.shards import LoadQuantization

_ORDER_BYTES = 8  # of each input of a weight whose inputs are in an order of their own
_SCALE_BYTES = 4  # of a quantized weight's scale, for each output or group, however the checkpoint stores it


def weigh(
    spec: ModelSpec, dtype: str, quantization: LoadQuantization | None = None, *, packs_head: bool = False
) -> ModelWeights:
    """What the model weighs when served in `dtype`.

    packs_head: a head that is tied to the embedding is held once more, as a kernel multiplies by it.
    """
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
    shares_embedding = is_plain and not packs_head
    summed = sum_parts(tied)
    after.append(PartWeights(num_products=summed.num_products))  # counted on any last stage, beside its bytes or not
    head = replace(summed, num_products=0)
    return ModelWeights(tuple(map(sum_parts, layers)), sum_parts(before), sum_parts(after), head, shares_embedding)


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
        self._num_tokens = max(1, spec.vocab_size)
        self._dtype = dtype
        self._quantization = quantization
        architecture = ARCHITECTURES.get(spec.model_type)
        self._is_transposed = architecture is not None and architecture.has_transposed_matrices
        cut = None if architecture is None else architecture.tensor_cut
        self._cut = LayerCut(cut)
        self._kv_heads = _kv_heads_of_layers(spec)

    def part(self, name: str, tensor: TensorHeader) -> PartWeights:
        """One tensor."""
        num_bytes, scale_bytes = self._bytes_of(name, tensor)
        count = 0 if is_before_layers(name) else num_stored_numbers(name, tensor, self._spec.quantization)
        share = self._cut.share_of(name, tensor.shape)
        found = self._shared(name, share, num_bytes, count)
        if scale_bytes:
            has_one_group = self._quantization is not None and self._quantization.scheme.group_size is None
            scale_share = "whole" if has_one_group and self._cut.is_by_inputs(name) else share
            found = sum_parts([found, self._shared(name, scale_share, scale_bytes, 0)])
        if EXPERTS not in name:
            return found
        return replace(found, expert_bytes=num_bytes, num_products=0, num_expert_products=count)

    def head_of_embedding(self, tensor: TensorHeader) -> PartWeights:
        """A tied head as one of its own."""
        quantization = self._quantization
        if quantization is not None and quantization.has_head:
            num_bytes = sum(_quantized_bytes(tensor.shape, quantization))
        else:
            num_bytes = _bytes_in(tensor, self._dtype)
        return PartWeights(table_bytes=num_bytes, num_products=tensor.num_elements, num_tokens=self._num_tokens)

    def _shared(self, name: str, share: Share, num_bytes: int, count: int) -> PartWeights:
        if share == "even":
            return PartWeights(cut_bytes=num_bytes, num_products=count)
        if share == "tokens":
            return PartWeights(table_bytes=num_bytes, num_products=count, num_tokens=self._num_tokens)
        if share == "whole":
            return PartWeights(whole_bytes=num_bytes, num_products=count)
        kv_heads = self._kv_heads.get(layer_of(name), self._spec.num_kv_heads)
        of_kv, of_all = 1, 1
        if share == "packed_kv":
            num_kv = self._cut.widths_of(name).count("kv_heads")
            num_others = len(self._cut.widths_of(name)) - num_kv
            of_kv, of_all = num_kv * kv_heads, num_kv * kv_heads + num_others * self._spec.num_heads
        kv_bytes, kv_count = num_bytes * of_kv // of_all, count * of_kv // of_all
        return PartWeights(
            cut_bytes=num_bytes - kv_bytes,
            kv_bytes=kv_bytes,
            num_products=count - kv_count,
            num_kv_products=kv_count,
            num_kv_heads=kv_heads,
        )

    def _bytes_of(self, name: str, tensor: TensorHeader) -> tuple[int, int]:
        """Of its numbers, and of the scales that it gets while it is loaded."""
        if self._quantization is not None and _is_quantized(name, tensor, self._quantization):
            is_transposed = self._is_transposed and layer_of(name) is not None
            return _quantized_bytes(tensor.shape[::-1] if is_transposed else tensor.shape, self._quantization)
        stored = self._spec.quantization
        if stored is not None and is_scale(name):
            return tensor.num_elements * _SCALE_BYTES, 0
        if stored is not None and is_note(name):
            is_held = stored.has_input_order and name.endswith("g_idx")
            return tensor.num_elements * _ORDER_BYTES if is_held else 0, 0
        return _bytes_in(tensor, self._dtype), 0


def _kv_heads_of_layers(spec: ModelSpec) -> dict[int | None, int]:
    """By layer, where layers differ in them: matrices of one layer that read the same inputs have as many columns."""
    if not spec.other_heads:
        return {}
    counts: dict[tuple[int | None, str], int] = {}
    for name, tensor in spec.tensors.items():
        module = name.rpartition(".")[0].rpartition(".")[2]
        if module in ("q_proj", "k_proj") and layer_of(name) is not None:
            count = num_stored_numbers(name, tensor, spec.quantization)
            counts[layer_of(name), module] = counts.get((layer_of(name), module), 0) + count
    return {
        layer: kv_heads_of_layer(spec.heads, count, counts[layer, "k_proj"])
        for (layer, module), count in counts.items()
        if module == "q_proj" and (layer, "k_proj") in counts
    }


def _is_quantized(name: str, tensor: TensorHeader, quantization: LoadQuantization) -> bool:
    module = name.removesuffix(".weight")
    if len(tensor.shape) != 2 or any(module == one or module.endswith(f".{one}") for one in quantization.ignored):
        return False
    if layer_of(name) is not None:
        return True
    if is_embedding(name):
        return quantization.has_embedding
    return is_head(name) and quantization.has_head


def _quantized_bytes(shape: tuple[int, ...], quantization: LoadQuantization) -> tuple[int, int]:
    """Of the numbers of a matrix [out, in], and of a float32 scale for each output or group."""
    num_rows, num_columns = shape
    scheme = quantization.scheme
    num_groups = 1 if scheme.group_size is None else num_columns // scheme.group_size
    return num_rows * num_columns * scheme.bits // 8, _SCALE_BYTES * num_rows * num_groups


def _bytes_in(tensor: TensorHeader, dtype: str) -> int:
    if not DTYPES_BY_CODE[tensor.dtype].is_plain_float or dtype not in SERVED_DTYPES:
        return tensor.num_bytes
    return tensor.num_elements * DTYPES[dtype].num_bytes
