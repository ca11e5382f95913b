"""The command `rayshard plan`: what it prints, its exit status, its picture."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from serve_app.cli.main import main
from tests.fake_hub import COMMIT, serve_hub
from tests.fakes import save_model_dir
from tests.published_models import write_headers, write_published

GPU = "device: {type: cuda, accelerator_type: H100}"
SMALL = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 32,
    "vocab_size": 64,
    "tie_word_embeddings": True,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(directory: Path, **models: str) -> Path:
    """A Serve file of models with these args."""
    lines = ["applications:", "  - {name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway'}"]
    for name, args in models.items():
        application = f"name: {name}, route_prefix: null, import_path: 'serve_app.app:build_model'"
        lines.append(f"  - {{{application}, args: {{name: {name}, {args}}}}}")
    path = directory / "serve.yaml"
    path.write_text("\n".join(lines))
    return path


def small_model(directory: Path) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(SMALL))
    shapes = {f"model.layers.{layer}.mlp.up_proj.weight": (32, 16) for layer in range(4)}
    write_headers(directory / "model.safetensors", {"model.embed_tokens.weight": (64, 16), **shapes})


def test_a_model_that_fits_is_shown_shard_by_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_published("llama-3.1-8B", tmp_path / "llama")
    path = write(tmp_path, chat=f"source: llama, {GPU}, parallel: {{pipeline: 2, tensor: 2}}, max_model_len: 8192")
    assert main(["plan", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert lines[0] == "chat: llama, 32 layers, bfloat16, up to 8192 tokens, on H100 with 79.2 GiB each"
    assert lines[1].split()[:5] == ["stage", "rank", "layers", "heads", "kv"]
    rows = [line.split() for line in lines[2:6]]
    assert [row[:5] for row in rows] == [
        ["0", "0", "0-15", "0-15", "0-3"],
        ["0", "1", "0-15", "16-31", "4-7"],
        ["1", "0", "16-31", "0-15", "0-3"],
        ["1", "1", "16-31", "16-31", "4-7"],
    ]
    assert rows[0][5:7] == ["3.7", "GiB"]
    assert "64 sequences of 8192 tokens at once (max_num_seqs=64)" in lines[6]
    assert lines[7].startswith("predicted at 1024 tokens of context: prefill ")
    assert lines[8] == (
        "reserved: 1 replica x 3 bundles (1 of 0.05 CPU, 2 of 0.2 CPU + 2 GPU + 0.001 accelerator_type:H100)"
    )


def test_json_has_each_shards_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_published("llama-3.1-8B", tmp_path / "llama")
    path = write(tmp_path, chat="source: llama, parallel: {pipeline: 2}, max_model_len: 8192")
    assert main(["plan", str(path), "--device", "l4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["problems"] == []
    (model,) = report["models"]
    assert (model["name"], model["device"], model["max_sequences"] > 0) == ("chat", "l4", True)
    first, last = model["shards"]
    assert (first["layers"], last["layers"]) == ([0, 16], [16, 32])
    assert (first["heads"], first["kv_heads"]) == ([0, 32], [0, 8])
    for shard in model["shards"]:
        parts = ("weights_bytes", "kv_cache_bytes", "activation_bytes", "reserve_bytes")
        assert shard["total_bytes"] == sum(shard[part] for part in parts) <= model["usable_bytes"]
    assert model["predicted"]["decode_tokens_per_s"] == pytest.approx(0.75 * 300e9 / 15.0e9, rel=0.1)
    assert model["bundles"][1]["GPU"] == 1.0


def test_what_does_not_fit_is_named_beside_what_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_published("llama-3.1-70B", tmp_path / "large")
    small_model(tmp_path / "small")
    path = write(
        tmp_path, large=f"source: large, {GPU}, max_model_len: 8192", small="source: small, max_model_len: 512"
    )
    assert main(["plan", str(path)]) == 1
    printed = capsys.readouterr()
    assert "small: llama, 4 layers, bfloat16" in printed.out
    assert printed.err.startswith(
        "applications[large].args: large does not fit: stage 0 rank 0 takes weights 131.4 GiB"
    )
    assert "the cheapest change that fits: parallel: {pipeline: 1, tensor: 2} (2 devices)" in printed.err


def test_mistakes_of_the_file_the_model_and_the_options_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_model(tmp_path / "small")
    path = write(tmp_path, a="source: small, parallel: {tensor: 3}", b="source: nowhere", c="source: small, dtpe: auto")
    assert main(["plan", str(path)]) == 1
    told = capsys.readouterr().err
    assert "applications[a].args: parallel.tensor=3 does not divide num_heads=4; use 1, 2 or 4" in told
    assert "applications[b].args: source=nowhere is not a directory" in told
    assert "applications[c].args.dtpe: unknown setting; did you mean dtype?" in told
    assert main(["plan", str(write(tmp_path, a="source: small")), "--device", "h1000"]) == 1
    assert "device 'h1000' is not known; use h200, h100" in capsys.readouterr().err
    assert main(["plan", str(write(tmp_path, a="source: small, device: {type: cuda}"))]) == 1
    assert "device.type=cuda does not say which GPU" in capsys.readouterr().err
    kernel = write(tmp_path, a="source: small, engine: {linear_kernel: onednn}")
    assert main(["plan", str(kernel), "--device", "l4"]) == 1
    assert "it cannot be planned on device.type=cuda: args.engine: linear_kernel=onednn" in capsys.readouterr().err


def test_the_picture_has_a_bar_for_each_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_published("llama-3.1-8B", tmp_path / "llama")
    path = write(tmp_path, chat=f"source: llama, {GPU}, parallel: {{tensor: 2}}, max_model_len: 8192")
    assert main(["plan", str(path), "--plot", str(tmp_path / "plan.svg")]) == 0
    root = ElementTree.parse(tmp_path / "plan.svg").getroot()
    texts = [node.text for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[-3:] == ["chat on H100 (79.2 GiB)", "stage 0 rank 0", "stage 0 rank 1"]
    widths = [float(node.get("width") or 0) for node in root.iter("{http://www.w3.org/2000/svg}rect")]
    assert max(widths[5:]) <= 760
    capsys.readouterr()
    assert main(["plan", str(path), "--plot", str(tmp_path / "no" / "plan.svg")]) == 1
    assert "cannot be written (No such file or directory); give another path" in capsys.readouterr().err


def test_the_split_is_chosen_alike_by_plan_and_validate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_published("llama-3.1-70B", tmp_path / "llama")
    save_model_dir(tmp_path / "llama", Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    path = write(tmp_path, chat=f"source: llama, {GPU}, parallel: auto, max_model_len: 8192")
    assert main(["plan", str(path), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["parallel"] == {"pipeline": 1, "tensor": 2}
    assert main(["validate", "--elsewhere", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "GiB" in line]
    assert [row[:3] for row in rows] == [["0", "0", "0-79"], ["0", "1", "0-79"]]
    unknown = write(tmp_path, chat="source: llama, device: {type: cuda}, parallel: auto")
    assert main(["validate", "--elsewhere", str(unknown)]) == 1
    expected = "applications[chat].args.parallel: parallel=auto: device.type=cuda does not say which GPU"
    assert capsys.readouterr().err.startswith(expected)


def test_of_a_hub_model_headers_alone_are_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_model(tmp_path / "small")
    files = {path.name: path.read_bytes() for path in (tmp_path / "small").iterdir()}
    with serve_hub(files) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        assert main(["plan", str(write(tmp_path, a="source: org/model, max_model_len: 16")), "--json"]) == 0
        (model,) = json.loads(capsys.readouterr().out)["models"]
        assert model["shards"][0]["weights_bytes"] == 2 * (4 * 32 * 16 + 2 * 64 * 16)  # its head is tied, and packed
        assert "GET /org/model/resolve/" + COMMIT + "/model.safetensors" in hub.requests
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
        assert main(["plan", str(write(tmp_path, a="source: org/model"))]) == 1
        assert "source=org/model is not on this node and the hub is switched off" in capsys.readouterr().err


def test_what_was_measured_here_stands_for_the_cpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_model(tmp_path / "small")
    kept = tmp_path / "cache" / "rayshard" / "devices.json"
    kept.parent.mkdir(parents=True)
    slow = {"memory_bandwidth": 1e6, "memory_share": 1.0, "layer_overhead_s": 0.0, "flops": {"float32": 1e12}}
    links = {
        "type": "cpu",
        "link_bandwidth": 1e9,
        "network_bandwidth": 1e9,
        "weights_s_per_gb": {"bfloat16": {"1": 2e5}},
    }
    kept.write_text(json.dumps({"cpu": slow | links}))
    assert main(["plan", str(write(tmp_path, a="source: small, max_model_len: 16")), "--json"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    read_s = 2e5 * 2 * (4 * 32 * 16 + 64 * 16) / 1e9 + 16 * 4 * 2 * 2 * 8 * 2 / 4 / 1e6
    assert model["predicted"]["decode_tokens_per_s"] == pytest.approx(1 / read_s, rel=0.01)
