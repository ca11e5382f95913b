"""Writes what `rayshard kuberay` prints for the shipped files: base/, and what of components/ follows from it."""

from pathlib import Path
from typing import Any

import yaml

from serve_app.config.environment import read_environment
from serve_app.kuberay.manifests import Manifests, plan_manifests, to_yaml
from serve_app.kuberay.options import KubeRayOptions, parse_place

ROOT = Path(__file__).parents[1]
GPU_CONFIG = Path("cluster/components/gpu/serve_config.yaml")
GPU_TYPE = "L4"


def printed(config: Path, **given: Any) -> Manifests:
    """What the command prints for a file of the repository whose models are the image's."""
    places = (parse_place(f"{ROOT / 'examples'}=/app/examples"),)
    return plan_manifests(ROOT / config, KubeRayOptions(places=places, **given), read_environment())


def written() -> dict[str, str]:
    """The files, by their paths in the repository."""
    base = printed(Path("serve_config.yaml"))
    gpu = {one["kind"]: one for one in yaml.safe_load_all(printed(GPU_CONFIG, gpu_type=GPU_TYPE).text)}
    monitored = printed(Path("serve_config.yaml"), has_monitoring=True).objects
    (monitor,) = (one for one in monitored if one["kind"] == "PodMonitor")
    spec = gpu["RayService"]["spec"]
    paths = {
        "/spec/serveConfigV2": spec["serveConfigV2"],
        "/spec/rayClusterConfig/workerGroupSpecs": spec["rayClusterConfig"]["workerGroupSpecs"],
    }
    patch = [{"op": "replace", "path": path, "value": value} for path, value in paths.items()]
    return {
        "cluster/base/rayshard.yaml": base.text,
        "cluster/components/gpu/patch.yaml": to_yaml(patch),
        "cluster/components/gpu/disruption-budget.yaml": to_yaml(gpu["PodDisruptionBudget"]),
        "cluster/components/monitoring/pod-monitor.yaml": to_yaml(monitor),
    }


def main() -> None:
    """Write the files."""
    for path, text in written().items():
        (ROOT / path).write_text(text)


if __name__ == "__main__":
    main()
