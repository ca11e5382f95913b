"""Which tensors of a checkpoint make up one quantized weight, and whether their headers fit its scheme; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_app.architectures.tensor_names import is_embedding, is_unused
from serve_app.checkpoints.quantized_modules import CheckpointQuantization, WordLayout
from serve_app.checkpoints.safetensors_header import TensorHeader
from serve_app.errors import ConfigError
from serve_app.types.shards import WeightScheme

WORD_BITS = 32
# Tensors that accompany a quantized weight, by the ends of their names, and what another writer calls them.
_COMPANIONS = (
    *("weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx", "input_scale"),
    *("qzeros", "scales", "g_idx"),
)
_NOTES = ("weight_shape", "weight_g_idx", "g_idx")
_SYNONYMS = {"weight_scale_inv": "weight_scale", "activation_scale": "input_scale"}
_PACKED = ("weight_packed", "qweight")
_SCALE_DTYPES = ("F32", "BF16", "F16", "F8_E8M0")


@dataclass(slots=True)
class StoredWeight:
    """The tensors that one quantized weight is stored in, by the ends of their names."""

    tensors: dict[str, TensorHeader] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogicalTensors:
    """A checkpoint's tensors as the model names them: a quantized weight is one tensor called `weight`."""

    headers: dict[str, TensorHeader]
    stored: dict[str, StoredWeight]  # by logical name


def logical_tensors(headers: Mapping[str, TensorHeader]) -> LogicalTensors:
    """Fold what stands beside a quantized weight into it. Raises ConfigError for what belongs to none."""
    found: dict[str, TensorHeader] = {}
    stored: dict[str, StoredWeight] = {}
    for name, header in headers.items():
        module, _, leaf = name.rpartition(".")
        leaf = _SYNONYMS.get(leaf, leaf)
        if leaf in _COMPANIONS or leaf in _PACKED:
            stored.setdefault(f"{module}.weight", StoredWeight()).tensors[leaf] = header
            if leaf in _PACKED:
                found[f"{module}.weight"] = header
        else:
            found[name] = header
    for name, weight in stored.items():
        if name not in found:
            some = next(iter(weight.tensors))
            raise ConfigError(f"tensor {name.removesuffix('weight')}{some} belongs to no weight; download it again")
        weight.tensors.setdefault("weight", found[name])
    return LogicalTensors(found, stored)


def has_words(headers: Mapping[str, TensorHeader]) -> bool:
    """Whether weights are stored as words of GPTQ or AWQ."""
    return any(name.endswith(".qweight") for name in headers)


def is_scale(name: str) -> bool:
    """Whether a tensor holds the scales of a quantized weight."""
    leaf = name.rpartition(".")[2]
    return _SYNONYMS.get(leaf, leaf) in ("weight_scale", "scales")


def is_note(name: str) -> bool:
    """Whether a tensor says how a quantized weight lies in its file; but for an order of its own none is held."""
    return name.rpartition(".")[2] in _NOTES


def num_stored_numbers(name: str, tensor: TensorHeader, quantization: CheckpointQuantization | None) -> int:
    """Numbers of the matrix that a tensor holds; 0: it holds none, but a vector, or what stands beside a matrix."""
    module, _, leaf = name.rpartition(".")
    if len(tensor.shape) < 2 or _SYNONYMS.get(leaf, leaf) in _COMPANIONS:
        return 0
    if leaf not in _PACKED or quantization is None:
        return tensor.num_elements
    scheme = quantization.scheme_of(module, "linear")
    return tensor.num_elements * WORD_BITS // (WORD_BITS if scheme is None else scheme.bits)


def check_stored_weights(quantization: CheckpointQuantization | None, headers: Mapping[str, TensorHeader]) -> None:
    """Raise ConfigError where a weight is stored otherwise than `quantization` says. Reads no weights."""
    logical = logical_tensors(headers)
    for name, header in logical.headers.items():
        if is_unused(name):
            continue
        stored = logical.stored.get(name)
        if stored is not None:
            check_stored(name, stored, scheme_of_stored(quantization, name), quantization)
        elif name.endswith(".weight"):
            refuse_bare_numbers(name, header)


def scheme_of_stored(quantization: CheckpointQuantization | None, name: str) -> WeightScheme:
    """The scheme of a weight that is stored quantized. Raises ConfigError where there is none."""
    if quantization is None:
        raise ConfigError(f"{name} is quantized, but config.json has no quantization_config", field="source")
    module = name.removesuffix(".weight")
    is_table = is_embedding(name) or "embed" in module.rpartition(".")[2]
    scheme = quantization.scheme_of(module, "embedding" if is_table else "linear")
    if scheme is None:
        raise ConfigError(f"{name} is quantized, but quantization_config leaves it out", field="source")
    return scheme


def refuse_bare_numbers(name: str, header: TensorHeader) -> None:
    """Raise ConfigError where a tensor that nothing says how to scale is not stored as floats."""
    if header.dtype.startswith(("I", "U", "BOOL", "F8", "F4", "F6")):
        raise ConfigError(
            f"parameter {name} is stored as {header.dtype} in {header.file}, but config.json does not say how it is "
            "quantized; download the model again",
            field="source",
        )


def check_stored(
    name: str, stored: StoredWeight, scheme: WeightScheme, quantization: CheckpointQuantization | None
) -> None:
    """Raise ConfigError where the tensors of one weight do not fit each other, or its scheme."""
    layout = None if quantization is None else quantization.word_layout
    weight = _Stored(name, stored.tensors)
    if "qweight" in stored.tensors or layout is not None:
        _check_words(weight, scheme, layout, has_order=quantization is not None and quantization.has_input_order)
    elif "weight_packed" in stored.tensors:
        _check_packed(weight, scheme)
    else:
        _check_plain(weight, scheme)


@dataclass(frozen=True, slots=True)
class _Stored:
    name: str
    tensors: Mapping[str, TensorHeader]

    def matrix(self, leaf: str, *dtypes: str) -> tuple[int, int]:
        """Rows and columns of a tensor of one of these dtypes."""
        header = self._get(leaf, dtypes)
        if len(header.shape) != 2:
            self.refuse(leaf, ["any", "any"])
        return header.shape[0], header.shape[1]

    def expect(self, leaf: str, shape: tuple[int, ...], *dtypes: str) -> None:
        """Raise ConfigError unless a tensor has this shape and one of these dtypes; none: any."""
        if self._get(leaf, dtypes).shape != shape:
            self.refuse(leaf, list(shape))

    def expect_number(self, leaf: str) -> None:
        """Raise ConfigError unless a tensor is one floating-point number."""
        if self._get(leaf, _SCALE_DTYPES).num_elements != 1:
            self.refuse(leaf, [1])

    def refuse(self, leaf: str, needed: list[int] | list[str]) -> None:
        """Raise ConfigError for a tensor's shape."""
        header = self.tensors[leaf]
        raise ConfigError(
            f"{self.name}: {leaf} has shape {list(header.shape)} in {header.file}, where the weight of shape "
            f"{list(self.tensors['weight'].shape)} needs {needed} by quantization_config; compress the model again",
            field="source",
        )

    def _get(self, leaf: str, dtypes: tuple[str, ...]) -> TensorHeader:
        header = self.tensors.get(leaf)
        if header is None:
            raise ConfigError(f"{self.name}: {leaf} is missing beside it; compress the model again", field="source")
        if dtypes and header.dtype not in dtypes:
            raise ConfigError(
                f"{self.name}: {leaf} is stored as {header.dtype} in {header.file}, which is not a number of its "
                f"scheme; it needs {' or '.join(dtypes)}: compress the model again",
                field="source",
            )
        return header


def _check_words(weight: _Stored, scheme: WeightScheme, layout: WordLayout | None, *, has_order: bool) -> None:
    if layout is None:
        raise ConfigError(f"{weight.name}: qweight is not of this quant_method; give gptq or awq", field="source")
    rows, columns = weight.matrix("qweight", "I32")
    if layout == "awq_gemm":
        num_inputs, num_outputs = rows, columns * WORD_BITS // scheme.bits
    elif layout == "awq_gemv":
        num_inputs, num_outputs = columns * WORD_BITS // scheme.bits, rows
    else:
        num_inputs, num_outputs = rows * WORD_BITS // scheme.bits, columns
    num_groups = num_groups_of(num_inputs, scheme)
    if layout == "awq_gemv":
        width = gemv_words(num_groups, scheme)
        weight.expect("qzeros", (num_outputs, width), "I32")
        weight.expect("scales", (num_outputs, width * WORD_BITS // scheme.bits), *_SCALE_DTYPES)
        return
    weight.expect("scales", (num_groups, num_outputs), *_SCALE_DTYPES)
    weight.expect("qzeros", (num_groups, num_words(num_outputs, scheme.bits)), "I32")
    if layout == "awq_gemm":
        return
    if "g_idx" in weight.tensors or has_order:
        weight.expect("g_idx", (num_inputs,), "I32", "I64")
    if has_order and scheme.group_size is not None and num_inputs % scheme.group_size:
        raise ConfigError(
            f"{weight.name}: group_size={scheme.group_size} does not divide its {num_inputs} inputs, which desc_act "
            "needs; quantize the model with another",
            field="source",
        )


def num_groups_of(num_inputs: int, scheme: WeightScheme) -> int:
    """Groups of inputs that have a scale of their own."""
    return 1 if scheme.group_size is None else -(-num_inputs // scheme.group_size)


def num_words(count: int, bits: int, *, is_dense: bool = True) -> int:
    """Words of so many numbers; dense: a number may cross from one into the next."""
    return -(-count * bits // WORD_BITS) if is_dense else -(-count // (WORD_BITS // bits))


def gemv_words(num_groups: int, scheme: WeightScheme) -> int:
    """Words of a row of zero points in AWQ's GEMV layout, which wants more of them for small groups."""
    multiple = {64: 2, 32: 4}.get(scheme.group_size or 128, 1)
    return -(-num_words(num_groups, scheme.bits) // multiple) * multiple


def _check_packed(weight: _Stored, scheme: WeightScheme) -> None:
    num_outputs, width = weight.matrix("weight_packed", "I32")
    _, num_groups = weight.matrix("weight_scale", *_SCALE_DTYPES)
    weight.expect("weight_scale", (num_outputs, num_groups), *_SCALE_DTYPES)
    if scheme.group_size is None:
        if num_groups != 1:
            weight.refuse("weight_scale", [num_outputs, 1])
        return
    num_inputs = num_groups * scheme.group_size
    if width not in {num_words(num_inputs, scheme.bits, is_dense=is_dense) for is_dense in (True, False)}:
        weight.refuse("weight_packed", [num_outputs, num_words(num_inputs, scheme.bits)])


def _check_plain(weight: _Stored, scheme: WeightScheme) -> None:
    num_outputs, num_inputs = weight.matrix("weight", "F8_E4M3" if scheme.is_float else "I8")
    if scheme.has_static_inputs:
        weight.expect_number("input_scale")
    scale = weight.tensors.get("weight_scale")
    if scale is not None and scheme.group_size is None and is_one_number(scale):
        weight.expect_number("weight_scale")
        return
    num_rows = num_outputs if scheme.block_rows is None else -(-num_outputs // scheme.block_rows)
    weight.expect("weight_scale", (num_rows, num_groups_of(num_inputs, scheme)), *_SCALE_DTYPES)
    if "weight_zero_point" in weight.tensors:
        weight.expect("weight_zero_point", weight.tensors["weight_scale"].shape)


def is_one_number(scale: TensorHeader) -> bool:
    """Whether a weight has one scale for all of it."""
    return scale.num_elements == 1 and len(scale.shape) < 2
