"""A pipeline stage of a transformers encoder, with its classifier or its pooling on the last stage."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
)

from serve_app.architectures.lookup import EMBEDDERS
from serve_app.checkpoints.encoder_spec import EncoderSpec
from serve_app.models.packed_attention import PACKED_ATTENTION, PackedEntries, forward_packed
from serve_app.models.pooling import POOLS, PooledTokens, pool_first
from serve_app.models.transformers_model import PairPassThrough, PassThrough, keep_facts, replace_module
from serve_app.models.vector_head import VectorHead
from serve_app.types.shards import ShardSpec
from serve_app.types.tensors import TensorSpec

_HIDDEN = "hidden_states"
_COLUMN_STYLES = {"colwise", "packed_colwise"}
_KNOWN_STYLES = {
    *_COLUMN_STYLES,
    "rowwise",
    "replicated_with_grad_allreduce",
}  # the last are norms of a rank's own heads
_PROMPT_LENGTHS = "prompt_lengths"  # tokens of the prompt that each text begins with


class EncoderStage:
    """BatchStage of an encoder: layers [first_layer, end_layer), after the embeddings, before the head or the pooling.

    Built on the meta device: parameters have shapes and no memory until a loader fills them.
    """

    def __init__(self, config: PreTrainedConfig, spec: EncoderSpec, dtype: torch.dtype, shard: ShardSpec) -> None:
        self.shard = shard
        self.dtype = dtype
        self.architecture = EMBEDDERS[config.model_type]
        self.head: str | None = None
        assert self.architecture.encoder is not None
        self._facts = self.architecture.encoder
        self.inputs = {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))}
        if spec.has_token_types:
            self.inputs["token_type_ids"] = TensorSpec("int64", ("tokens",))
        if spec.has_prompt_lengths:
            self.inputs[_PROMPT_LENGTHS] = TensorSpec("int64", ("batch",))
        is_embedder = spec.embedding is not None
        if spec.embedding is not None:
            self.outputs = {"embedding": TensorSpec("float32", ("batch", spec.embedding.size))}
        elif spec.classifier is not None:
            self.outputs = {"logits": TensorSpec("float32", ("batch", spec.classifier.num_labels))}
        self.first_part, self.end_part = shard.first_layer, shard.end_layer
        self.parameter_bytes = 0
        self.linear_kernel = ""
        self.vectors: VectorHead | None = None  # of an embedder's last stage; made and filled by the loader
        self._spec = spec
        self._is_embedder = is_embedder
        AttentionInterface.register(PACKED_ATTENTION, forward_packed)  # without a mask function, so no mask is built
        attention = "eager" if self._facts.is_square else PACKED_ATTENTION
        make = AutoModel if is_embedder else AutoModelForSequenceClassification
        with torch.device("meta"):
            self.model: PreTrainedModel = make.from_config(
                config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
            )
        self.model.eval().requires_grad_(False)
        self.config = self.model.config
        self.head_kinds = spec.spec.head_kinds
        self.base: PreTrainedModel = self.model.base_model
        self.base_prefix = "" if self.base is self.model else f"{self.model.base_model_prefix}."
        self.whole_state = {key: tensor.shape for key, tensor in self.model.state_dict().items()}
        self._incoming: Tensor | None = None
        self._entries: PackedEntries | None = None
        self._cut()

    @property
    def layers(self) -> nn.ModuleList:
        """All layers of the model; those of other stages are pass-throughs."""
        layers = self.base.get_submodule(self.architecture.parts.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def own_layers(self) -> list[nn.Module]:
        """The layers of this stage."""
        return list(self.layers[self.shard.first_layer : self.shard.end_layer])

    @property
    def root(self) -> nn.Module:
        """See BatchStage."""
        model: nn.Module = self.model
        return model

    @property
    def token_embedding(self) -> nn.Module | None:
        """See BatchStage."""
        if not self.shard.is_first:
            return None
        embedding: nn.Module = self.base.get_submodule(self.architecture.parts.embedding)
        return embedding

    @property
    def column_layers(self) -> list[nn.Module] | None:
        """See BatchStage."""
        cut = self.architecture.tensor_cut
        if self.shard.num_ranks == 1 or cut is None:
            return []
        plan = cut.plan if cut.plan is not None else self.config.base_model_tp_plan
        if not _KNOWN_STYLES.issuperset(plan.values()):
            return None
        columns = [pattern.partition(".*.")[2] for pattern, style in plan.items() if style in _COLUMN_STYLES]
        named = [dict(layer.named_modules()) for layer in self.own_layers]
        return [modules[name] for modules in named for name in columns if name in modules]

    def forward(self, inputs: dict[str, Tensor], hidden: dict[str, Tensor] | None) -> dict[str, Tensor]:
        """Run this stage over packed texts; see BatchStage. Hidden states are [T, D]."""
        has_farther_window = self._facts.is_causal and getattr(self.config, "is_causal", True) is False
        entries = PackedEntries(
            inputs["lengths"], is_causal=self._spec.is_causal, has_farther_window=has_farther_window
        )
        arguments = self._arguments(inputs, hidden, entries)
        self._entries = entries
        try:
            if not self.shard.is_last:
                return {_HIDDEN: self._unpad(self.base(**arguments).last_hidden_state, entries)}
            if self.vectors is not None:
                states = self._unpad(self.base(**arguments).last_hidden_state, entries)
                return {"embedding": self.vectors(states, entries, inputs.get(_PROMPT_LENGTHS))}
            if self._facts.head_pools == "last":
                states = self.base(**arguments).last_hidden_state[0, self._last_rows(inputs["input_ids"], entries)]
                return {"logits": self.model.get_submodule("score")(states).float()}  # [B, C]
            return {"logits": self.model(**arguments).logits.float()}
        finally:
            self._entries = self._incoming = None

    def _arguments(
        self, inputs: dict[str, Tensor], hidden: dict[str, Tensor] | None, entries: PackedEntries
    ) -> dict[str, Any]:
        positions = entries.positions
        if self._facts.has_positions_after_padding:
            positions = positions + self.config.pad_token_id + 1
        arguments: dict[str, Any] = {"position_ids": self._pad(positions, entries)}
        if self._facts.is_square:
            arguments["attention_mask"] = self._pad(torch.ones_like(positions), entries)
        else:
            arguments["packed_entries"] = entries
        if self._facts.is_causal:  # a decoder, whichever way it attends
            arguments["use_cache"] = False
        if "token_type_ids" in inputs:
            arguments["token_type_ids"] = self._pad(inputs["token_type_ids"], entries)
        if hidden is None:
            arguments["input_ids"] = self._pad(inputs["input_ids"], entries)
        else:
            self._incoming = arguments["inputs_embeds"] = self._pad(hidden[_HIDDEN], entries)
        return arguments

    def _last_rows(self, token_ids: Tensor, entries: PackedEntries) -> Tensor:
        """The row of each entry's last token that is not padding: token_ids [T] -> [B] int64; its first if all are."""
        padding = self.config.pad_token_id
        if padding is None:
            return entries.ends - 1
        places = entries.positions * (token_ids != padding)
        return entries.starts + entries.starts.new_zeros(len(entries.lengths)).scatter_reduce_(
            0, entries.entry_of, places, "amax"
        )

    def _pad(self, packed: Tensor, entries: PackedEntries) -> Tensor:
        """[T, ...] -> [1, T, ...], or [B, L, ...] for an architecture with square attention."""
        if not self._facts.is_square:
            return packed[None]
        shape = (len(entries.lengths), int(entries.lengths.max()), *packed.shape[1:])
        padded = packed.new_zeros(shape)
        padded[entries.entry_of, entries.positions] = packed
        return padded

    def _unpad(self, states: Tensor, entries: PackedEntries) -> Tensor:
        """[1, T, D] or [B, L, D] -> [T, D]."""
        return states[entries.entry_of, entries.positions] if self._facts.is_square else states[0]

    def _cut(self) -> None:
        """Replace what belongs to other stages, and let heads see one token of each packed entry."""
        shard, facts, parts = self.shard, self._facts, self.architecture.parts
        gives_pairs = facts.is_square or self.architecture.layers_give_tuples
        for index in range(len(self.layers)):
            if not shard.first_layer <= index < shard.end_layer:
                stand_in = PairPassThrough() if gives_pairs else PassThrough()
                self.layers[index] = keep_facts(stand_in, self.layers[index])
        if not shard.is_first:
            replace_module(self.base, parts.embeddings or parts.embedding, _GivenEmbeddings())
            for name in parts.entry:
                if hasattr(self.base, name):  # only where embeddings are narrower than layers
                    replace_module(self.base, name, PassThrough())
            for name in parts.first_only:
                parent, _, child = name.rpartition(".")
                setattr(self.base.get_submodule(parent), child, None)
            self.own_layers[0].register_forward_pre_hook(self._inject)
        if getattr(self.base, "pooler", None) is not None and (self._is_embedder or not shard.is_last):
            self.base.pooler = None  # no vector is made by it
        if not shard.is_last:
            for name in parts.exit:
                replace_module(self.base, name, PassThrough())
            if not self._is_embedder:
                self._drop_head()
        elif not self._is_embedder and not facts.is_square and facts.head_pools != "last":
            self._let_head_see_entries()

    def _drop_head(self) -> None:
        for name, _child in list(self.model.named_children()):
            if f"{name}." != self.base_prefix:
                delattr(self.model, name)

    def _let_head_see_entries(self) -> None:
        if self._facts.has_inner_pooler:
            pooler = self.base.pooler
            assert isinstance(pooler, nn.Module)
            pooler.register_forward_pre_hook(self._select_for_pooler)
        else:
            self.base.register_forward_hook(self._select_for_head)

    def _select_for_pooler(self, _pooler: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self._entries is not None
        return (pool_first(args[0][0], PooledTokens(self._entries))[:, None],)  # [B, 1, D]

    def _select_for_head(self, _base: nn.Module, _args: tuple[object, ...], output: Any) -> Any:
        assert self._entries is not None
        pooling = "cls"
        if self._facts.head_pools == "as_config":
            pooling = self.config.classifier_pooling
        tokens = PooledTokens(self._entries)
        output.last_hidden_state = POOLS[pooling](output.last_hidden_state[0], tokens)[:, None]  # [B, 1, D]
        return output

    def _inject(self, _layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hand the previous stage's hidden states to the first own layer, whatever was done to them on the way."""
        return (self._incoming, *args[1:])


class _GivenEmbeddings(nn.Module):
    """Embeddings of a later stage: the hidden states that came in."""

    def forward(self, *args: Tensor | None, inputs_embeds: Tensor | None = None, **_kwargs: object) -> Tensor:
        given = [inputs_embeds, *args]
        return next(tensor for tensor in given if tensor is not None and tensor.is_floating_point())
