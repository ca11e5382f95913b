"""One model that is done with an entry after one step: where it is, how it is split, what it takes and gives."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.encoder_spec import (
    EncoderChoices,
    EncoderSpec,
    check_encoder,
    read_encoder_spec,
)
from serve_app.checkpoints.module_spec import ModuleSpec, read_module_spec
from serve_app.checkpoints.own_modules import own_architecture
from serve_app.checkpoints.quality_gate import check_quality
from serve_app.checkpoints.source import pin_source
from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.layer_weights import weigh_encoder
from serve_app.planning.planner import (
    PlanRow,
    dtype_problems,
    format_plan,
    plan_split,
    quantization_problems,
    served_dtype,
)
from serve_app.planning.text_facts import TextFacts, read_text_facts
from serve_app.types.models import ModelDescription, ModelSource
from serve_app.types.shards import BatchModelReport, BatchModelSettings, ShardSpec
from serve_app.types.tensors import TensorSpec

_UNBOUNDED_VOCABULARY = 2**31 - 1


@dataclass(frozen=True, slots=True)
class BatchModelPlan:
    """One such model, split."""

    config: ModelConfig
    source: ModelSource
    spec: EncoderSpec | ModuleSpec
    shards: list[ShardSpec]
    text: str  # for people: what goes where
    facts: TextFacts
    problems: list[str]  # what its quality gate says; empty: it can be served

    def refuse_problems(self) -> "BatchModelPlan":
        """The plan itself. Raises ConfigError that names every problem."""
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        return self

    def settings(self, shard: ShardSpec) -> BatchModelSettings:
        """What one shard needs to make its part of it."""
        config = self.config
        return BatchModelSettings(
            name=config.name,
            source_dir=self.source.directory,
            task=config.task,
            dtype=config.dtype,
            shard=shard,
            max_model_len=_max_tokens(self.spec, config),
            pooling=config.pooling,
            normalize=config.normalize,
            architecture=config.architecture,
            arguments=self.spec.arguments if isinstance(self.spec, ModuleSpec) else {},
            inputs=tensor_specs(config, "inputs"),
            outputs=tensor_specs(config, "outputs"),
            batch_dim=config.batch_dim,
            quantization=None if config.quantization is None else config.quantization.for_loading,
            linear_kernel=config.engine.linear_kernel,
        )

    @property
    def labels(self) -> list[str]:
        """By output index, as answers show them; empty: there are none, or only an answer shows them."""
        for step in self.config.postprocessing:
            names = step.arguments.get("names")
            if step.name == "label_names" and isinstance(names, list):
                return [str(name) for name in names]
        return list(self.spec.labels)

    @property
    def _is_multi_label(self) -> bool:
        if self.config.postprocessing:  # which decides what is left
            return False
        spec = self.spec
        if isinstance(spec, EncoderSpec):
            return spec.classifier is not None and spec.classifier.is_multi_label
        return bool(self.config.is_multi_label)

    @property
    def text_directory(self) -> Path:
        """Where its tokenizer is."""
        return self.spec.spec.source_dir if isinstance(self.spec, EncoderSpec) else Path(self.source.directory)

    def describe(self, report: BatchModelReport, created_s: int) -> ModelDescription:
        """The model as a Gateway describes it."""
        config, spec = self.config, self.spec
        max_tokens = _max_tokens(spec, config)
        embedding = report.outputs.get("embedding")
        size = embedding.shape[-1] if embedding is not None and embedding.shape else None
        return ModelDescription(
            name=config.name,
            task=config.task,
            source_dir=str(self.text_directory),
            max_model_len=max_tokens,
            max_request_tokens=max_tokens,
            vocab_size=spec.spec.vocab_size if isinstance(spec, EncoderSpec) else _vocab_size(spec),
            eos_token_ids=[],
            created_s=created_s,
            source=self.source,
            has_tokenizer=spec.has_tokenizer if isinstance(spec, ModuleSpec) else True,
            has_preprocessing=bool(config.preprocessing),
            postprocessing_gives=config.postprocessing_gives,
            labels=self.labels,
            is_multi_label=self._is_multi_label,
            score_activation=_activation(spec),
            similarity=spec.similarity if isinstance(spec, EncoderSpec) else "cosine",
            prompts=spec.prompts.texts if isinstance(spec, EncoderSpec) else {},
            default_prompt_name=spec.prompts.default_name if isinstance(spec, EncoderSpec) else None,
            embedding_size=size if isinstance(size, int) else None,
            trained_sizes=list(spec.trained_sizes) if isinstance(spec, EncoderSpec) else [],
            inputs=report.inputs,
            outputs=report.outputs,
            gradient_problem=report.gradient_problem,
        )


def plan_batch_model(config: ModelConfig, base_dir: Path, environment: Environment) -> BatchModelPlan:
    """The model of `config`, split as it says. Raises ConfigError when it cannot be."""
    source = pin_source(config.source, config.revision, base_dir, environment, config.remote_weights)
    directory = Path(source.directory)
    gate = [] if config.quality is None else check_quality(directory, config.quality)
    config = _with_architecture(config, directory)
    if config.architecture is not None:
        module = read_module_spec(config, directory)
        if module.quantization and config.quantization is not None:
            raise ConfigError(
                f"quantization: source={config.source} is quantized already; remove it, or give the unquantized model"
            )
        facts = read_text_facts(directory, _vocab_size(module)) if module.has_tokenizer else TextFacts()
        return BatchModelPlan(config, source, module, _module_shards(config), _module_text(config, module), facts, gate)
    encoder = read_encoder_spec(_choices(config), directory)
    problems = check_encoder(encoder, config.parallel.tensor, config.max_model_len)
    problems += _tokenize_problems(config, encoder)
    problems += quantization_problems(encoder.spec, config) + dtype_problems(encoder.spec, config)
    if problems:
        raise ConfigError("\n".join([*problems, *gate]))
    plan = plan_split(encoder.spec, config.parallel)
    facts = read_text_facts(encoder.spec.source_dir, encoder.spec.vocab_size)
    text = _encoder_text(config, encoder, plan.shards)
    return BatchModelPlan(config, source, encoder, plan.shards, text, facts, gate)


def _choices(config: ModelConfig) -> EncoderChoices:
    return EncoderChoices(
        config.task,
        config.max_model_len,
        config.pooling,
        config.normalize,
        config.is_multi_label,
        config.default_prompt_name,
    )


def _tokenize_problems(config: ModelConfig, encoder: EncoderSpec) -> list[str]:
    """Why a chain that ends in token ids does not go with what the model does to texts."""
    if all(step.name != "tokenize" for step in config.preprocessing):
        return []
    if config.task == "score":
        return ["tokenize makes token ids of single texts, and task=score takes pairs; remove it"]
    name = encoder.prompts.default_name
    if name is None or not encoder.prompts.texts[name]:
        return []
    return [f'tokenize leaves no text to put the prompt {name!r} before; remove it, or set default_prompt_name: ""']


def _with_architecture(config: ModelConfig, directory: Path) -> ModelConfig:
    """The settings with the class that a directory names, where they name none. Raises ConfigError."""
    named = own_architecture(directory) if config.architecture is None else None
    if named is None:
        if config.task == "predict" and config.architecture is None:
            raise ConfigError(
                "task=predict needs architecture: package.module:Class; or choose generate, embed, classify, score",
                field="task",
            )
        return config
    if config.parallel.tensor > 1:
        raise ConfigError(
            f"parallel.tensor={config.parallel.tensor} cannot cut architecture={named}; use pipeline", field="parallel"
        )
    return config.model_copy(update={"architecture": named})


def tensor_specs(config: ModelConfig, which: str) -> dict[str, TensorSpec] | None:
    """The `inputs` or `outputs` of a Serve file; None where the class declares them."""
    given = config.inputs if which == "inputs" else config.outputs
    if given is None:
        return None
    return {name: TensorSpec(one.dtype, tuple(one.shape)) for name, one in given.items()}


def _module_shards(config: ModelConfig) -> list[ShardSpec]:
    """Parts are found where the class is loaded: in the shards."""
    num_stages = config.parallel.pipeline
    return [ShardSpec(stage, num_stages, 0, 1, 0, 0) for stage in range(num_stages)]


def _module_text(config: ModelConfig, module: ModuleSpec) -> str:
    stages = "1 stage" if config.parallel.pipeline == 1 else f"{config.parallel.pipeline} stages"
    weights = f"{module.num_bytes} B of weights over {stages}"
    return f"{config.name}: {module.architecture}, task {config.task}, {weights}, from {module.source_dir}"


def _encoder_text(config: ModelConfig, encoder: EncoderSpec, shards: list[ShardSpec]) -> str:
    spec = encoder.spec
    dtype = served_dtype(spec, config)
    quantization = None if config.quantization is None else config.quantization.for_loading
    weights = weigh_encoder(spec, dtype, quantization, has_pooler=encoder.embedding is None)
    rows = [
        PlanRow(
            shard.stage,
            shard.rank,
            shard.first_layer,
            shard.end_layer,
            weights.bytes_on(shard),
            encoder.max_tokens,
        )
        for shard in shards
    ]
    table = format_plan(rows, last_column="longest text")
    head = f"{config.name}: {spec.model_type}, task {config.task}, {spec.num_layers} layers, {dtype}"
    return f"{head}, from {spec.source_dir}\n{table}"


def _max_tokens(spec: EncoderSpec | ModuleSpec, config: ModelConfig) -> int:
    if isinstance(spec, EncoderSpec):
        return spec.max_tokens
    return config.max_model_len or config.engine.max_num_batched_tokens


def _activation(spec: EncoderSpec | ModuleSpec) -> str:
    """Of a lone output, for a module; of an encoder as its files say."""
    return spec.classifier.activation if isinstance(spec, EncoderSpec) and spec.classifier is not None else "sigmoid"


def _vocab_size(spec: ModuleSpec) -> int:
    size = spec.arguments.get("vocab_size")
    return size if isinstance(size, int) and size > 0 else _UNBOUNDED_VOCABULARY
