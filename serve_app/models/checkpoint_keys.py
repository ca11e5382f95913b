"""Which tensors of a checkpoint make up each parameter, by transformers' own renaming and fusing rules.

The only module that reads transformers' conversion tables; they are taken as data.
"""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from transformers import conversion_mapping, core_model_loading

from serve_app.errors import ConfigError
from serve_app.models.cut_stage import CutStage


@dataclass(frozen=True, slots=True)
class Source:
    """One checkpoint tensor inside a parameter.

    A fused parameter stacks its experts on a new first dimension (`expert`) and, within one, joins several tensors
    along `join_dim` of the parameter, in order of `position`.
    """

    tensor_name: str
    expert: int | None = None
    position: int = 0
    join_dim: int | None = None
    num_chunks: int = 1  # the parameter is one of so many equal parts of the tensor's first dimension
    chunk: int = 0


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Sources by parameter name of the whole model, and checkpoint tensors that no part of the model takes."""

    sources: dict[str, list[Source]]
    unused: list[str]


def map_keys(stage: CutStage, tensor_names: Iterable[str]) -> KeyMap:
    """Assign every checkpoint tensor to a parameter of the whole model."""
    transforms = conversion_mapping.get_model_conversion_mapping(stage.model)
    converters = [one for one in transforms if isinstance(one, core_model_loading.WeightConverter)]
    renamings = [one for one in transforms if not isinstance(one, core_model_loading.WeightConverter)]
    sources: dict[str, list[Source]] = defaultdict(list)
    unused = []
    for tensor_name in sorted(tensor_names, key=_natural):
        name, pattern = core_model_loading.rename_source_key(
            tensor_name, renamings, converters, stage.model.base_model_prefix, stage.whole_state
        )
        if name not in stage.whole_state:
            unused.append(tensor_name)
        elif pattern is None:
            sources[name].append(Source(tensor_name))
        else:
            converter = next(one for one in converters if pattern in one.source_patterns)
            if _is_chunked(converter):
                for target, source in _chunks(tensor_name, name, converter.target_patterns):
                    sources[target].append(source)
            else:
                sources[name].append(_fused_source(tensor_name, pattern, converter))
    _tie_head(stage, sources)
    return KeyMap(dict(sources), unused)


def _is_chunked(converter: core_model_loading.WeightConverter) -> bool:
    operations = converter.operations
    return len(operations) == 1 and isinstance(operations[0], core_model_loading.Chunk) and operations[0].dim == 0


def _chunks(tensor_name: str, first_name: str, targets: list[str]) -> list[tuple[str, Source]]:
    """Parameters that one tensor holds one after the other (queries, keys and values), the first one's name given."""
    return [
        (first_name.replace(targets[0], target, 1), Source(tensor_name, num_chunks=len(targets), chunk=chunk))
        for chunk, target in enumerate(targets)
    ]


def _fused_source(tensor_name: str, pattern: str, converter: core_model_loading.WeightConverter) -> Source:
    join_dim = None
    is_stacked = False
    for operation in converter.operations:
        if isinstance(operation, core_model_loading.MergeModulelist) and operation.dim == 0:
            is_stacked = True
        elif isinstance(operation, core_model_loading.Concatenate):
            join_dim = operation.dim
        else:
            raise ConfigError(
                f"tensor {tensor_name} needs {type(operation).__name__} to be read, which is not supported; "
                "save the checkpoint again with a current transformers release",
                field="source",
            )
    expert = re.search(r"\.experts\.(\d+)\.", tensor_name) if is_stacked else None
    return Source(
        tensor_name,
        expert=int(expert.group(1)) if expert else None,
        position=converter.source_patterns.index(pattern),
        join_dim=join_dim,
    )


def _tie_head(stage: CutStage, sources: dict[str, list[Source]]) -> None:
    """A tied head is read from the embedding's tensor."""
    if stage.head is None or not getattr(stage.config, "tie_word_embeddings", False):
        return
    embedding, head = f"{stage.base_prefix}{stage.architecture.parts.embedding}.weight", f"{stage.head}.weight"
    if embedding in sources:
        sources.setdefault(head, sources[embedding])  # a head of its own is kept, as transformers does
    elif head in sources:
        sources[embedding] = sources[head]


def _natural(name: str) -> list[int | str]:
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]
