"""`rayshard compress`: artifacts, reports, the gate, and everything that can be wrong with them."""

import json
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app.checkpoints.quality_gate import check_quality
from serve_app.cli.main import main
from serve_app.compress.evaluate import TextScore, compare, kl_lower_bound, perplexity, score_tasks
from serve_app.compress.local_model import LocalModel
from serve_app.compress.quantize import QuantizeSettings, quantize
from serve_app.compress.schemes import encode, pack, scheme_of
from serve_app.compress.texts import read_tasks, read_texts, sequences_of
from serve_app.config.compression import QualityConfig
from serve_app.engine.packed_words import stream_packing, unpack
from serve_app.errors import ConfigError
from tests.checkpoints import load_reference
from tests.quantized_checkpoints import make_model

ASKED = QualityConfig(max_perplexity_increase=0.5, min_top1_agreement=0.5, max_kl=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llama", tmp_path_factory.mktemp("source") / "model", hidden_size=64, intermediate_size=128)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("the cat sat on the mat\nanother line of the same text, somewhat longer\n\na third one\n")
    return path


@pytest.fixture(scope="module")
def measured(source: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("measured") / "int8"
    command = ["compress", "quantize", str(source), str(target), "--scheme", "int8", "--texts", str(texts), "--speed"]
    assert main(command) == 0
    return target


@pytest.fixture
def artifact(measured: Path, tmp_path: Path) -> Path:
    """A measured int8 model of one's own, to be damaged."""
    return Path(shutil.copytree(measured, tmp_path / "artifact"))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("num_columns", [32, 33, 64, 7])
def test_packed_numbers_come_back(bits: int, num_columns: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    values = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, num_columns), generator=generator, dtype=torch.int8)
    packed = pack(values, bits)
    assert packed.shape == (5, -(-num_columns * bits // 32))
    unpacked = torch.empty(values.shape, dtype=torch.uint8)
    unpack(packed, stream_packing(bits), (0, num_columns), unpacked)
    assert torch.equal(unpacked.to(torch.int32) - 2 ** (bits - 1), values.to(torch.int32))


def test_four_bits_are_packed_from_the_lowest() -> None:
    assert pack(torch.tensor([[-8, -7, 0, 7, -8, -8, -8, -8]], dtype=torch.int8), 4).tolist() == [[0x0F810]]


def test_power_of_two_scales_are_powers_of_two() -> None:
    matrix = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    scales = encode(matrix, "power_of_two", scheme_of("power_of_two", None), torch.float32).tensors["weight_scale"]
    exponents = torch.log2(scales)
    assert torch.equal(exponents, exponents.round())
    assert (matrix.abs().amax(1, keepdim=True) / scales).max() <= 128


def test_a_report_tells_size_quality_and_speed(measured: Path) -> None:
    report = json.loads((measured / "compress_report.json").read_text())
    assert report["size"]["num_bytes"] < 0.6 * report["original_size"]["num_bytes"]
    assert sum(report["size"]["by_part"].values()) == report["size"]["num_bytes"]
    assert 0 < report["quality"]["kl"] < 0.1
    assert report["quality"]["top1_agreement"] > 0.8
    assert [one["batch_size"] for one in report["speed"]] == [1, 8, 32]
    caches = [one["cache_bytes"] for one in report["speed"]]
    assert caches == [caches[0], 8 * caches[0], 32 * caches[0]]
    assert report["files_sha256"].keys() == {"model.safetensors"}
    text = (measured / "report.md").read_text()
    assert "| perplexity |" in text
    for row in ("| tokens/s, batch 8 |", "| ms a step, batch 32 |", "| MiB of weights and cache, batch 1 |"):
        assert row in text
    assert "█" in text
    assert (measured / "recipe.yaml").read_text().startswith("steps:\n- step: quantize\n  scheme: int8")


@pytest.mark.parametrize(("vocab_size", "is_all"), [(20, True), (500, False)])
def test_the_most_probable_tokens_bound_the_divergence_from_below(vocab_size: int, is_all: bool) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    original, noise = (torch.randn(40, vocab_size, generator=generator, dtype=torch.float64) for _ in range(2))
    theirs, ours = (logits.log_softmax(-1) for logits in (3 * original, 3 * original + noise))
    whole = (theirs.exp() * (theirs - ours)).sum(-1).mean().item()
    bound = kl_lower_bound([score_of(theirs)], [score_of(ours)])
    assert bound == pytest.approx(whole) if is_all else 0.5 * whole < bound < whole


def score_of(logprobs: torch.Tensor) -> TextScore:
    best = logprobs.topk(20, dim=1)
    tops = [dict(zip(*row, strict=True)) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
    return TextScore([0] * len(tops), [0.0] * len(tops), tops)


def test_inspect_shows_how_a_model_was_made(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compress", "inspect", str(measured)]) == 0
    shown = capsys.readouterr().out
    assert "quantization: compressed-tensors" in shown
    assert '"scheme": "int8"' in shown
    assert '"top1_agreement"' in shown


def test_a_model_is_as_good_as_itself(source: Path) -> None:
    model = LocalModel(source)
    quality = compare(model, model, [[5, 9, 3, 7], [1, 2], [30, 31, 32]])
    assert quality.divergence.kl == pytest.approx(0, abs=1e-12)
    assert quality.divergence.top1_agreement == 1
    assert quality.perplexity_increase == 0
    assert quality.divergence.num_tokens == 6


def test_perplexity_and_its_error_are_what_they_say(source: Path) -> None:
    model = LocalModel(source)
    sequences = [[5, 9, 3, 7], [1, 2, 3], [30, 31, 32, 33, 34]]
    losses, counts = [], []
    for sequence in sequences:
        rows = model.logits([sequence]).double().log_softmax(-1)
        losses.append(-sum(rows[place, token].item() for place, token in enumerate(sequence[1:])))
        counts.append(len(sequence) - 1)
    mean = sum(losses) / sum(counts)
    found = perplexity(model, sequences)
    assert found.value == pytest.approx(math.exp(mean), rel=1e-5)
    residuals = np.array(losses) - mean * np.array(counts)
    expected = math.sqrt(residuals @ residuals * 3 / 2) / sum(counts)
    assert found.standard_error == pytest.approx(math.exp(mean) * expected, rel=1e-4)


def test_exact_answers_are_counted_by_task(source: Path, tmp_path: Path) -> None:
    model = LocalModel(source)
    prompt = "the cat"
    answer = model.tokenizer.decode(model.generate([model.tokenizer.encode(prompt)], 8)[0])
    lines = [
        {"task": "a", "prompt": prompt, "answer": answer.strip() or "-"},
        {"task": "a", "prompt": prompt, "answer": "nothing of the kind"},
        {"task": "b", "prompt": prompt, "answer": "neither"},
    ]
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    scores = score_tasks(model, read_tasks(path), 8)
    assert [(one.task, one.num_exact, one.num_examples) for one in scores] == [("a", 1, 2), ("b", 0, 1)]


def test_texts_are_cut_into_sequences_of_two_tokens_or_more(source: Path, texts: Path) -> None:
    tokenizer = LocalModel(source).tokenizer
    sequences = list(sequences_of(read_texts(texts), tokenizer, 5))
    assert {len(one) for one in sequences} <= {2, 3, 4, 5}
    assert sequences[0] == tokenizer.encode("the cat sat on the mat")[:5]


def test_a_sequence_is_answered_alone_as_beside_others(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "int8", QuantizeSettings("int8", has_embedding=True, has_head=True))
    model = LocalModel(tmp_path / "int8", "float32")
    sequences = [[5, 9, 3, 7], [1], list(range(30, 60)), [7, 7]]
    together = model.logits(sequences)
    start = 0
    for sequence in sequences:
        alone = model.logits([sequence])
        assert (alone - together[start : start + len(sequence)]).abs().max() < 1e-5
        start += len(sequence)


def test_gptq_is_nearer_than_rounding_in_little_memory_too(source: Path, texts: Path, tmp_path: Path) -> None:
    command = ["compress", "quantize", str(source), "DST", "--scheme", "int3", "--group-size", "16"]
    calibrated = ["--calibration", str(texts)]
    in_files = [*calibrated, "--max-memory-gib", "0.00002"]  # room for one layer or two
    for target, calibration in (("rounded", []), ("gptq", calibrated), ("again", in_files)):
        assert main([*command[:3], str(tmp_path / target), *command[4:], *calibration]) == 0
    original = LocalModel(source)
    sequences = list(sequences_of(read_texts(texts), original.tokenizer, 64))
    rounded, gptq = (
        compare(original, LocalModel(tmp_path / target), sequences).divergence.kl for target in ("rounded", "gptq")
    )
    assert gptq < rounded
    ours = LocalModel(tmp_path / "gptq").logits([[5, 9, 3, 7]])
    with torch.no_grad():
        theirs = load_reference(tmp_path / "gptq")(torch.tensor([[5, 9, 3, 7]])).logits[0]
    assert (ours - theirs).norm() / theirs.norm() < 0.02
    first, again = ((tmp_path / target / "model.safetensors").read_bytes() for target in ("gptq", "again"))
    assert first == again


# The gate


def test_a_model_passes_the_gate_by_its_report(measured: Path) -> None:
    assert check_quality(measured, ASKED) == []


def test_figures_that_do_not_suffice_are_named(artifact: Path) -> None:
    path = artifact / "compress_report.json"
    report = json.loads(path.read_text())
    report["quality"] |= {"top1_agreement": 0.9, "kl": 0.01}  # with AMX int8 may agree on every token
    path.write_text(json.dumps(report))
    problems = check_quality(artifact, QualityConfig(max_perplexity_increase=0.5, min_top1_agreement=1, max_kl=0))
    assert len(problems) == 2
    assert "is above quality.max_kl=0" in problems[0]
    assert "is below quality.min_top1_agreement=1" in problems[1]


def test_a_model_without_a_report_is_refused(source: Path) -> None:
    (problem,) = check_quality(source, ASKED)
    assert "compress_report.json is not in" in problem


def test_one_flipped_bit_is_found_and_named(artifact: Path) -> None:
    path = artifact / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (problem,) = check_quality(artifact, ASKED)
    assert problem.startswith("model.safetensors is not the file that")
    (artifact / "other.safetensors").write_bytes(path.read_bytes())
    assert any("does not list other.safetensors" in one for one in check_quality(artifact, ASKED))


def test_scales_multiplied_by_three_are_refused_by_their_figures(artifact: Path, source: Path, texts: Path) -> None:
    path = artifact / "model.safetensors"
    state = {name: 3 * tensor if name.endswith("_scale") else tensor for name, tensor in load_file(str(path)).items()}
    save_file(state, str(path))
    assert "is not the file" in check_quality(artifact, ASKED)[0]
    assert main(["compress", "eval", str(artifact), "--original", str(source), "--texts", str(texts)]) == 0
    problems = check_quality(artifact, ASKED)
    assert any(problem.startswith("kl=") for problem in problems), problems


def _drop_figures(report: dict[str, Any]) -> None:
    report["quality"] = {"kl": "none", "perplexity_increase": math.nan, "top1_agreement": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda report: report.update(version=7), "version=7 is not known"),
        (lambda report: report.update(files_sha256={}), "names no files"),
        (lambda report: report.pop("quality"), "has no figures"),
        (_drop_figures, "is not a finite number"),
    ],
)
def test_a_report_that_says_too_little_is_refused(
    artifact: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = artifact / "compress_report.json"
    report = json.loads(path.read_text())
    change(report)
    path.write_text(json.dumps(report))
    assert message in "\n".join(check_quality(artifact, ASKED))


def test_validate_asks_the_gate(artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [
        "http_options: {host: 127.0.0.1, port: 8000}",
        "applications:",
        "  - {name: gateway, route_prefix: /, import_path: serve_app.app:build_gateway, args: {}}",
        "  - name: m",
        "    route_prefix: null",
        "    import_path: serve_app.app:build_model",
        f"    args: {{name: m, source: {artifact}, quality: {{max_kl: %s}}}}",
    ]
    path = tmp_path / "serve.yaml"
    path.write_text("\n".join(lines) % "0.5")
    assert main(["validate", str(path)]) == 0
    path.write_text("\n".join(lines) % "0.0")
    assert main(["validate", str(path)]) == 1
    assert "is above quality.max_kl=0" in capsys.readouterr().err


# What can be wrong with an artifact


def _set_config(directory: Path, **changes: object) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= changes
    path.write_text(json.dumps(config))


def _edit(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    state = load_file(str(path))
    change(state)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, str(path))


def _truncate(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


Q = "model.layers.1.self_attn.q_proj"
SCALE = f"{Q}.weight_scale"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, r"at bytes \d+ to \d+ of"),
        (
            lambda d: _edit(d, lambda s: s[f"{Q}.weight_scale"].fill_(math.nan)),
            "a scale is negative or not finite",
        ),
        (lambda d: _edit(d, lambda s: s[f"{Q}.weight_scale"].neg_()), "a scale is negative or not finite"),
        (lambda d: _edit(d, lambda s: s.update({f"{Q}.weight_scale": torch.ones(3, 1)})), r"has shape \[3, 1\]"),
        (
            lambda d: _edit(d, lambda s: s.update({f"{Q}.weight": torch.ones(3, 3, dtype=torch.int8)})),
            r"shape \[3, 3\]",
        ),
        (lambda d: _edit(d, lambda s: s.pop(f"{Q}.weight_scale")), "config.json does not say how it is quantized"),
        (lambda d: _edit(d, lambda s: s.pop(f"{Q}.weight")), "belongs to no weight"),
        (lambda d: _edit(d, lambda s: s.update({f"{Q}.weight": torch.ones(64, 64)})), "is not a number of its scheme"),
        (lambda d: _set_config(d, quant_method="magic"), "quant_method='magic' is not served"),
        (lambda d: _set_config(d, format="nvfp4-pack-quantized"), "is not served"),
        (lambda d: _set_config(d, config_groups={}), "no config_groups"),
        (
            lambda d: _set_config(d, sparsity_config={"format": "/tmp/evil.py"}),
            r"sparsity_config\.format=.* is not served",
        ),
        (lambda d: _set_config(d, ignore=["re:(a+)+b"]), "repeats a repetition"),
        (lambda d: _set_config(d, ignore=[Q]), "quantization_config leaves it out"),
    ],
)
def test_a_damaged_artifact_is_refused_with_what_is_wrong(
    artifact: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(artifact)
    with pytest.raises(ConfigError) as caught:
        LocalModel(artifact)
    assert re.search(message, caught.value.message), caught.value.message


def test_code_that_a_config_names_is_never_run(artifact: Path) -> None:
    (artifact / "evil.py").write_text("raise SystemExit('ran')")
    path = artifact / "config.json"
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto}))
    assert LocalModel(artifact).logits([[1, 2]]).shape == (2, 320)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scheme", "int4", "--group-size", "48"], "does not divide the 128 inputs"),
        (["--scheme", "int8", "--group-size", "32"], "has no effect on --scheme int8"),
        (["--scheme", "int8", "--ignore", "q_proj", "--texts", "/no/such/file"], "/no/such/file is not a file"),
    ],
)
def test_wrong_arguments_are_told(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["compress", "quantize", str(source), str(tmp_path / "t"), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_a_quantized_model_is_not_quantized_again(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is quantized already"):
        quantize(measured, tmp_path / "t", QuantizeSettings("int8"))
    assert not (tmp_path / "t").exists()


def test_a_directory_in_use_is_left_alone(source: Path, measured: Path) -> None:
    before = (measured / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="is not empty"):
        quantize(source, measured, QuantizeSettings("int4"))
    assert (measured / "model.safetensors").read_bytes() == before


@pytest.mark.process
def test_a_disk_that_is_full_leaves_nothing_behind(source: Path, tmp_path: Path) -> None:
    code = (
        "import resource, sys; from serve_app.cli.main import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY)); sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "compress", "quantize", str(source), str(tmp_path / "t"), "--scheme", "int8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "could not be written" in done.stderr
    assert list(tmp_path.iterdir()) == []
