"""A Serve file: each mistake is one message that names the setting, the value and the way out."""

from pathlib import Path

import pytest
import yaml
from ray.serve import schema

from serve_app.errors import ConfigError
from serve_app.planning.serve_file import check_serve_file, inspect_serve_file, load_serve_file
from serve_app.planning.serve_options import GATEWAY_IMPORT_PATH, MODEL_IMPORT_PATH, AutoscalingOptions

GATEWAY = """
  - name: gateway
    route_prefix: /
    import_path: serve_app.app:build_gateway
    args: {GATEWAY_ARGS}
"""
MODEL = """
  - name: chat
    route_prefix: null
    import_path: serve_app.app:build_model
    args: {name: chat, source: examples/demo_model/model, MODEL_ARGS}
    deployments: [{name: Router, ROUTER}]
"""
GOOD = f"http_options: {{host: 127.0.0.1, port: 8001}}\napplications:{GATEWAY}{MODEL}"


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "serve_config.yaml"
    for mark in ("GATEWAY_ARGS", ", MODEL_ARGS", ", ROUTER"):
        text = text.replace(mark, "")
    path.write_text(text)
    return path


def messages(tmp_path: Path, text: str) -> list[str]:
    return [str(problem) for problem in check_serve_file(write(tmp_path, text))]


def with_args(args: str) -> str:
    return GOOD.replace("MODEL_ARGS", args)


def with_router(options: str) -> str:
    return GOOD.replace("ROUTER", options)


def test_a_right_file_gives_gateway_and_models(tmp_path: Path) -> None:
    text = with_args("engine: {kv_cache_bytes: 2MiB}, timeouts: {load_s: 60}").replace(
        "ROUTER", "autoscaling_config: {min_replicas: 1, max_replicas: 2}"
    )
    path = write(tmp_path, text.replace("GATEWAY_ARGS", "max_request_bytes: 2MB"))
    serve_file = load_serve_file(path)
    assert (serve_file.http_host, serve_file.http_port, serve_file.gateway_name) == ("127.0.0.1", 8001, "gateway")
    assert serve_file.gateway.max_request_bytes == 2_000_000
    (model,) = serve_file.models
    assert model.config.engine.kv_cache_bytes == 2 * 1024**2
    assert model.router is not None
    assert model.router.autoscaling_config == AutoscalingOptions(min_replicas=1, max_replicas=2)


def test_options_of_deployments_beside_the_routers_are_known(tmp_path: Path) -> None:
    steps = with_args("task: classify, preprocessing: [lowercase]").replace(
        "{name: Router, ROUTER}", "{name: Preprocessor, num_replicas: 3}"
    )
    gateway = GATEWAY.rstrip() + "\n    deployments: [{name: Gateway, ray_actor_options: {num_cpus: 0.5}}]\n"
    graph = (
        "\n  - {name: g, route_prefix: null, import_path: serve_app.app:build_graph, deployments: [{name: Graph, "
        "num_replicas: 2}], args: {name: g, steps: [{name: s, model: chat}], output: s}}\n"
    )
    report = inspect_serve_file(write(tmp_path, steps.replace(GATEWAY, gateway) + graph))
    assert report.serve_file is not None
    assert report.gateway_deployment == report.serve_file.gateway_deployment
    deployments = [report.gateway_deployment, report.models[0].preprocessor, report.graphs[0].deployment]
    assert [one.name for one in deployments if one is not None] == ["Gateway", "Preprocessor", "Graph"]
    assert [one.num_first_replicas for one in deployments if one is not None] == [1, 3, 2]
    assert report.models[0].router is None


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ("engine: {blok_size: 8}", "args.engine.blok_size: unknown setting; did you mean block_size?"),
        ("zzz: 8", "args.zzz: unknown setting; remove it, or use one of name, source, revision"),
        ("parallel: {tensor: '8'}", "args.parallel.tensor: '8' is not an integer; write digits without quotes"),
        ("parallel: {tensor: true}", "args.parallel.tensor: True is not an integer"),
        ("parallel: {tensor: 2.0}", "args.parallel.tensor: 2.0 is not an integer"),
        ("parallel: {pipeline: 0}", "args.parallel.pipeline: 0 is too small; use more than 0"),
        ("parallel:", "args.parallel: None is not a group of settings"),
        ("parallel: 2", "args.parallel: 2 is not a group of settings"),
        ("timeouts: {load_s: .nan}", "args.timeouts.load_s: nan is not finite; write a plain number"),
        ("timeouts: {load_s: .inf}", "args.timeouts.load_s: inf is not finite"),
        ("timeouts: {load_s: '5'}", "args.timeouts.load_s: '5' is not a number; write it without quotes"),
        ("timeouts: {load_s: true}", "args.timeouts.load_s: True is not a number"),
        ("revision: no", "args.revision: False is not text; put it in quotes"),
        ("revision: ' x'", "args.revision: revision=' x' is blank or has stray spaces"),
        ("dtype: fp16", "args.dtype: 'fp16' is not known; use 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("task: speak", "args.task: 'speak' is not known; use 'generate', 'embed', 'classify', 'score' or 'predict'"),
        ("architecture: 'a:B'", "args: task=generate cannot run architecture=a:B; set task to predict"),
        (
            "architecture: a.b",
            "args.architecture: architecture='a.b' is not an import path; write it as package.module",
        ),
        ("arguments: {width: 3}", "args: arguments has no effect without architecture; remove it, or name"),
        ("pooling: mean", "args: pooling has no effect on task=generate; remove it"),
        (
            "task: embed, pooling: median",
            "args.pooling: 'median' is not known; use 'mean', 'cls', 'last', 'max', 'mean_sqrt_len' or 'weightedmean'",
        ),
        ("task: classify, normalize: true", "args: normalize has no effect on task=classify; remove it"),
        (
            "task: predict, architecture: 'a:B', parallel: {tensor: 2}",
            "args: parallel.tensor=2 cannot cut architecture=a:B; use pipeline",
        ),
        (
            "task: predict, architecture: 'a:B', inputs: {x: {dtype: float, shape: [batch]}}",
            "args.inputs.x.dtype: 'float' is not known; use 'bool'",
        ),
        ("engine: {block_size: 0x4000}", "args.engine.block_size: 16384 is too large; use 1024 or less"),
        (
            "engine: {kv_cache_bytes: 5XB}",
            "'5XB' is not a size; write a number of bytes, or one with a unit like 256MiB",
        ),
        ("engine: {kv_cache_bytes: -1}", "args.engine.kv_cache_bytes: -1 is too small"),
        (
            "engine: {max_num_prefill_tokens: 4096}",
            "max_num_prefill_tokens=4096 is more than a step may have, max_num_batched_tokens=2048; lower it",
        ),
        ("engine: {max_num_seqs: 4096}", "max_num_batched_tokens=2048 is less than max_num_seqs=4096; set"),
        ("device: {gpus_per_shard: 1}", "gpus_per_shard=1.0 has no effect on device.type=cpu; remove it"),
        ("device: {accelerator_type: H100}", "accelerator_type='H100' has no effect on device.type=cpu"),
        ("device: {type: cuda, gpus_per_shard: 1.5}", "gpus_per_shard=1.5: a shard uses one GPU; use at most 1"),
        (
            "device: {type: cuda, gpus_per_shard: 0.5}, parallel: {pipeline: 2, tensor: 2}",
            "args.device: gpus_per_shard=0.5 gives no shard a GPU of its own, and NCCL refuses two of a copy's 4 "
            "shards on one; write gpus_per_shard: 1, or one shard (pipeline: 1, tensor: 1)",
        ),
        ("device: {type: cuda, gpus_per_shard: 2}", "gpus_per_shard=2.0: a shard uses one GPU; use at most 1"),
        ("engine: {cuda_graphs: 'off'}", "cuda_graphs=off has no effect on device.type=cpu; remove it"),
        (
            "device: {type: cuda}, engine: {compile: 'off'}",
            "compile=off has no effect on device.type=cuda; remove it",
        ),
        (
            "device: {type: cuda}, engine: {attention: reference, cuda_graphs: auto}",
            "cuda_graphs=auto has no effect beside attention=reference, which attends each sequence by itself; remove "
            "it, or set attention: auto",
        ),
        ("engine: {gpu_memory_utilization: 0.5}", "gpu_memory_utilization=0.5 has no effect on device.type=cpu; set"),
        (
            "device: {type: cuda}, engine: {gpu_memory_utilization: 0.5, kv_cache_bytes: 1GB}",
            "gpu_memory_utilization=0.5 has no effect beside kv_cache_bytes=1000000000; remove one",
        ),
    ],
)
def test_a_wrong_model_setting_is_named_with_value_and_way_out(tmp_path: Path, args: str, expected: str) -> None:
    (message,) = messages(tmp_path, with_args(args))
    assert message.startswith("applications[chat].args")
    assert expected in message


@pytest.mark.parametrize(
    "args",
    [
        "device: {type: cuda, gpus_per_shard: 0.5}",
        "device: {type: cuda, gpus_per_shard: 1}, parallel: {tensor: 2}",
        "parallel: {pipeline: 2, tensor: 2}",
        "engine: {block_size: 8, kv_cache_bytes: 2MiB, prefix_cache: false}",
        "engine: {max_num_prefill_tokens: 64, max_num_batched_tokens: 64}",
        "task: embed, engine: {max_num_seqs: 4, max_num_batched_tokens: 64, max_queued: 8}",
        "task: embed",
    ],
)
def test_settings_that_take_effect_are_allowed(tmp_path: Path, args: str) -> None:
    assert messages(tmp_path, with_args(args)) == []


@pytest.mark.parametrize("task", ["task: embed", "task: classify", "task: score", "task: predict, architecture: 'a:B'"])
@pytest.mark.parametrize(
    ("engine", "told"),
    [
        ("block_size: 16", "block_size has"),  # given, though as it is by default
        ("prefix_cache: false", "prefix_cache has"),
        ("gpu_memory_utilization: 0.5", "gpu_memory_utilization has"),
        ("max_num_prefill_tokens: 256", "max_num_prefill_tokens has"),
        ("attention: padded", "attention has"),
        ("max_queued: 8, prefix_cache: true, kv_cache_bytes: 2MiB", "kv_cache_bytes, prefix_cache have"),
    ],
)
def test_settings_of_the_kv_cache_are_refused_where_there_is_none(
    tmp_path: Path, task: str, engine: str, told: str
) -> None:
    (message,) = messages(tmp_path, with_args(f"{task}, engine: {{{engine}}}"))
    owner = task.partition(",")[0].replace(": ", "=")
    them = "them" if told.endswith("have") else "it"
    assert message == f"applications[chat].args.engine: {told} no effect on {owner}: no KV cache is kept; remove {them}"


def test_settings_of_the_kv_cache_are_refused_for_several_models_too(tmp_path: Path) -> None:
    models = "models: [{name: a, source: s, task: embed}], engine: {max_queued: 8, block_size: 8}"
    text = with_args(models).replace(":build_model\n", ":build_models\n")
    (message,) = messages(tmp_path, text.replace("name: chat, source: examples/demo_model/model, ", ""))
    assert "args.engine: block_size has no effect on models that share a process: no KV cache is kept" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD.replace("http_options", "http_option"), "http_option: unknown setting; did you mean http_options?"),
        (GOOD.replace("port: 8001", "port: '1'"), "http_options.port: '1' is not an integer"),
        (GOOD.replace("port: 8001", "prt: 1"), "http_options.prt: unknown setting; did you mean port?"),
        (GOOD.replace("name: chat\n", "name: chat\n    port: 1\n"), "port: belongs to the whole file; write http_opt"),
        (GOOD.replace("GATEWAY_ARGS", "tokeniser_threads: 2"), "args.tokeniser_threads: unknown setting; did you mean"),
        (GOOD.replace("prefix: null", "prefix: /x"), "applications[chat].route_prefix: '/x' would bypass the Gateway"),
        (
            GOOD.replace("    route_prefix: null\n", ""),
            "applications[chat].route_prefix: missing, and Serve would take /",
        ),
        (GOOD.replace("prefix: /\n", "prefix: /v1\n"), "applications[gateway].route_prefix: '/v1' cannot serve"),
        (GOOD.replace("prefix: /\n", "prefix: null\n"), "route_prefix: None cannot serve the Gateway; write /"),
        (
            GOOD.replace("build_model", "build_modle"),
            "'serve_app.app:build_modle' is not one of ours; use serve_app.app:",
        ),
        (
            f"applications:{GATEWAY}",
            "applications: no model; add an application with import_path: serve_app.app:build_m",
        ),
        (
            f"applications:{MODEL}",
            "applications: no Gateway; add an application with import_path: serve_app.app:build_g",
        ),
        ("[]", "[] is not a Serve file; begin with applications:"),
        (GOOD.replace("port: 8001", "port: 08001"), "line 1: 08001 reads as text in YAML, not as a number"),
        ("applications: 3", "applications: 3 is not a list"),
        ("{}", "applications: missing; add it"),
        (
            GOOD + GATEWAY.replace("gateway", "other", 1),
            "applications[other]: second Gateway beside applications[gatew",
        ),
        (GOOD + GATEWAY.replace("gateway", "other", 1), "applications: route_prefix='/' is given more than once"),
        (GOOD + MODEL, "applications: name='chat' is given more than once; give each application its own name"),
        (
            GOOD + MODEL.replace("chat", "b", 1),
            "applications[b].args.name: 'chat' is the model of applications[chat] too; give it another name",
        ),
        (with_router("num_replica: 2"), "deployments[Router].num_replica: unknown setting; did you mean num_replicas?"),
        (with_router("num_replicas: 0"), "num_replicas=0 is not a number of replicas; use an integer from 1, or auto"),
        (
            with_router("num_replicas: 1, autoscaling_config: {}"),
            "num_replicas=1 beside autoscaling_config; remove one",
        ),
        (with_router("autoscaling_config: {min_replicas: 3}"), "min_replicas=3 is above max_replicas=1; raise max_rep"),
        (
            with_router("autoscaling_config: {min_replica: 3}"),
            "min_replica: unknown setting; did you mean min_replicas?",
        ),
        (
            with_router("placement_group_strategy: PACK"),
            "placement_group_strategy: 'PACK' cannot be set: placement fol",
        ),
        (with_router("max_replicas_per_node: 1"), "max_replicas_per_node: 1 cannot be set"),
        (
            with_router("ray_actor_options: {num_gpus: 1}"),
            "ray_actor_options.num_gpus: 1.0 cannot be set for the Router",
        ),
        (
            with_router("ray_actor_options: {resources: {disk: 1}}"),
            "ray_actor_options.resources: {'disk': 1} cannot be set for the Router; where it is placed follows from",
        ),
        (
            with_router("ray_actor_options: {memory: 1.0}"),
            "ray_actor_options.memory: 1.0 cannot be set for the Router; where",
        ),
        (
            with_router("ray_actor_options: {runtime_env: {}}"),
            "ray_actor_options.runtime_env: {} cannot be set for the Router; write it beside `args`, for the whole",
        ),
        (with_router("ray_actor_options: {num_gpu: 1}"), "num_gpu: unknown setting; did you mean num_gpus?"),
        (
            with_router("max_ongoing_requests: 5"),
            "5 is less than max_num_seqs + max_queued = 1088; remove it, or lower",
        ),
        (
            GOOD.replace("{name: Router", "{name: Ruter"),
            "deployments[0].name: 'Ruter' is not a deployment of this applicati",
        ),
    ],
)
def test_a_mistake_around_our_args_is_named_with_its_way_out(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in message for message in messages(tmp_path, text))


@pytest.mark.parametrize("setting", ["autoscaling_config: {max_replicas: 2}", "num_replicas: 2"])
def test_the_number_of_replicas_is_set_in_one_place(tmp_path: Path, setting: str) -> None:
    text = with_args("autoscaling: {max_replicas: 4}").replace("ROUTER", setting)
    name = setting.partition(":")[0]
    assert messages(tmp_path, text) == [
        f"applications[chat].deployments[Router].{name}: cannot be set beside args.autoscaling, which it follows from; "
        "remove one"
    ]


def test_a_right_file_is_right_for_serve_too(tmp_path: Path) -> None:
    text = with_router("autoscaling_config: {min_replicas: 1, max_replicas: 2}")
    values = yaml.safe_load(write(tmp_path, text).read_text())
    served = schema.ServeDeploySchema.model_validate(values)
    assert [application.import_path for application in served.applications] == [GATEWAY_IMPORT_PATH, MODEL_IMPORT_PATH]
    assert served.http_options.port == load_serve_file(tmp_path / "serve_config.yaml").http_port


@pytest.mark.parametrize(("keys", "has_tls"), [("ssl_keyfile: key.pem, ssl_certfile: cert.pem", True), ("", False)])
def test_tls_is_what_has_a_key_and_a_certificate(keys: str, has_tls: bool, tmp_path: Path) -> None:
    path = write(tmp_path, with_args("").replace("port: 8001", f"port: 8001, {keys}"))
    assert load_serve_file(path).has_tls is has_tls


def test_all_mistakes_come_at_once(tmp_path: Path) -> None:
    text = with_args("parallel: {tensor: 0}, dtyp: auto, max_model_len: 010").replace("port: 8001", "port: 0")
    found = messages(
        tmp_path, text.replace("GATEWAY_ARGS", "client_buffer_tokens: 0").replace("prefix: null", "prefix: /x")
    )
    assert len(found) == 6
    with pytest.raises(ConfigError) as error:
        load_serve_file(tmp_path / "serve_config.yaml")
    assert error.value.message.splitlines() == found


def test_well_formed_models_are_reported_beside_broken_ones(tmp_path: Path) -> None:
    other = MODEL.replace("chat", "b").replace("MODEL_ARGS", "dtype: x")
    report = inspect_serve_file(write(tmp_path, GOOD + other))
    assert report.serve_file is None
    assert [model.name for model in report.models] == ["chat"]


def test_other_applications_may_stand_beside_ours(tmp_path: Path) -> None:
    other = "\n  - {name: other, route_prefix: /other, import_path: 'my_package.app:build', args: {x: 1}}\n"
    assert messages(tmp_path, GOOD + other) == []


def test_a_shared_block_may_be_an_alias(tmp_path: Path) -> None:
    second = MODEL.replace("chat", "b").replace("MODEL_ARGS", "engine: *engine")
    assert messages(tmp_path, with_args("engine: &engine {block_size: 32}") + second) == []


def test_a_number_of_tokens_is_not_a_secret(tmp_path: Path) -> None:
    told = messages(tmp_path, GOOD.replace("GATEWAY_ARGS", "tokenizer_threads: 1000"))
    assert told == ["applications[gateway].args.tokenizer_threads: 1000 is too large; use 256 or less"]


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    text = GOOD.replace("port: 8001", "ssl_keyfile_passwort: hunter2, port: '8001'")
    assert not any("hunter2" in message for message in messages(tmp_path, text))
