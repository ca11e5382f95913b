"""`rayshard compress eval` of a model behind a URL, beside its own files."""

import json
import re
from pathlib import Path

import pytest

from serve_app.cli.main import main
from serve_app.compress.compare_served import open_model
from serve_app.errors import ConfigError
from tests.integration.serve_cluster import DEMO_MODEL, ServeCluster

pytestmark = pytest.mark.timeout(600)

TEXTS = "The water is still.\nReverse the word: stone\nIt rained all night, and the river rose.\n"
# Weights of bfloat16: the server's compiled kernels round once where torch's calls round several times, which moves
# the mean of these texts by 6.3e-4 nats; from the model in float32 torch's are 7.1e-3 away and the compiled ones
# 6.5e-3. The same model in int8 is 3e-3 from bfloat16.
HALF_PRECISION_NATS = 1e-3


def test_a_served_model_is_what_its_files_are(
    cluster: ServeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, tasks, figures = tmp_path / "texts.txt", tmp_path / "tasks.jsonl", tmp_path / "figures.json"
    texts.write_text(TEXTS)
    tasks.write_text('{"prompt": "Reverse the word: stone\\n", "answer": "enots"}\n')
    options = ["--model-name", "demo", "--texts", str(texts), "--tasks", str(tasks), "--json", str(figures), "--speed"]
    url = f"{cluster.url}/v1"
    assert main(["compress", "eval", url, "--original", str(DEMO_MODEL), *options]) == 0
    assert f"demo at {url}" in capsys.readouterr().out
    found = json.loads(figures.read_text())
    assert abs(found["perplexity_increase"]) < HALF_PRECISION_NATS
    assert found["top1_agreement"] == 1.0
    assert abs(found["kl_lower_bound"]) < HALF_PRECISION_NATS
    assert found["model"]["tasks"] == found["original"]["tasks"]
    assert found["num_tokens"] == found["model"]["perplexity"]["num_tokens"] > 20
    assert set(found["model"]["tokens_per_s"]) == {"1", "8", "32"}
    assert all(rate > 0 for rate in found["model"]["tokens_per_s"].values())


def test_a_served_teacher_teaches_what_its_files_teach(
    cluster: ServeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts, pruned = tmp_path / "texts.txt", tmp_path / "pruned"
    texts.write_text(TEXTS)
    assert main(["compress", "prune", str(DEMO_MODEL), str(pruned), "--layers", "6", "--calibration", str(texts)]) == 0
    losses = []
    for name, served in (
        ("by-files", []),
        ("by-url", ["--teacher-url", f"{cluster.url}/v1", "--teacher-name", "demo"]),
    ):
        options = ["--student", str(pruned), "--texts", str(texts), "--steps", "12", "--batch-tokens", "64"]
        assert main(["compress", "distill", str(DEMO_MODEL), str(tmp_path / name), *options, *served]) == 0
        shown = re.search(r"loss ([0-9.]+) to ([0-9.]+) in 12 steps", capsys.readouterr().out)
        assert shown is not None
        losses.append((float(shown[1]), float(shown[2])))
    by_files, by_url = losses
    assert by_url[1] < by_url[0]
    assert by_url[0] == pytest.approx(by_files[0], rel=0.05)  # its 20 most probable tokens are nearly all there is


def test_what_a_server_cannot_do_is_said(cluster: ServeCluster) -> None:
    with pytest.raises(ConfigError, match="say which with --model-name"):
        open_model(f"{cluster.url}/v1", None)
    with pytest.raises(ConfigError, match="answered 404"):
        open_model(f"{cluster.url}/v1", "nobody").score(["a text"])
    with pytest.raises(ConfigError, match="is the server running"):
        open_model("http://127.0.0.1:9/v1", None)
    with pytest.raises(ConfigError, match="answered"):
        open_model(f"{cluster.url}/v1", "demo").score(["a text " * 5000])
