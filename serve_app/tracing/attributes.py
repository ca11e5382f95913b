"""Names of what spans carry: those of OpenTelemetry's conventions where there is one, else ours under `rayshard.`.

https://opentelemetry.io/docs/specs/semconv: gen-ai/gen-ai-spans, http/http-spans, rpc/rpc-spans. Those of GenAI and RPC
may still change, so the package that has them keeps them under a private name; a test holds these to it.

Nothing that a client has written is a value, save numbers: no prompt, no answer, no path, no name that is not served.
"""

from collections.abc import Mapping, Sequence

from serve_app.types.generation import GenerateRequest

Value = str | int | float | bool | Sequence[str] | Sequence[int] | Sequence[float]
Attributes = Mapping[str, Value]

ERROR_TYPE = "error.type"
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
RPC_SYSTEM = "rpc.system.name"
RPC_METHOD = "rpc.method"
RPC_STATUS = "rpc.response.status_code"

OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
MAX_TOKENS = "gen_ai.request.max_tokens"
TEMPERATURE = "gen_ai.request.temperature"
TOP_P = "gen_ai.request.top_p"
TOP_K = "gen_ai.request.top_k"
FREQUENCY_PENALTY = "gen_ai.request.frequency_penalty"
PRESENCE_PENALTY = "gen_ai.request.presence_penalty"
NUM_CHOICES = "gen_ai.request.choice.count"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"

REQUEST_ID = "rayshard.request.id"
COPY = "rayshard.copy"
PRIORITY = "rayshard.request.priority"
NUM_ENTRIES = "rayshard.request.num_entries"
NUM_DONE_TOKENS = "rayshard.request.num_done_tokens"  # of the answer, by the copy that was lost
NUM_PREEMPTIONS = "rayshard.num_preemptions"
IS_CANCELLED = "rayshard.is_cancelled"  # its caller wanted no more of it
STEP = "rayshard.step.id"
STEP_ROWS = "rayshard.step.num_rows"  # sequences
STEP_TOKENS = "rayshard.step.num_tokens"
STAGE_BUSY = "rayshard.step.stage_busy_s"  # of each stage: from its input to its output

OURS = "rayshard"


def request_attributes(model: str, request_id: str, num_entries: int) -> dict[str, Value]:
    """What is asked of a model that is done with an entry after one step, of steps beside one, or of a graph."""
    return {REQUEST_MODEL: model, REQUEST_ID: request_id, NUM_ENTRIES: num_entries}


def generation_attributes(model: str, request: GenerateRequest) -> dict[str, Value]:
    """What is asked of a generator."""
    params = request.params
    return {
        OPERATION: "text_completion",  # tokens in, tokens out: a conversation's template is rendered before
        PROVIDER: OURS,
        REQUEST_MODEL: model,
        MAX_TOKENS: params.max_tokens,
        TEMPERATURE: params.temperature,
        TOP_P: params.top_p,
        TOP_K: params.top_k,
        FREQUENCY_PENALTY: params.frequency_penalty,
        PRESENCE_PENALTY: params.presence_penalty,
        NUM_CHOICES: request.num_choices,
        INPUT_TOKENS: len(request.prompt_token_ids),
        REQUEST_ID: request.request_id,
        PRIORITY: request.priority,
    }
