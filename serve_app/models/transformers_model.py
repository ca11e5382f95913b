"""A pipeline stage of a transformers decoder: the library's own class, with the parts of other stages cut away."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from serve_app.architectures.head_sizes import HeadSizes, head_sizes_of
from serve_app.architectures.lookup import GENERATORS
from serve_app.errors import ConfigError
from serve_app.models.compiled.decoder import CompiledDecoder, compiled_decoder
from serve_app.models.compiled.int8_product import compile_int8
from serve_app.models.compiled.library import CompiledKernels
from serve_app.models.compiled.row_angles import KeptAngles
from serve_app.models.fused_decoder import FusedMLP, RotaryTables, fuse_layers
from serve_app.models.fused_norm import compile_norms, fuse_norms
from serve_app.models.step_attention import StageAttention
from serve_app.models.torch_dtypes import DTYPE_NAMES, TORCH_DTYPES
from serve_app.types.dtypes import SERVED_DTYPES
from serve_app.types.shards import ShardSpec

logger = logging.getLogger(__name__)

ATTENTION_NAME = "rayshard_paged"


def read_config(source_dir: Path) -> PreTrainedConfig:
    """The transformers config of a checkpoint directory."""
    config: PreTrainedConfig = AutoConfig.from_pretrained(
        str(source_dir), local_files_only=True, trust_remote_code=False
    )
    config.return_dict = True  # whatever the file says about outputs, ours are these
    for name in ("output_attentions", "output_hidden_states", "output_router_logits"):
        if getattr(config, name, False):
            setattr(config, name, False)
    return config


def resolve_dtype(config: PreTrainedConfig, dtype: str) -> torch.dtype:
    """`auto` is the checkpoint's own dtype, float32 where it names none."""
    if dtype != "auto":
        return TORCH_DTYPES[dtype]
    own: torch.dtype | None = config.dtype
    if own is None:
        return torch.float32
    if DTYPE_NAMES.get(own) not in SERVED_DTYPES:
        raise ConfigError(f"dtype=auto, but the checkpoint's is {own}; set dtype to one of {', '.join(SERVED_DTYPES)}")
    return own


class TransformersStage:
    """Layers [first_layer, end_layer) of a decoder, with the embedding and the head at the ends of the pipeline.

    Built on the meta device: parameters have shapes and no memory until a loader fills them.
    head_kinds: of each kind of layers of the whole model, the widest first; None: all have what the config says.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dtype: torch.dtype,
        shard: ShardSpec,
        head_kinds: tuple[HeadSizes, ...] | None = None,
    ) -> None:
        self.shard = shard
        self.architecture = GENERATORS[config.model_type]
        self.head = self.architecture.parts.head
        AttentionInterface.register(ATTENTION_NAME, _forward_attention)  # without a mask function, so no mask is built
        with torch.device("meta"):
            self.model: PreTrainedModel = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=ATTENTION_NAME, trust_remote_code=False
            )
        if self.architecture.sparse_above:
            _drop_indexers(self.model)
        fuse_norms(self.model, self.architecture.fused)
        self._is_fused = fuse_layers(self.model, self.architecture.fused)
        self.model.eval().requires_grad_(False)
        self.config = self.model.config
        self.head_kinds = head_kinds or (head_sizes_of(self.config),)
        self.dtype = dtype
        self.base: PreTrainedModel = self.model.base_model
        self.base_prefix = f"{self.model.base_model_prefix}."
        self.whole_state = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
        self.kernels: CompiledKernels | None = None
        self._decoder: CompiledDecoder | None = None
        self._angles: KeptAngles | None = None
        self._incoming: Tensor | None = None
        self._outgoing: Tensor | None = None
        self._cut()
        self._own = self.own_layers

    @property
    def layers(self) -> nn.ModuleList:
        """All layers of the model; those of other stages are pass-throughs."""
        layers = self.base.get_submodule(self.architecture.parts.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def hidden_shape(self) -> tuple[int, ...]:
        """Of one token's hidden states between stages."""
        key = self.architecture.streams_key
        return (self.config.hidden_size,) if key is None else (getattr(self.config, key), self.config.hidden_size)

    @property
    def own_layers(self) -> list[nn.Module]:
        """The layers of this stage."""
        return list(self.layers[self.shard.first_layer : self.shard.end_layer])

    def take_kernels(self, kernels: CompiledKernels) -> None:
        """Once its tensors are on CPU: have compiled kernels do what they can."""
        compile_int8(self.model, kernels)
        if kernels.serve(self.dtype):
            compile_norms(self.model, self.architecture.fused, kernels)
            self.kernels = kernels
            for module in self.model.modules():
                if isinstance(module, FusedMLP):
                    module.kernels = kernels
            if self._is_fused:
                last = (self.base.norm, self.model.lm_head) if self.shard.is_last else None
                found = compiled_decoder(self._own, kernels, self.dtype, last)
                if isinstance(found, str):
                    logger.info("layers are run one by one: %s", found)
                else:
                    self._decoder, self._angles = found, KeptAngles(self.base.rotary_emb, self.dtype)

    def keep_angles(self, num_positions: int) -> None:
        """Once its rotary frequencies change no more: keep what steps of decoding would compute anew."""
        if self._angles is not None:
            self._angles.keep(num_positions)

    def forward(
        self, inputs: Tensor, positions: Tensor, attention: StageAttention, logit_rows: Tensor | None
    ) -> Tensor:
        """Run this stage over packed tokens.

        inputs [T] int64 token ids on the first stage, [T, D] hidden states on the others; positions [T] int64;
        logit_rows [N] int64 on the last stage -> hidden states [T, D], or logits [N, V] on the last stage.
        """
        if self._is_fused:
            return self._forward_fused(inputs, positions, attention, logit_rows)
        arguments: dict[str, Any] = {"position_ids": positions[None], "use_cache": False, "paged_kv": attention}
        if self.architecture.sparse_above:  # its class cuts an indexer's mask out of it
            arguments["attention_mask"] = positions.new_zeros(1, 1, 1, 1)
        if self.shard.is_first:
            arguments["input_ids"] = inputs[None]
        else:
            self._incoming = arguments["inputs_embeds"] = inputs[None]
            if self.architecture.streams_key is not None:
                arguments["inputs_embeds"] = inputs[None, :, 0]
        if not self.shard.is_last:
            self.base(**arguments)
            assert self._outgoing is not None, "the last own layer has run"
            return self._outgoing[0]
        logits: Tensor = self.model(**arguments, logits_to_keep=logit_rows).logits
        return logits[0]

    def _forward_fused(
        self, inputs: Tensor, positions: Tensor, attention: StageAttention, logit_rows: Tensor | None
    ) -> Tensor:
        """The same, layer by layer, past the forwards of the model and of its base."""
        base: Any = self.base
        self._incoming = hidden = base.embed_tokens(inputs[None]) if self.shard.is_first else inputs[None]
        rows = None if self._decoder is None else attention.compiled_rows()
        if self._decoder is not None and self._angles is not None and rows is not None:
            wanted = logit_rows if self._decoder.has_head else None
            outputs = self._decoder.run(hidden[0], self._angles.of(positions), rows, wanted)
            if wanted is not None:
                return outputs
            hidden = outputs[None]
        else:
            cos, sin = base.rotary_emb(hidden, position_ids=positions[None])
            tables = RotaryTables(cos, sin, self.kernels)
            for layer in self._own:
                hidden = layer(hidden, tables, attention)
        if not self.shard.is_last:
            return hidden[0]
        logits: Tensor = self.model.lm_head(base.norm(hidden[:, logit_rows]))
        return logits[0]

    def _cut(self) -> None:
        """Replace what belongs to other stages."""
        shard, parts = self.shard, self.architecture.parts
        for index in range(len(self.layers)):
            if not shard.first_layer <= index < shard.end_layer:
                stand_in = PairPassThrough() if self.architecture.layers_give_tuples else PassThrough()
                self.layers[index] = keep_facts(stand_in, self.layers[index])
        if not shard.is_first:
            for name in parts.positions:
                replace_module(self.base, name, _NoPositions())
            for name in (*parts.entry, parts.embedding):
                replace_module(self.base, name, PassThrough())
            self.own_layers[0].register_forward_pre_hook(self._inject)
        if not shard.is_last:
            for name in parts.exit:
                replace_module(self.base, name, PassThrough())
            assert parts.head is not None, "it generates"
            replace_module(self.model, parts.head, PassThrough())
            self.own_layers[-1].register_forward_hook(self._keep)

    def _inject(self, _layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hand the previous stage's hidden states to the first own layer, whatever was done to them on the way."""
        return (self._incoming, *args[1:])

    def _keep(self, _layer: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Keep the last own layer's hidden states, whatever the model's forward does to them afterwards."""
        self._outgoing = output[0] if isinstance(output, tuple) else output


class PassThrough(nn.Module):
    """Takes the place of another stage's module, and returns its input."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        """The first argument, as it is."""
        return hidden_states


class PairPassThrough(nn.Module):
    """Takes the place of another stage's layer, of a class whose layers give more than their hidden states."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """The first argument, as it is, and nothing beside it."""
        return hidden_states, hidden_states.new_empty(0)


class _AllChosen(nn.Module):
    """Takes the place of an indexer, in contexts that are short enough for it to choose all."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states.new_empty(0)


def _drop_indexers(model: nn.Module) -> None:
    for module in list(model.modules()):
        if isinstance(getattr(module, "indexer", None), nn.Module):
            module.indexer = _AllChosen()


def keep_facts(stand_in: nn.Module, layer: nn.Module) -> nn.Module:
    """Give a stand-in what a model's forward reads of a layer: its kind of attention, its index."""
    for name, value in vars(layer).items():
        if isinstance(value, str | int | bool) and not name.startswith("_") and name != "training":
            setattr(stand_in, name, value)
    return stand_in


class _NoPositions(nn.Module):
    """Learned positions were added on the first stage."""

    def forward(self, *_args: Any, **_kwargs: Any) -> Tensor:
        return torch.zeros(())


def replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in another's place, unless that one is absent in this model."""
    parent_name, _, child = name.rpartition(".")
    parent = root.get_submodule(parent_name)
    if getattr(parent, child) is not None:
        setattr(parent, child, module)


def _forward_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    paged_kv: StageAttention,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [1, H, T, Dh], key [1, K, T, Dh], value [1, K, T, Dv] -> [1, T, H, Dv].

    s_aux [H]: the heads' sinks.
    """
    assert attention_mask is None or attention_mask.numel() == 1, "no mask is built for the paged attention"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer_index: int = module.layer_idx  # type: ignore[assignment]
    attended = paged_kv.attend(layer_index, query[0], key[0], value[0], scale, sliding_window, softcap, s_aux)
    return attended[None], None
