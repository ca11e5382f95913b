"""Plain nn.Modules, compressed: the shipped text classifier as users do it, and modules of every kind of parts."""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from serve_app.checkpoints.quality_gate import check_quality
from serve_app.cli.main import main
from serve_app.compress.modules import label_texts, prune_module, quantize_module
from serve_app.compress.quantize import QuantizeSettings
from serve_app.config.compression import QualityConfig
from serve_app.engine.module_loader import load_module_stage
from serve_app.engine.plain_processes import PlainProcesses
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.errors import ConfigError
from serve_app.models.int8_linear import Int8Linear
from serve_app.models.quantization import QuantizedEmbedding
from serve_app.training.csv_rows import read_csv
from serve_app.types.shards import BatchModelSettings, LoadQuantization, WeightScheme
from serve_app.types.tensors import TensorSpec
from tests.stage_group import CPU, settings_of, stage_group, stages
from tests.user_modules import MaskedTower, Perceptron

MODEL = Path("examples/text_classifier/model")
HELD_OUT = Path("examples/text_classifier/heldout.csv")
ARCHITECTURE = "serve_app.models.text_classifier:TextClassifier"
WHOLE_INT8 = QuantizeSettings("int8", has_embedding=True)
INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True)


@pytest.fixture(scope="module")
def pool() -> Iterator[PlainProcesses]:
    processes = PlainProcesses(3)
    yield processes
    processes.kill()


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("int8") / "tickets"
    quantize_module(MODEL, directory, WHOLE_INT8)
    return directory


def tickets(directory: Path) -> BatchModelSettings:
    arguments = json.loads((MODEL / "config.json").read_text())["arguments"]
    return settings_of(str(directory), task="classify", architecture=ARCHITECTURE, arguments=arguments)


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(2)
    return {"input_ids": torch.randint(0, 200, (40,)), "lengths": torch.tensor([10, 1, 0, 29])}


@pytest.mark.parametrize("scheme", ["int8", "int8_weight_only", "power_of_two"])
def test_the_text_classifier_labels_as_before_in_a_quarter_of_the_bytes(scheme: str, tmp_path: Path) -> None:
    target = tmp_path / "small"
    names = quantize_module(MODEL, target, QuantizeSettings(scheme, has_embedding=True))
    assert {"embed.embedding.weight", "recur.lstm.weight_hh_l0_reverse", "head.linear.weight"} < set(names)
    labelling = label_texts(MODEL, target, read_csv(HELD_OUT, "text", "label").rows)
    assert labelling.agreement >= 0.99
    assert abs(labelling.num_right - labelling.original_num_right) <= 1
    assert labelling.kl < 1e-3
    sizes = [(one / "model.safetensors").stat().st_size for one in (MODEL, target)]
    assert sizes[1] < 0.3 * sizes[0]
    if scheme == "power_of_two":
        scales = load_file(str(target / "model.safetensors"))["head.linear.weight_scale"].log2()
        assert torch.equal(scales, scales.round())


def test_the_same_bytes_come_of_the_same_source(int8: Path, tmp_path: Path) -> None:
    quantize_module(MODEL, tmp_path / "again", WHOLE_INT8)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (int8 / "model.safetensors").read_bytes()


def test_layers_of_torch_get_kernels_and_the_lstm_is_made_whole(int8: Path) -> None:
    stage = load_module_stage(tickets(int8), CPU)
    kinds = {type(module) for module in stage.module.modules()}  # type: ignore[attr-defined]
    assert {Int8Linear, QuantizedEmbedding, nn.LSTM} <= kinds
    assert not kinds & {nn.Linear, nn.Embedding}
    state = load_file(str(int8 / "model.safetensors"))
    original = load_file(str(MODEL / "model.safetensors"))["recur.lstm.weight_hh_l0"]
    whole = state["recur.lstm.weight_hh_l0"] * state["recur.lstm.weight_hh_l0_scale"]
    lstm = next(one for one in stage.module.modules() if isinstance(one, nn.LSTM))  # type: ignore[attr-defined]
    assert torch.equal(lstm.get_parameter("weight_hh_l0"), whole)
    assert (whole - original).abs().max() <= state["recur.lstm.weight_hh_l0_scale"].max() / 2 * 1.001


@pytest.mark.process
@pytest.mark.parametrize("num_stages", [2, 3])
def test_a_quantized_classifier_is_split(num_stages: int, int8: Path, pool: PlainProcesses) -> None:
    whole = load_module_stage(tickets(int8), CPU).forward(inputs(), None)["logits"]
    with stage_group(tickets(int8), stages(num_stages), pool) as group:
        output = group.run({name: to_data(tensor) for name, tensor in inputs().items()})
    assert output.error is None, output.error
    assert torch.allclose(to_tensor(output.outputs["logits"], CPU), whole, atol=1e-6)


def test_a_module_is_quantized_while_it_is_loaded() -> None:
    settings = tickets(MODEL)
    plain = load_module_stage(settings, CPU)
    quantized = load_module_stage(replace(settings, quantization=INT8), CPU)
    assert quantized.parameter_bytes < 0.7 * plain.parameter_bytes  # the LSTM stays
    expected = plain.forward(inputs(), None)["logits"]
    logits = quantized.forward(inputs(), None)["logits"]
    assert 0 < (logits - expected).norm() < 0.02 * expected.norm()


@pytest.mark.parametrize("kind", ["Perceptron", "MaskedTower"])
def test_parts_that_are_linears_and_lists_of_parts(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = {"Perceptron": Perceptron, "MaskedTower": MaskedTower}[kind]()
    save_file({name: one.clone() for name, one in module.state_dict().items()}, str(tmp_path / "model.safetensors"))
    row = {"x": TensorSpec("float32", ("batch", 6))}
    declared = {"inputs": row, "outputs": {"y": row["x"]}} if kind == "Perceptron" else {}
    settings = settings_of(str(tmp_path), architecture=f"tests.user_modules:{kind}", **declared)
    given = {"x": torch.randn(5, 6)} | ({} if kind == "Perceptron" else {"mask": torch.arange(5) > 1})
    expected = load_module_stage(settings, CPU).forward(given, None)["y"]
    stage = load_module_stage(replace(settings, quantization=INT8), CPU)
    assert any(isinstance(one, Int8Linear) for one in stage.module.modules())  # type: ignore[attr-defined]
    assert (stage.forward(given, None)["y"] - expected).norm() < 0.05 * expected.norm()
    ignoring = replace(settings, quantization=replace(INT8, ignored=("0", "before")))
    first = {"Perceptron": "0", "MaskedTower": "before"}[kind]
    assert type(load_module_stage(ignoring, CPU).module.get_submodule(first)) is nn.Linear  # type: ignore[attr-defined]


class Tower(nn.Module):
    """A layer of torch that reads the weights of its linear layers itself, and a weight with two names."""

    inputs = {"x": TensorSpec("float32", ("batch", 8))}  # noqa: RUF012
    outputs = {"y": TensorSpec("float32", ("batch", 8))}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, 8] -> [B, 8]."""
        hidden: Tensor = self.layer(x[:, None])[:, 0]
        output: Tensor = self.last(self.second(self.first(hidden)))
        return output


def test_what_a_kernel_cannot_stand_for_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Tower().eval()
    state = {name: one.clone() for name, one in module.state_dict().items() if name != "second.weight"}
    save_file(state, str(tmp_path / "model.safetensors"))
    settings = settings_of(str(tmp_path), architecture=f"{__name__}:Tower", quantization=INT8)
    stage = load_module_stage(settings, CPU)
    quantized = [name for name, one in stage.module.named_modules() if isinstance(one, Int8Linear)]  # type: ignore[attr-defined]
    assert quantized == ["last"]
    x = torch.randn(4, 8)
    with torch.inference_mode():
        expected = module(x)
        assert (stage.forward({"x": x}, None)["y"] - expected).norm() < 0.05 * expected.norm()


def test_magnitude_pruning_zeroes_the_smallest_of_each_matrix(tmp_path: Path) -> None:
    share = prune_module(MODEL, tmp_path / "half", 0.5)
    before, after = (load_file(str(one / "model.safetensors")) for one in (MODEL, tmp_path / "half"))
    for name, tensor in before.items():
        if tensor.dim() != 2:
            assert torch.equal(after[name], tensor)
            continue
        gone = after[name] == 0
        assert int(gone.sum()) == tensor.numel() // 2
        assert tensor[gone].abs().max() <= tensor[~gone].abs().min()
        assert torch.equal(after[name][~gone], tensor[~gone])
    assert 0.48 < share < 0.5


def test_the_command_measures_and_the_gate_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "int8"
    options = ["--scheme", "int8", "--embedding", "--texts", str(HELD_OUT)]
    assert main(["compress", "quantize", str(MODEL), str(target), *options]) == 0
    assert "| accuracy | 0.9250 | 0.9" in capsys.readouterr().out
    pruned = tmp_path / "pruned"
    assert main(["compress", "prune", str(MODEL), str(pruned), "--sparsity", "0.9"]) == 0
    assert main(["compress", "eval", str(pruned), "--original", str(MODEL), "--texts", str(HELD_OUT)]) == 0
    picture = ElementTree.fromstring((pruned / "report.svg").read_text())
    assert [text for one in picture.iter() if (text := one.text) in ("model", "int8", "pruned")] == [
        "model",
        "int8",
        "pruned",
    ]
    gate = QualityConfig(min_top1_agreement=0.98, max_kl=0.01)
    assert check_quality(target, gate) == []
    assert any("top1_agreement" in problem for problem in check_quality(pruned, gate))
    content = bytearray((target / "model.safetensors").read_bytes())
    content[-100] ^= 1
    (target / "model.safetensors").write_bytes(content)
    assert any("sha256 differs" in problem for problem in check_quality(target, gate))
    assert main(["compress", "inspect", str(pruned)]) == 0
    assert '"sparsity": 0.9' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["quantize", "--scheme", "int4"], "--scheme int4 is not there for plain modules"),
        (["quantize", "--scheme", "int8", "--head"], "--head has no effect"),
        (["quantize", "--scheme", "int8", "--calibration", "x.txt"], "--calibration has no effect"),
        (["quantize", "--scheme", "int8", "--texts", "nowhere.csv"], "nowhere.csv is not a file"),
        (["prune"], "--sparsity is missing"),
        (["prune", "--sparsity", "1.5"], "between 0 and 1"),
        (["prune", "--sparsity", "0.5", "--layers", "2"], "--layers has no effect"),
    ],
)
def test_what_does_not_go_together_is_said_before_anything_is_written(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target"
    assert main(["compress", options[0], str(MODEL), str(target), *options[1:]]) != 0
    assert message in capsys.readouterr().err
    assert not target.exists()


def test_damaged_artifacts_are_named(int8: Path, tmp_path: Path) -> None:
    state = load_file(str(int8 / "model.safetensors"))
    config = json.loads((int8 / "config.json").read_text())
    name = "head.linear.weight"

    def refuse(message: str, **changes: Tensor | None) -> None:
        changed = {key: one for key, one in (state | changes).items() if one is not None}
        save_file(changed, str(tmp_path / "model.safetensors"))
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ConfigError, match=message):
            load_module_stage(tickets(tmp_path), CPU)

    refuse("is missing; quantize the model again", **{f"{name}_scale": None})
    refuse("scale is negative or not finite", **{f"{name}_scale": torch.full_like(state[f"{name}_scale"], -1)})
    refuse("which is I8", **{f"{name}_scale": state[name][:, :1].clone()})
    refuse("which is F32", **{name: state[name].float()})
    config["quantization_config"]["kernel"] = "int2"
    refuse("quantize the model again")
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    refuse("is not of rayshard compress")
    with pytest.raises(ConfigError, match="is quantized already"):
        quantize_module(int8, tmp_path / "twice", WHOLE_INT8)
