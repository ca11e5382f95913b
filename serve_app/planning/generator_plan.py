"""One model that generates text: where it is, how it is split, what it may hold."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.checkpoints.model_spec import ModelSpec, read_model_spec
from serve_app.checkpoints.own_modules import own_architecture
from serve_app.checkpoints.quality_gate import check_quality
from serve_app.checkpoints.source import pin_source
from serve_app.config.environment import Environment
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.planner import (
    check_split,
    describe_plan,
    format_plan,
    plan_split,
    served_dtype,
    served_max_model_len,
)
from serve_app.planning.text_facts import AnswerFacts, read_answer_facts
from serve_app.types.models import ModelDescription, ModelSource
from serve_app.types.shards import ShardSettings, ShardSpec


@dataclass(frozen=True, slots=True)
class GeneratorPlan:
    """One such model, and why it cannot be served as `config` says."""

    config: ModelConfig
    source: ModelSource
    spec: ModelSpec
    facts: AnswerFacts
    problems: list[str]  # empty: it can be served

    def refuse_problems(self) -> "GeneratorPlan":
        """The plan itself. Raises ConfigError that names every problem."""
        if self.problems:
            raise ConfigError("\n".join(self.problems))
        return self

    @property
    def shards(self) -> list[ShardSpec]:
        """All stages and ranks. Raises ConfigError."""
        return plan_split(self.spec, self.config.parallel).shards

    @property
    def max_model_len(self) -> int:
        """Tokens of prompt and output together."""
        return served_max_model_len(self.spec, self.config)

    @property
    def text(self) -> str:
        """For people: what goes where."""
        spec, config = self.spec, self.config
        rows = describe_plan(spec, plan_split(spec, config.parallel), config)
        head = (
            f"{config.name}: {spec.model_type}, {spec.num_layers} layers, {served_dtype(spec, config)}, "
            f"up to {self.max_model_len} tokens, from {spec.source_dir}"
        )
        return "\n".join((head, format_plan(rows), *self.facts.lines))

    def settings(self, shard: ShardSpec, num_threads: int) -> ShardSettings:
        """How one shard is to be made."""
        config = self.config
        return ShardSettings(
            shard=shard,
            source_dir=str(self.spec.source_dir),
            dtype=served_dtype(self.spec, config),
            device=config.device.type,
            num_threads=num_threads,
            block_size=config.engine.block_size,
            kv_cache_bytes=config.kv_cache_bytes,
            gpu_memory_utilization=config.engine.gpu_memory_utilization * config.device.gpus_per_shard,
            max_num_batched_tokens=config.engine.max_num_batched_tokens,
            max_num_seqs=config.engine.max_num_seqs,
            quantization=None if config.quantization is None else config.quantization.for_loading,
            max_model_len=self.max_model_len,
            linear_kernel=config.engine.linear_kernel,
            attention=config.engine.attention,
            has_cuda_graphs=config.engine.cuda_graphs == "auto",
            is_compiled=config.device.type == "cpu" and config.engine.compile == "auto",
            eos_token_ids=tuple(sorted(self.facts.end_token_ids)),
        )

    def describe(self, max_request_tokens: int, created_s: int) -> ModelDescription:
        """What a Gateway is told."""
        config = self.config
        return ModelDescription(
            name=config.name,
            task=config.task,
            source_dir=str(self.spec.source_dir),
            max_model_len=self.max_model_len,
            max_request_tokens=max_request_tokens,
            vocab_size=self.spec.vocab_size,
            eos_token_ids=sorted(self.facts.end_token_ids),
            created_s=created_s,
            sampling=self.facts.sampling,
            source=self.source,
            has_preprocessing=bool(config.preprocessing),
            tool_parser=self.facts.tool_parser,
            reasoning_parser=self.facts.reasoning_parser,
            is_prompt_templated=config.is_prompt_templated,
            routed_block_size=config.engine.block_size if config.is_routed_by_prefix else None,
        )


def plan_generator(config: ModelConfig, base_dir: Path, environment: Environment) -> GeneratorPlan:
    """The model of `config`, split as it says. Raises ConfigError when its files cannot be read."""
    source = pin_source(config.source, config.revision, base_dir, environment, config.remote_weights)
    directory = Path(source.directory)
    named = own_architecture(directory)
    if named is not None:
        raise ConfigError(f"task=generate cannot run architecture={named}; set task to classify", field="task")
    spec = read_model_spec(directory)
    problems = check_split(spec, config)
    if config.quality is not None:
        problems += check_quality(directory, config.quality)
    facts = read_answer_facts(
        directory,
        spec.vocab_size,
        has_defaults=config.generation_config == "auto",
        tool_parser=config.tool_parser,
        reasoning_parser=config.reasoning_parser,
    )
    return GeneratorPlan(config, source, spec, facts, problems)
