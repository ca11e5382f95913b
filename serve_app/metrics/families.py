"""Every family of metrics: its name, what it counts, its labels. docs/observability.md names the same (a test).

Names are those that users of vLLM and of OpenTelemetry's GenAI conventions know where they mean the same. Labels are
bounded: models, copies and Gateway replicas that there are, routes, and words of ours; never a client's text.
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0)


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics of one name; a counter's ends in _total, a histogram's series have Prometheus's endings besides."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    bounds_s: tuple[float, ...] = ()  # upper, of a histogram's buckets but the last


REQUESTS = Family(
    "rayshard_requests_total", "counter", "Requests that have ended.", ("gateway", "route", "model", "status")
)
REFUSED = Family(
    "rayshard_requests_refused_total",
    "counter",
    "Requests that ended with an error, by reason.",
    ("gateway", "model", "reason"),
)
LATENCY = Family(
    "rayshard_e2e_request_latency_seconds",
    "histogram",
    "From a request's arrival to the end of its answer, of those that a model has answered whole.",
    ("gateway", "route", "model"),
    (*_SECONDS, 160.0, 320.0, 640.0),
)
FIRST_TOKEN = Family(
    "rayshard_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to the first token of each of its prompts; batches left out.",
    ("gateway", "model"),
    _SECONDS,
)
TOKEN_GAP = Family(
    "rayshard_inter_token_latency_seconds",
    "histogram",
    "Between two tokens of one choice, as they reach the Gateway; batches left out.",
    ("gateway", "model"),
    (0.001, 0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0),
)
PROMPT_TOKENS = Family(
    "rayshard_prompt_tokens_total", "counter", "Tokens that have gone into models.", ("gateway", "model")
)
OUTPUT_TOKENS = Family(
    "rayshard_generation_tokens_total", "counter", "Tokens that models have generated.", ("gateway", "model")
)
RESUMES = Family(
    "rayshard_stream_resumes_total",
    "counter",
    "Generations that went on after their copy of the model was lost.",
    ("gateway", "model"),
)
COPY_CHOICES = Family(
    "rayshard_copy_choices_total",
    "counter",
    "Generations sent to one of several copies, by what chose it.",
    ("gateway", "model", "reason"),
)
MODEL_READY = Family(
    "rayshard_model_ready",
    "gauge",
    "1 while a copy of the model can answer or it sleeps (the next request starts one), 0 while none can.",
    ("gateway", "model"),
)
BATCH_REQUESTS_LEFT = Family(
    "rayshard_batch_requests_left",
    "gauge",
    "Requests that have not ended of the batches that this Gateway works.",
    ("gateway",),
)
RUNNING = Family(
    "rayshard_num_requests_running", "gauge", "Sequences, or entries of batches, in the model.", ("model", "copy")
)
WAITING = Family(
    "rayshard_num_requests_waiting", "gauge", "Sequences, or entries, that wait for their turn.", ("model", "copy")
)
KV_USAGE = Family(
    "rayshard_kv_cache_usage_ratio", "gauge", "Share of the KV cache that sequences hold, 0 to 1.", ("model", "copy")
)
PREFIX_QUERIES = Family(
    "rayshard_prefix_cache_queries_tokens_total",
    "counter",
    "Prompt tokens that were looked for in the prefix cache.",
    ("model", "copy"),
)
PREFIX_HITS = Family(
    "rayshard_prefix_cache_hits_tokens_total",
    "counter",
    "Prompt tokens that were found in the prefix cache.",
    ("model", "copy"),
)
PREEMPTIONS = Family(
    "rayshard_num_preemptions_total",
    "counter",
    "Sequences that gave up their KV cache, to be computed again later.",
    ("model", "copy"),
)
QUEUE = Family(
    "rayshard_request_queue_seconds",
    "histogram",
    "From a sequence's, or a one-step request's, arrival at its copy of the model to its first step; batches left out.",
    ("model", "copy"),
    (0.001, 0.0025, *_SECONDS),
)
STEPS = Family(
    "rayshard_step_seconds",
    "histogram",
    "From sending a step to the shards to having its output, through all stages.",
    ("model", "copy"),
    (0.001, 0.0025, *_SECONDS[:12]),
)
STAGE_BUSY = Family(
    "rayshard_stage_busy_seconds_total",
    "counter",
    "Over all stages: time in which their shards computed.",
    ("model", "copy"),
)
STAGE_IDLE = Family(
    "rayshard_stage_idle_seconds_total",
    "counter",
    "Over all stages: time in which their shards waited while steps were in flight.",
    ("model", "copy"),
)
STAGE_COMPUTE = Family(
    "rayshard_stage_compute_seconds_total",
    "counter",
    "Time from a step's input to its output on one stage, as its shards measure it.",
    ("model", "copy", "stage"),
)
STAGE_STEPS = Family(
    "rayshard_stage_steps_total", "counter", "Steps that one stage has computed.", ("model", "copy", "stage")
)
BUBBLE = Family(
    "rayshard_pipeline_bubble_ratio",
    "gauge",
    "Share of their working time that shards have waited, over the last ten seconds in which steps ran.",
    ("model", "copy"),
)
REPLICAS = Family("rayshard_replicas", "gauge", "1 for each copy of a model, by its state.", ("model", "copy", "state"))
REBUILDS = Family("rayshard_rebuilds_total", "counter", "Times that a copy has lost its shards.", ("model", "copy"))
LINK_BYTES = Family(
    "rayshard_link_bytes_total",
    "counter",
    "Bytes sent over the links: calls by a Gateway; control (steps) and tokens by a copy of a model.",
    ("link", "process"),
)

OF_GATEWAYS = (
    REQUESTS,
    REFUSED,
    LATENCY,
    FIRST_TOKEN,
    TOKEN_GAP,
    PROMPT_TOKENS,
    OUTPUT_TOKENS,
    RESUMES,
    COPY_CHOICES,
    MODEL_READY,
    BATCH_REQUESTS_LEFT,
)
OF_COPIES = (
    REPLICAS,
    RUNNING,
    WAITING,
    KV_USAGE,
    PREFIX_QUERIES,
    PREFIX_HITS,
    PREEMPTIONS,
    QUEUE,
    STEPS,
    STAGE_BUSY,
    STAGE_IDLE,
    STAGE_COMPUTE,
    STAGE_STEPS,
    BUBBLE,
    REBUILDS,
)
ALL = (*OF_GATEWAYS, *OF_COPIES, LINK_BYTES)
