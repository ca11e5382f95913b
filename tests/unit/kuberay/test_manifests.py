"""What `rayshard kuberay` prints: taken by a strict API server and by the operator; a typo is not."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from serve_app.config.environment import read_environment
from serve_app.errors import ConfigError
from serve_app.kuberay.manifests import plan_manifests
from serve_app.kuberay.options import Entry, KubeRayOptions, parse_place
from serve_app.kuberay.ray_service import RAY_VERSION
from tests.kuberay_schema import ROOT, as_stored, operator_mistakes, schema, schema_mistakes
from tests.published_models import write_published

LAPTOP = ROOT / "serve_config.yaml"
EXAMPLES = parse_place(f"{ROOT / 'examples'}=/app/examples")
GATEWAY = "  - {name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}"
MODEL = "import_path: 'serve_app.app:build_model'"
GPUS = f"""
http_options: {{host: 127.0.0.1, port: 8000}}
grpc_options:
  port: 9000
  grpc_servicer_functions: [serve_app.protos.rayshard_pb2_grpc.add_RayshardServicer_to_server]
applications:
{GATEWAY}
  - name: chat
    route_prefix: null
    {MODEL}
    args:
      {{name: chat, source: llama, parallel: {{pipeline: 2, tensor: 4}}, max_model_len: 8192,
       device: {{type: cuda, accelerator_type: H100}}}}
"""
SCALED = f"""
applications:
{GATEWAY}
  - name: chat
    route_prefix: null
    {MODEL}
    args: {{name: chat, source: llama, parallel: auto, max_model_len: 8192, device: {{type: cuda}}}}
    deployments: [{{name: Router, autoscaling_config: {{min_replicas: 0, initial_replicas: 1, max_replicas: 4}}}}]
  - name: small
    route_prefix: null
    {MODEL}
    args: {{name: small, source: /models/small, max_model_len: 2048, device: {{cpu_threads: 8}}}}
    deployments: [{{name: Router, autoscaling_config: {{min_replicas: 1, max_replicas: 6}}}}]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("files")
    write_published("llama-3.1-70B", directory / "llama")
    write_published("llama-3.1-8B", directory / "small")
    (directory / "gpus.yaml").write_text(GPUS)
    (directory / "scaled.yaml").write_text(SCALED)
    return directory


def options_in(files: Path, **given: Any) -> KubeRayOptions:
    return KubeRayOptions(places=(EXAMPLES, parse_place(f"{files}=/models")), models_claim="models", **given)


def printed(path: Path, options: KubeRayOptions) -> str:
    return plan_manifests(path, options, read_environment({})).text


def of(text: str, kind: str) -> Any:
    (found,) = [one for one in yaml.safe_load_all(text) if one["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def every(files: Path) -> dict[str, str]:
    """The three files, each with and without everything that can be asked for."""
    asked = {
        "namespace": "models",
        "cache_claim": "cache",
        "keys_secret": "keys",
        "hub_secret": "hub",
        "token_secret": "token",
        "redis": "redis.data:6379",
        "redis_secret": "redis",
        "entry": Entry("gateway", "cilium", "models.example.com", "models-tls"),
        "has_monitoring": True,
        "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "gpu_type": "H100",
    }
    ingress = {**asked, "entry": Entry("ingress", "nginx", "models.example.com", "models-tls")}
    return {
        "laptop": printed(LAPTOP, KubeRayOptions(places=(EXAMPLES,))),
        "gpus": printed(files / "gpus.yaml", options_in(files)),
        "scaled": printed(files / "scaled.yaml", options_in(files, gpu_type="H100")),
        "laptop, all": printed(LAPTOP, options_in(files, **asked)),
        "gpus, all": printed(files / "gpus.yaml", options_in(files, **ingress, gpus_per_pod=4)),
        "scaled, all": printed(files / "scaled.yaml", options_in(files, **asked)),
    }


def test_a_strict_server_and_the_operator_take_them(every: dict[str, str]) -> None:
    for text in every.values():
        service = of(text, "RayService")
        assert schema_mistakes(service) == []
        assert operator_mistakes(service) == []


def test_kubernetes_takes_what_stands_beside(every: dict[str, str]) -> None:
    validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate, of the test extra, is missing")
    kinds = set()
    for text in every.values():
        for one in yaml.safe_load_all(text):
            if one["apiVersion"].split("/")[0] in ("networking.k8s.io", "policy", "v1"):
                validate.validate(one, "1.35", strict=True)
                kinds.add(one["kind"])
            if one["kind"] == "RayService":
                for template in templates(one):
                    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
                    validate.validate(pod, "1.35", strict=True)
    assert kinds == {"NetworkPolicy", "PodDisruptionBudget", "Ingress"}


def templates(service: Any) -> list[Any]:
    cluster = service["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]


CLUSTER = ("spec", "rayClusterConfig")
WORKERS = (*CLUSTER, "workerGroupSpecs", 0)
POD = (*WORKERS, "template", "spec")
CONTAINER = (*POD, "containers", 0)


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        (("spec", "serveConfigV2"), "serveConfigV3"),
        (("spec", "upgradeStrategy", "type"), "=NewClusters"),
        (("spec", "excludeHeadPodFromServeSvc"), "excludeHeadPodFromServeService"),
        ((*CLUSTER, "authOptions", "mode"), "=tokens"),
        ((*CLUSTER, "autoscalerOptions", "version"), "=v3"),
        ((*CLUSTER, "autoscalerOptions", "idleTimeoutSeconds"), "idleTimeoutSecond"),
        ((*CLUSTER, "rayVersion"), "=2.6.0"),
        ((*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus"), "num-cpu"),
        ((*CLUSTER, "headGroupSpec", "rayStartParams", "num-cpus"), 0),
        ((*CLUSTER, "gcsFaultToleranceOptions", "redisAddress"), "redisAdress"),
        ((*WORKERS, "minReplicas"), "minreplicas"),
        ((*WORKERS, "maxReplicas"), 0),
        ((*POD, "terminationGracePeriodSeconds"), "=180s"),
        ((*POD, "securityContext", "seccompProfile", "type"), "typ"),
        ((*POD, "topologySpreadConstraints", 0, "whenUnsatisfiable"), "whenUnsatisfyable"),
        ((*CONTAINER, "securityContext", "readOnlyRootFilesystem"), "readOnlyRootFileSystem"),
        ((*CONTAINER, "resources", "limits", "memory"), "=6 Gigabytes"),
        ((*CONTAINER, "resources", "limits", "nvidia.com/gpu"), "nvidia.com/gpus"),
        ((*CONTAINER, "readinessProbe", "httpGet", "path"), "paths"),
        ((*CONTAINER, "volumeMounts", 0, "name"), "=shared-memori"),
        ((*CONTAINER, "lifecycle", "preStop"), "preStopp"),
        (("metadata", "name"), "=Rayshard"),
    ],
)
def test_a_typo_is_found(path: tuple[str | int, ...], typo: str | int, every: dict[str, str]) -> None:
    """A text is another name of the key, or with = another value; a number is another value."""
    service = of(every["scaled, all"], "RayService")
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    groups.sort(
        key=lambda group: "nvidia.com/gpu" not in group["template"]["spec"]["containers"][0]["resources"]["limits"]
    )
    place: Any = service
    for key in path[:-1]:
        place = place[key]
    if isinstance(typo, int):
        place[path[-1]] = typo
    elif typo.startswith("="):
        place[path[-1]] = typo[1:]
    else:
        place[typo] = place.pop(path[-1])
    mistakes = schema_mistakes(service)
    assert mistakes or operator_mistakes(service)


def test_nulls_are_pruned_and_defaults_filled_before_the_check(every: dict[str, str]) -> None:
    service = of(every["laptop"], "RayService")
    service["spec"]["suspend"] = None
    assert schema_mistakes(service) == []
    assert as_stored(service, schema())["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["numOfHosts"] == 1


def test_each_run_prints_the_same_bytes_without_torch_and_ray() -> None:
    code = (
        "import sys; from serve_app.cli.main import main; code = main(sys.argv[1:]); "
        "assert not {'torch', 'ray', 'transformers'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "kuberay", str(LAPTOP), "--in-pod", f"{ROOT / 'examples'}=/app/examples"]
    runs = [subprocess.run(command, capture_output=True, check=True, cwd=ROOT).stdout for _ in range(2)]
    assert runs[0] == runs[1] == printed(LAPTOP, KubeRayOptions(places=(EXAMPLES,))).encode()


def test_pods_may_do_little_and_end_after_their_requests(every: dict[str, str]) -> None:
    for text in every.values():
        service = of(text, "RayService")
        for template in templates(service):
            spec = template["spec"]
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            (container,) = spec["containers"]
            security = container["securityContext"]
            assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
            assert security["capabilities"] == {"drop": ["ALL"]}
            env = {variable["name"]: variable.get("value") for variable in container["env"]}
            assert env["RAY_SERVE_THROUGHPUT_OPTIMIZED"] == env["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
            written = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert written == {"/dev/shm", "/tmp", env["HOME"], env["XDG_CACHE_HOME"]}
        for template in templates(service)[1:]:
            (command,) = re.findall(r"; sleep ([0-9]+)", json.dumps(template["spec"]["containers"][0]["lifecycle"]))
            assert template["spec"]["terminationGracePeriodSeconds"] >= int(command) + 30


def test_the_pods_run_the_locked_ray() -> None:
    (locked,) = re.findall(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert locked == RAY_VERSION


def test_two_nodes_of_four_gpus_hold_one_copy(every: dict[str, str]) -> None:
    (group,) = of(every["gpus, all"], "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["groupName"], group["replicas"], group["minReplicas"], group["maxReplicas"]) == ("gpu-h100", 2, 2, 2)
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "4"
    assert json.loads(group["rayStartParams"]["resources"].strip("'")) == {"accelerator_type:H100": 1}
    budgets = [one for one in yaml.safe_load_all(every["gpus, all"]) if one["kind"] == "PodDisruptionBudget"]
    assert [one["spec"]["minAvailable"] for one in budgets] == [1, 1]  # the second pod holds shards alone
    (whole,) = of(every["gpus"], "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert whole["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert whole["replicas"] == 1


def test_models_that_scale_have_pods_that_scale(every: dict[str, str]) -> None:
    cluster = of(every["scaled, all"], "RayService")["spec"]["rayClusterConfig"]
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    cpu, gpu = cluster["workerGroupSpecs"]
    bounds = [(one["minReplicas"], one["replicas"], one["maxReplicas"]) for one in (cpu, gpu)]
    assert bounds == [(1, 1, 6), (0, 1, 4)]  # eight cores a copy of the one, two GPUs of the other
    assert cpu["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"] == "9"
    assert "nodeSelector" not in cpu["template"]["spec"]
    assert gpu["template"]["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}
    config = yaml.safe_load(of(every["scaled, all"], "RayService")["spec"]["serveConfigV2"])
    chat, small = (application["args"] for application in config["applications"][1:])
    assert chat["parallel"] == {"pipeline": 1, "tensor": 2}
    assert (small["source"], small["device"]["cpus_per_shard"]) == ("/models/small", 8.0)


def test_rays_ports_are_closed_and_dns_is_open(every: dict[str, str]) -> None:
    policy = of(every["gpus"], "NetworkPolicy")["spec"]
    open_to_all = [rule for rule in policy["ingress"] if "from" not in rule]
    assert [port["port"] for rule in open_to_all for port in rule["ports"]] == [8000, 9000]
    (dns,) = [rule for rule in policy["egress"] if "to" not in rule]
    assert dns["ports"] == [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]


def test_a_pod_has_the_memory_for_what_ray_may_put_into_it(every: dict[str, str]) -> None:
    cpu, _ = of(every["scaled"], "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    limits = cpu["template"]["spec"]["containers"][0]["resources"]["limits"]
    shard = 15.7  # GiB: 8 billion weights of bfloat16, the cache, the process; one copy has the cores of a pod
    assert shard + 1 < float(limits["memory"].removesuffix("Gi")) < 1.6 * shard


def test_what_does_not_fit_is_refused_with_a_way_out(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(
        GPUS.replace("{pipeline: 2, tensor: 4}", "{pipeline: 1, tensor: 1}").replace("llama", str(files / "llama"))
    )
    with pytest.raises(ConfigError, match=r"chat does not fit: .*the cheapest change that fits"):
        printed(path, options_in(files))
    path.write_text(GPUS.replace("source: llama", f"source: {files / 'llama'}"))
    with pytest.raises(
        ConfigError, match="tensor=4 keeps its ranks in one pod, and a pod has 2 GPUs; raise --gpus-per"
    ):
        printed(path, options_in(files, gpus_per_pod=2))
    path.write_text(GPUS.replace(", accelerator_type: H100", "").replace("source: llama", f"source: {files / 'llama'}"))
    with pytest.raises(ConfigError, match=r"set device\.accelerator_type, or give --gpu-type"):
        printed(path, options_in(files))


def test_a_kind_of_gpu_that_is_described_is_known(files: Path, tmp_path: Path) -> None:
    more = {"memory": "192GiB", "memory_bandwidth": 8e12, "flops": {"bfloat16": 2e15}}
    links = {"type": "cuda", "accelerator_types": ["X1"], "link_bandwidth": 9e11, "network_bandwidth": 5e10}
    (tmp_path / "devices.yaml").write_text(yaml.safe_dump({"x1": {**more, **links, "devices_per_node": 4}}))
    text = (files / "gpus.yaml").read_text().replace("H100", "X1")
    (files / "x1.yaml").write_text(text)
    with pytest.raises(ConfigError, match="device 'X1' is not known"):
        printed(files / "x1.yaml", options_in(files))
    manifests = printed(files / "x1.yaml", options_in(files, devices=tmp_path / "devices.yaml"))
    (group,) = of(manifests, "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert (group["groupName"], group["replicas"]) == ("gpu-x1", 2)


def test_the_autoscaler_reads_the_groups_as_they_are_meant(every: dict[str, str]) -> None:
    config = pytest.importorskip("ray.autoscaler._private.kuberay.autoscaling_config")
    (group,) = of(every["gpus, all"], "RayService")["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    found = config._node_type_from_group_spec(copy.deepcopy(group), False)
    assert (found["min_workers"], found["max_workers"]) == (2, 2)
    assert found["resources"]["GPU"] == 4
    assert found["resources"]["accelerator_type:H100"] == 1
