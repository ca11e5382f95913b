"""The command `rayshard`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from serve_app.cli.main import main
from tests.fakes import save_model_dir

CONFIG = """
http_options: {{host: 127.0.0.1, port: 8000}}
applications:
  - name: gateway
    route_prefix: /
    import_path: serve_app.app:build_gateway
  - name: chat
    route_prefix: null
    import_path: serve_app.app:build_model
    args: {{name: chat, source: {source}, {args}}}
"""


def small_tokenizer(*more: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({f"w{index}": index for index in range(60)}, unk_token="w0"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>", "<unk>", *more])
    return tokenizer


def write(directory: Path, args: str = "dtype: auto", source: str = "model") -> Path:
    model_dir = directory / "model"
    model_dir.mkdir(exist_ok=True)
    sizes = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    config = {
        "model_type": "llama",
        "eos_token_id": 62,
        "intermediate_size": 32,
        "vocab_size": 64,
        "tie_word_embeddings": True,
    } | sizes
    (model_dir / "config.json").write_text(json.dumps(config))
    tensors = {f"model.layers.{layer}.mlp.up_proj.weight": np.zeros((32, 16), np.float32) for layer in range(4)}
    save_file(tensors, model_dir / "model.safetensors")
    save_model_dir(model_dir, small_tokenizer())
    path = directory / "serve_config.yaml"
    path.write_text(CONFIG.format(source=source, args=args))
    return path


def test_a_right_file_prints_ok_and_the_table_of_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "parallel: {pipeline: 2, tensor: 2}, max_model_len: 512")
    assert main(["validate", "--elsewhere", str(path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        f"ok {path}: 1 model behind http://127.0.0.1:8000",
        "",
        f"chat: llama, 4 layers, float32, up to 512 tokens, from {tmp_path / 'model'}",
        "stage  rank  layers  parameters  kv tokens",
        "    0     0     0-1     2.0 KiB    4194304",
        "    0     1     0-1     2.0 KiB    4194304",
        "    1     0     2-3     2.0 KiB    4194304",
        "    1     1     2-3     2.0 KiB    4194304",
        "an answer ends at '</s>' (id 61), '<pad>' (id 62)",
    ]


def test_every_mistake_of_file_and_model_is_printed_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "parallel: {pipeline: 9, tensor: 3}, max_model_len: 99999")
    path.write_text(path.read_text().replace("port:", "prt:"))
    assert main(["validate", "--elsewhere", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.splitlines()
    assert lines[0] == "http_options.prt: unknown setting; did you mean port?"
    misfit = "parallel.tensor=3 neither divides num_kv_heads=2 nor is a multiple of it; use 1, 2 or 4"
    assert f"applications[chat].args: {misfit}" in lines
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("./modle", "applications[chat].args: source=./modle is not a directory: "),
        (".", "has no safetensors files; give a directory with model.safetensors"),
    ],
)
def test_a_wrong_source_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: str, expected: str
) -> None:
    assert main(["validate", str(write(tmp_path, source=source))]) == 1
    assert expected in capsys.readouterr().err


def test_what_this_machine_lacks_is_told_unless_another_one_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "device: {cpus_per_shard: 5000.0}")
    assert main(["validate", str(path)]) == 1
    assert "applications: the applications reserve 5000.1 CPUs, and this machine has" in capsys.readouterr().err
    assert main(["validate", "--elsewhere", str(path)]) == 0
    monkeypatch.setenv("RAY_OVERRIDE_RESOURCES", '{"CPU": 6000}')
    assert main(["validate", str(path)]) == 0


def test_a_model_without_a_fast_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    (tmp_path / "model" / "tokenizer.json").unlink()
    assert main(["validate", str(path)]) == 1
    assert "no tokenizer.json there" in capsys.readouterr().err


def test_a_broken_tokenizer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path)
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    assert main(["validate", str(path)]) == 1
    assert "tokenizer.json: not a tokenizer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"), [(("[PAD]",), "1 token beyond vocab_size=64 ('[PAD]')"), (tuple("abcde"), "5 tokens beyond")]
)
def test_tokens_without_a_row_in_the_embedding_are_told_and_served(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], said: str
) -> None:
    path = write(tmp_path)
    save_model_dir(tmp_path / "model", small_tokenizer(*more))
    assert main(["validate", "--elsewhere", str(path)]) == 0
    assert f"warning: the tokenizer gives {said}" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["", ", generation_config: off", ", generation_config: auto"])
def test_what_requests_get_that_do_not_say_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str
) -> None:
    path = write(tmp_path, "dtype: auto" + setting)
    values = {"temperature": 0.6, "top_k": 5, "no_repeat_ngram_size": 3}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(values))
    assert main(["validate", "--elsewhere", str(path)]) == 0
    out = capsys.readouterr().out
    assert ("requests that do not say get temperature 0.6, top_k 5" in out) == ("off" not in setting)
    asks = "warning: generation_config.json asks for no_repeat_ngram_size=3, which is not done here"
    assert (asks in out) == ("off" not in setting)
    values["top_p"] = 3
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(values))
    assert main(["validate", "--elsewhere", str(path)]) == (0 if "off" in setting else 1)


def test_a_hub_model_that_is_not_here_is_said_to_be_unchecked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["validate", str(write(tmp_path, source="org/model"))]) == 0
    assert "chat: org/model is not on this machine yet; --download fetches and checks it" in capsys.readouterr().out


@pytest.mark.process
def test_serving_begins_with_the_same_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(write(tmp_path, "parallel: {pipeline: 9}"))]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "parallel.pipeline=9 is longer than the model's num_layers=4; use at most 4" in printed.err


def test_a_right_file_is_handed_to_serve(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")  # refused there, before anything is started
    assert main(["serve", str(write(tmp_path))]) == 1
    assert "error: RAY_ADDRESS=10.0.0.1:6379 names a cluster" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["serve", "f", "--drain-s", "-1"], ["deploy", "f", "--timeout-s", "soon"]])
def test_a_time_is_a_number_of_seconds(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert f"{arguments[-1]} is not a number of seconds" in capsys.readouterr().err


def test_the_status_of_nothing_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_DASHBOARD_ADDRESS", raising=False)
    assert main(["status"]) == 1
    assert capsys.readouterr().err.startswith("error: no `rayshard serve` of yours runs here; start one, or name")


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out.startswith("rayshard ")


def test_a_command_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main([])
    assert exit_info.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.process
def test_validating_imports_neither_ray_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from serve_app.cli.main import main; status = main(sys.argv[1:]); "
        "heavy = {'ray', 'torch', 'transformers'} & set(sys.modules); sys.exit(status or len(heavy))"
    )
    command = [sys.executable, "-c", script, "validate", str(write(tmp_path))]
    root = Path(__file__).resolve().parents[3]
    finished = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.startswith("ok ")


@pytest.mark.process
def test_the_gate_and_the_steps_of_a_module_are_told_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(__file__).resolve().parents[3]
    path = tmp_path / "serve_config.yaml"
    path.write_text(
        f"""applications:
- {{name: gateway, route_prefix: /, import_path: 'serve_app.app:build_gateway', args: {{}}}}
- name: tickets
  route_prefix: null
  import_path: serve_app.app:build_model
  args:
    name: tickets
    source: {root / "examples" / "text_classifier" / "model"}
    task: classify
    architecture: serve_app.models.text_classifier:TextClassifier
    preprocessing: [lowercas]
    quality: {{max_kl: 0.1}}
"""
    )
    assert main(["validate", str(path)]) == 1
    told = capsys.readouterr().err
    assert "compress_report.json is not in" in told
    assert "lowercas: is not a step" in told


@pytest.mark.parametrize("command", ["validate", "serve", "deploy"])
def test_a_wrong_setting_of_the_environment_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("RAYSHARD_LOG_FORMAT", "xml")
    assert main([command, str(write(tmp_path))]) == 1
    printed = capsys.readouterr()
    assert "RAYSHARD_LOG_FORMAT=xml" in printed.err
    assert "Traceback" not in printed.err
