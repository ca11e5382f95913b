"""Why a GPU cannot multiply float8 numbers: asked in `validate` of the GPU's type, and before loading of the GPU."""

from serve_app.checkpoints.quantized_modules import CheckpointQuantization
from serve_app.types.shards import MIN_FLOAT8_CAPABILITY, LoadQuantization

_ABLE = "{}.{} or later (L4, L40S, H100)".format(*MIN_FLOAT8_CAPABILITY)


def float8_problem(
    stored: CheckpointQuantization | None,
    wanted: LoadQuantization | None,
    capability: tuple[int, int] | None,
) -> str | None:
    """Why a model that is stored in float8, or to be loaded so, is not served; None: it is not, or the GPU can.

    capability: compute capability of the GPU; None: it is not known, or there is none.
    """
    if capability is None or capability >= MIN_FLOAT8_CAPABILITY:
        return None
    found = f"and this GPU has {capability[0]}.{capability[1]}"
    if wanted is not None and wanted.scheme.has_float8_products:
        return (
            f"quantization.scheme=fp8 needs a GPU of compute capability {_ABLE}, {found}; use int8, or serve where "
            "there is such a GPU"
        )
    schemes = [] if stored is None else [scheme for _targets, scheme in stored.groups if scheme is not None]
    if stored is None or not any(scheme.has_float8_products for scheme in schemes):
        return None
    return (
        f"the model computes in float8 ({stored.method}), which needs a GPU of compute capability {_ABLE}, {found}; "
        "give the unquantized model with quantization.scheme=int8, or serve where there is such a GPU"
    )
