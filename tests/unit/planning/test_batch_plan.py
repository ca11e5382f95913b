"""Plans of models that are done after one step: what each shard takes, how many entries each second."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from serve_app.cli.main import main
from serve_app.config.environment import read_environment
from serve_app.config.model import ModelConfig
from serve_app.planning.batch_plan import BatchPlan, plan_batch
from serve_app.planning.device_profiles import PlannedDevice, load_profiles
from serve_app.planning.served_model import plan_batch_model
from tests.published_models import write_headers

HIDDEN, INNER, NUM_LAYERS, VOCAB = 384, 1536, 6, 30522  # of all-MiniLM-L6-v2
LAYER_BYTES = 4 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER + 9 * HIDDEN + INNER)
EMBEDDING_BYTES = 4 * HIDDEN * (VOCAB + 512 + 2 + 2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encoder(directory: Path) -> Path:
    """The headers of a small bert."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "embeddings.position_embeddings.weight": (512, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
    }
    for layer in range(NUM_LAYERS):
        prefix = f"encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{prefix}.{name}.weight": (HIDDEN, HIDDEN), f"{prefix}.{name}.bias": (HIDDEN,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{prefix}.{name}.weight": (HIDDEN,), f"{prefix}.{name}.bias": (HIDDEN,)}
        shapes |= {
            f"{prefix}.intermediate.dense.weight": (INNER, HIDDEN),
            f"{prefix}.intermediate.dense.bias": (INNER,),
        }
        shapes |= {f"{prefix}.output.dense.weight": (HIDDEN, INNER), f"{prefix}.output.dense.bias": (HIDDEN,)}
    directory.mkdir()
    values = {
        "model_type": "bert",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 12,
        "vocab_size": VOCAB,
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
    }
    (directory / "config.json").write_text(json.dumps(values))
    write_headers(directory / "model.safetensors", shapes)
    return directory


def module(directory: Path) -> Path:
    """The weights of two layers."""
    directory.mkdir()
    tensors = {f"{name}.weight": np.zeros((64, 64), np.float32) for name in "ab"}
    save_file({**tensors, "a.bias": np.zeros(64, np.float32)}, directory / "model.safetensors")
    return directory


def planned(source: Path, kind: str = "cpu", memory_bytes: int = 2**35, /, **settings: object) -> BatchPlan:
    config = ModelConfig.model_validate({"name": "m", "source": str(source), "task": "embed", **settings})
    found = plan_batch_model(config, source.parent, read_environment({}))
    return plan_batch(found, config, PlannedDevice(kind, load_profiles()[kind], memory_bytes), 1)


def test_an_encoders_layers_lie_where_they_are_served_and_its_embedding_is_no_head(tmp_path: Path) -> None:
    source = encoder(tmp_path / "bert")
    (whole,) = planned(source).memory.shards
    assert whole.weights_bytes == EMBEDDING_BYTES + NUM_LAYERS * LAYER_BYTES
    first, last = planned(source, parallel={"layers": [2, 4]}).memory.shards
    assert (first.weights_bytes, last.weights_bytes) == (EMBEDDING_BYTES + 2 * LAYER_BYTES, 4 * LAYER_BYTES)
    assert whole.kv_cache_bytes == 0
    assert whole.total_bytes == whole.weights_bytes + whole.activation_bytes + load_profiles()["cpu"].reserve


def test_an_encoders_full_steps_are_bound_by_its_products(tmp_path: Path) -> None:
    plan = planned(encoder(tmp_path / "bert"), engine={"max_num_batched_tokens": 2048, "max_num_seqs": 64})
    rates, cpu = plan.rates, load_profiles()["cpu"]
    assert (rates.tokens, rates.entries_in_step, rates.bound) == (128, 16, "compute")
    products = NUM_LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER + 2 * 128 * HIDDEN)  # of a token
    step_s = 2 * 2048 * products / cpu.rate("float32") + NUM_LAYERS * cpu.layer_overhead_s
    assert rates.entries_per_s == pytest.approx(16 / step_s, rel=0.01)
    assert 1 / rates.latency_s < rates.entries_per_s


def test_more_stages_have_a_gpu_each_and_a_cpu_together(tmp_path: Path) -> None:
    source = encoder(tmp_path / "bert")
    engine = {"max_num_batched_tokens": 65536, "max_num_seqs": 512}
    gpu: dict[str, object] = {"device": {"type": "cuda"}, "engine": engine}
    # By bytes the embedding would leave the first stage one layer.
    splits: tuple[dict[str, object], ...] = ({}, {"layers": [3, 3]})
    one, two = (planned(source, "l4", 2**34, parallel=split, **gpu).rates.entries_per_s for split in splits)
    assert 1.7 * one < two < 2 * one, "hidden states have to be sent"
    one, two = (planned(source, parallel=split, engine=engine).rates.entries_per_s for split in splits)
    assert two == pytest.approx(one, rel=0.05)


def test_of_a_module_all_parameters_count_and_what_is_not_known_is_said(tmp_path: Path) -> None:
    source = module(tmp_path / "module")
    settings: dict[str, Any] = {"task": "predict", "architecture": "tests.user_modules:Traced"}
    plan = planned(source, **settings)
    (whole,) = plan.memory.shards
    assert whole.weights_bytes == 4 * (2 * 64 * 64 + 64)
    assert len(plan.notes) == 1
    assert plan.rates.tokens is None
    halves = planned(source, **settings, parallel={"pipeline": 2})
    assert [one.weights_bytes for one in halves.memory.shards] == [whole.weights_bytes // 2] * 2
    assert "bytes are shown evenly" in halves.notes[1]


def test_stages_may_be_on_gpus_of_several_kinds(tmp_path: Path) -> None:
    source = encoder(tmp_path / "bert")
    config = ModelConfig.model_validate(
        {
            "name": "m",
            "source": str(source),
            "task": "embed",
            "device": {"type": "cuda"},
            "parallel": {"layers": [2, 4], "accelerator_types": ["L4", "H100"]},
        }
    )
    found, profiles = plan_batch_model(config, tmp_path, read_environment({})), load_profiles()
    devices = [PlannedDevice("l4", profiles["l4"], 2**28), PlannedDevice("h100", profiles["h100"], 2**30)]
    plan = plan_batch(found, config, devices[0], 1, devices)
    assert [plan.device_of(stage).name for stage in range(2)] == ["l4", "h100"]
    assert "does not fit: stage 0 rank 0" in plan.problems[0], "the reserve alone is as much"
    assert "accelerator_type:H100" in plan.bundles[2]


def test_one_that_has_no_room_is_refused(tmp_path: Path) -> None:
    plan = planned(encoder(tmp_path / "bert"), "l4", 2**26, device={"type": "cuda"})
    assert "m does not fit: stage 0 rank 0 takes weights 86." in plan.problems[0]


def test_the_command_plans_all_kinds_and_counts_a_shared_process_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder(tmp_path / "bert")
    module(tmp_path / "module")
    lines = [
        "applications:",
        "  - {name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}",
        "  - name: e",
        "    route_prefix: null",
        "    import_path: serve_app.app:build_model",
        "    args: {name: e, source: bert, task: embed}",
        "  - name: small",
        "    route_prefix: null",
        "    import_path: serve_app.app:build_models",
        "    args:",
        "      models:",
        "        - {name: a, source: module, task: predict, architecture: 'tests.user_modules:Traced'}",
        "        - {name: b, source: module, task: predict, architecture: 'tests.user_modules:Traced'}",
    ]
    path = tmp_path / "serve.yaml"
    path.write_text("\n".join(lines))
    assert main(["plan", str(path), "--plot", str(tmp_path / "plan.svg")]) == 0
    printed = capsys.readouterr().out
    assert "e: bert, task embed, float32, on cpu" in printed
    assert "texts of 128 tokens each second in steps of 16" in printed
    assert printed.count("reserved: 1 replica x 2 bundles (1 of 0.05 CPU, 1 of 0.1 CPU)") == 2
    assert printed.count("reserved: nothing of its own") == 1
    assert (tmp_path / "plan.svg").read_text().count("stage 0 rank 0") == 3
    assert main(["plan", str(path), "--json"]) == 0
    models = json.loads(capsys.readouterr().out)["models"]
    assert [model["name"] for model in models] == ["e", "a", "b"]
    assert [len(model["bundles"]) for model in models] == [2, 2, 0]
    assert models[0]["shards"][0]["weights_bytes"] == EMBEDDING_BYTES + NUM_LAYERS * LAYER_BYTES
    assert models[1]["predicted"]["text_tokens"] is None
