"""The environment variables that have an effect, each with its meaning: what docs/configuration.md shows of them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable."""

    name: str
    meaning: str
    default: str | None = None  # None: none


VARIABLES = (
    Variable("RAYSHARD_LOG_FORMAT", "Of log lines: text or json; on a cluster, of each node's `ray start`.", "text"),
    Variable("RAYSHARD_SHARD_SERVER", "Set by `rayshard serve` for its own processes, not by you."),
    Variable("RAYSHARD_WORKER_SERVER", "The same."),
    Variable(
        "XDG_CACHE_HOME",
        "Where rayshard/ is: downloaded weights, compiled kernels, what was measured of this CPU, running servers.",
        "~/.cache",
    ),
    Variable("HF_HOME", "Where the hub's files are.", "huggingface in XDG_CACHE_HOME"),
    Variable("HF_HUB_CACHE", "Where the hub's models are.", "hub in HF_HOME"),
    Variable("HF_ENDPOINT", "The hub's address.", "the hub's own"),
    Variable("HF_TOKEN", "Your account at the hub, for gated and private models.", "that of `hf auth login`"),
    Variable("HF_HUB_OFFLINE", "1, on, yes or true: nothing is downloaded from the hub."),
    Variable("TRANSFORMERS_OFFLINE", "The same."),
    Variable("CXX", "C++ compiler for kernels on CPU.", "the first of g++, c++ and clang++"),
    Variable("CUDA_VISIBLE_DEVICES", "GPUs that count; empty or -1: none.", "all"),
    Variable("OPENAI_API_KEY", "Sent by `rayshard compress` to servers whose models it measures or asks."),
    Variable("TMPDIR", "Where sockets of `rayshard serve` are; a long path turns the throughput profile off.", "/tmp"),
    Variable("RAY_ADDRESS", "Cluster of `rayshard train` and `compress` with workers; `serve` refuses it.", "local"),
    Variable("RAY_DASHBOARD_ADDRESS", "Cluster of `rayshard deploy` and `status`, where `--address` is not given."),
    Variable("RAY_AUTH_TOKEN", "Token for that cluster."),
    Variable("RAY_AUTH_TOKEN_PATH", "File of the token.", "~/.ray/auth_token"),
    Variable("RAY_OVERRIDE_RESOURCES", "CPUs and GPUs that Ray is told of; this machine's are not compared then."),
    Variable(
        "RAY_SERVE_ENABLE_HA_PROXY", "Serve's throughput mode by hand: `rayshard serve` then chooses no profile itself."
    ),
    Variable("RAY_SERVE_THROUGHPUT_OPTIMIZED", "The same."),
    Variable("RAY_SERVE_HAPROXY_BINARY_PATH", "HAProxy for the throughput profile.", "Ray's own, or that of the PATH"),
    Variable(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "A hook of yours in Serve's proxy; the throughput profile needs it for itself, so the plain one runs.",
    ),
    Variable(
        "RAY_SERVE_FORCE_STOP_UNHEALTHY_REPLICAS",
        "1: a replica that hangs is killed. `rayshard serve` sets it; set it yourself for `ray start --head`.",
        "1",
    ),
    Variable("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "How long Serve's proxy may take to start; three times.", "20"),
    Variable("RAY_USAGE_STATS_ENABLED", "1: Ray reports its use to its makers.", "0"),
    Variable("RAY_RAYLET_PID", "Ray sets it for its processes; `serve` compares it before it forks one."),
    Variable("RAY_JOB_ID", "The same."),
    Variable("RAY_CLIENT_MODE", "Ray sets it for itself; `serve` does not compare it."),
    Variable("RAY_LD_PRELOAD_ON_WORKERS", "The same."),
    Variable(
        "RAY_enable_worker_prestart", "1: Ray starts a worker for each CPU ahead, which `serve` cannot fork.", "0"
    ),
    Variable("RAY_prestart_worker_first_driver", "The same, as it starts.", "0"),
    Variable("RAY_worker_niceness", "Niceness of Ray's processes; Ray's own is 15.", "0"),
    Variable(
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S", "How often Serve's controller looks after replicas; Ray's own: 0.1.", "0.2"
    ),
    Variable(
        "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD",
        "With fewer log files Ray looks for new ones ten times a second, else twice.",
        "0",
    ),
    Variable("REPORTER_UPDATE_INTERVAL_MS", "How often Ray's dashboard measures processes; Ray's own: 5000.", "10000"),
    Variable("METRICS_RECORD_INTERVAL_S", "How often it measures itself; Ray's own: 5.", "60"),
    Variable("MALLOC_ARENA_MAX", "Arenas of glibc's malloc in each process; more of them take more memory.", "2"),
    Variable("PYTHONUNBUFFERED", "1: logs are written at once.", "1"),
    Variable("RAY_SERVE_LOG_TO_STDERR", "In the throughput profile: Serve's logs, which `rayshard serve` reads.", "1"),
    Variable("RAY_SERVE_HAPROXY_NBTHREAD", "In the throughput profile: HAProxy's threads.", "1"),
    Variable(
        "RAY_SERVE_HAPROXY_MAXCONN",
        "In the throughput profile: HAProxy's connections; it wants two files each.",
        "4096",
    ),
    Variable("RAY_SERVE_HAPROXY_TUNE_BUFSIZE", "In the throughput profile: bytes of headers that pass.", "81920"),
    Variable(
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
        "In the throughput profile: how long streams outlive a change of HAProxy's settings.",
        "3600",
    ),
    Variable(
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "In the throughput profile: how long a Gateway that leaves still listens, at least.",
        "2",
    ),
    Variable("RAY_SERVE_FALLBACK_PROXY_HTTP_PORT", "In the throughput profile: of the stand-in proxy.", "a free one"),
    Variable("RAY_SERVE_FALLBACK_PROXY_GRPC_PORT", "In the throughput profile: the same for gRPC.", "a free one"),
)
