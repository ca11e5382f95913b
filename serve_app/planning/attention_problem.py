"""Why an attention backend does not serve a model: what is known before anything is loaded. No torch."""

from collections.abc import Sequence

from serve_app.architectures.head_sizes import HeadSizes

VARLEN_PAGE_TOKENS = 256  # of torch's paged kernel; a KV block is as many of them as it likes
_VARLEN_MAX_HEAD_DIM = 256
_TRITON_MAX_HEAD_DIM = 256  # a tile of keys and one of values have to fit a multiprocessor's memory


def attention_problem(
    name: str, device: str, dtype: str, head_kinds: Sequence[HeadSizes], block_size: int
) -> str | None:
    """Why `engine.attention: name` cannot be had, and what to do; None where nothing is against it.

    dtype: of keys and values; head_kinds: of each kind of layers; block_size: tokens of a KV block.
    """
    if name in ("triton", "varlen") and device != "cuda":
        return f"engine.attention={name} is for device.type=cuda; use reference or padded, or remove it"
    problems: list[str | None] = []
    if name == "triton":
        problems += [_triton_problem(heads) for heads in head_kinds]
    if name == "varlen":
        problems += [_varlen_problem(dtype, heads, block_size) for heads in head_kinds]
    return next(filter(None, problems), None)


def _triton_problem(heads: HeadSizes) -> str | None:
    widest = max(heads.head_dim, heads.value_dim)
    if widest > _TRITON_MAX_HEAD_DIM:
        return f"engine.attention=triton serves heads of at most {_TRITON_MAX_HEAD_DIM}, not {widest}; use padded"
    return None


def _varlen_problem(dtype: str, heads: HeadSizes, block_size: int) -> str | None:
    if dtype == "float32":
        return "engine.attention=varlen serves float16 and bfloat16, not float32; use triton"
    if heads.head_dim != heads.value_dim or heads.head_dim > _VARLEN_MAX_HEAD_DIM or heads.head_dim % 8:
        return (
            f"engine.attention=varlen serves keys and values of one width, a multiple of 8 up to "
            f"{_VARLEN_MAX_HEAD_DIM}, not {heads.head_dim} and {heads.value_dim}; use triton"
        )
    if block_size % VARLEN_PAGE_TOKENS:
        return (
            f"engine.attention=varlen reads pages of {VARLEN_PAGE_TOKENS} tokens, and engine.block_size={block_size} "
            f"is no multiple of it; set block_size: {VARLEN_PAGE_TOKENS}, or use triton"
        )
    return None
