"""What one copy of a planned model is predicted to do, in tokens each second."""

from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.config.model import ModelConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.memory_plan import MemoryPlan
from serve_app.planning.stage_time import Batch, StageTimes
from serve_app.types.plans import Rates

CONTEXT_TOKENS = 1024  # of each sequence in the prediction, if the model and its cache have room for as many


def predict_rates(spec: ModelSpec, config: ModelConfig, profile: DeviceProfile, memory: MemoryPlan) -> Rates:
    """Of a plan that fits."""
    stages = StageTimes(spec, config, profile, memory)
    context = min(CONTEXT_TOKENS, memory.max_model_len, max(1, memory.kv_cache_tokens))
    num_sequences = max(1, memory.sequences_of(context))
    num_in_flight = min(config.parallel.pipeline, num_sequences)
    num_in_step = -(-num_sequences // num_in_flight)
    alone = stages.of(Batch(1, 1, context), is_full=False)
    together = stages.of(Batch(num_in_step, num_in_step, context), is_full=num_in_flight > 1)
    chunk = min(config.max_num_prefill_tokens, context)
    num_prompts = config.max_num_prefill_tokens // chunk
    first = stages.of(Batch(chunk, 1, context // 2), is_full=False)  # a token of a prompt sees half of it
    full = stages.of(Batch(chunk * num_prompts, num_prompts, context // 2), is_full=config.parallel.pipeline > 1)
    slowest = max(together, key=lambda one: one.total_s)
    period_s = max(slowest.total_s, sum(one.total_s for one in together) / num_in_flight)
    return Rates(
        context,
        chunk * num_prompts / max(one.total_s for one in full),
        sum(one.total_s for one in first) * context / chunk,
        1 / sum(one.total_s for one in alone),
        num_sequences,
        num_sequences / (num_in_flight * period_s),
        slowest.bound,
    )
