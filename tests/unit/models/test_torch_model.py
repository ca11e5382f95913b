"""Any nn.Module: cut into stages, filled from safetensors, run as batch steps; on real processes where it is split."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.engine.module_loader import load_module_stage
from serve_app.engine.plain_processes import PlainProcesses
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.errors import ConfigError
from serve_app.models.text_classifier import TextClassifier
from serve_app.models.torch_model import ModuleStage, import_class
from serve_app.types.shards import BatchModelSettings, ShardSpec
from serve_app.types.tensors import TensorSpec
from tests.stage_group import CPU, settings_of, stage_group, stages
from tests.user_modules import ManyKinds, MaskedTower, Perceptron, Touchy

TOLERANCE = 1e-6
ROW = {"x": TensorSpec("float32", ("batch", 6))}
ROW_OUT = {"y": TensorSpec("float32", ("batch", 6))}


@pytest.fixture(scope="module")
def pool() -> Iterator[PlainProcesses]:
    processes = PlainProcesses(3)
    yield processes
    processes.kill()


def save(module: nn.Module, directory: Path, *, drop: str = "", extra: str = "") -> str:
    """The module's state as a checkpoint."""
    state = {name: tensor.contiguous().clone() for name, tensor in module.state_dict().items() if name != drop}
    if extra:
        state[extra] = torch.zeros(1)
    directory.mkdir(exist_ok=True)
    save_file(state, str(directory / "model.safetensors"))
    return str(directory)


def settings_for(name: str, source_dir: str, **changes: object) -> BatchModelSettings:
    return settings_of(source_dir, architecture=f"tests.user_modules:{name}", **changes)


def run(settings: BatchModelSettings, num_stages: int, pool: PlainProcesses, **inputs: Tensor) -> dict[str, Tensor]:
    with stage_group(settings, stages(num_stages), pool) as group:
        output = group.run({name: to_data(tensor) for name, tensor in inputs.items()})
    assert output.error is None, output.error
    return {name: to_tensor(data, CPU) for name, data in output.outputs.items()}


def make_classifier() -> TextClassifier:
    torch.manual_seed(5)
    return TextClassifier(vocab_size=50, num_labels=4, embedding_dim=8, hidden_size=8).eval()


def classifier_settings(source_dir: str) -> BatchModelSettings:
    arguments = {"vocab_size": 50, "num_labels": 4, "embedding_dim": 8, "hidden_size": 8}
    path = "serve_app.models.text_classifier:TextClassifier"
    return settings_of(source_dir, architecture=path, arguments=arguments)


@pytest.mark.process
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_sequential_is_cut_into_its_children(num_stages: int, pool: PlainProcesses, tmp_path: Path) -> None:
    torch.manual_seed(1)
    module = Perceptron()
    settings = settings_for("Perceptron", save(module, tmp_path), inputs=ROW, outputs=ROW_OUT)
    x = torch.randn(5, 6)
    assert torch.allclose(run(settings, num_stages, pool, x=x)["y"], module(x), atol=TOLERANCE, rtol=0)


@pytest.mark.process
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_a_module_list_is_found_and_its_parts_get_their_other_arguments(
    num_stages: int, pool: PlainProcesses, tmp_path: Path
) -> None:
    torch.manual_seed(2)
    module = MaskedTower()
    x, mask = torch.randn(6, 6), torch.tensor([True, False, True, True, False, True])
    outputs = run(settings_for("MaskedTower", save(module, tmp_path)), num_stages, pool, x=x, mask=mask)
    expected = module(x, mask)
    assert torch.allclose(outputs["y"], expected["y"], atol=TOLERANCE, rtol=0)
    assert torch.equal(outputs["kept"], expected["kept"])


@pytest.mark.process
@pytest.mark.parametrize("num_stages", [1, 2, 3])
def test_declared_parts_are_spread_and_each_stage_holds_its_own(
    num_stages: int, pool: PlainProcesses, tmp_path: Path
) -> None:
    module = make_classifier()
    settings = classifier_settings(save(module, tmp_path))
    input_ids, lengths = torch.randint(0, 50, (12,)), torch.tensor([5, 0, 4, 3])
    with stage_group(settings, stages(num_stages), pool) as group:
        output = group.run({"input_ids": to_data(input_ids), "lengths": to_data(lengths)})
        held = [report.models[0] for report in group.reports] if num_stages > 1 else []
    logits = to_tensor(output.outputs["logits"], CPU)
    assert torch.allclose(logits, module(input_ids, lengths), atol=TOLERANCE, rtol=0)
    if held:
        assert [one.first_part for one in held] == [0, *[one.end_part for one in held[:-1]]]
        assert held[-1].end_part == 3
        assert sum(one.parameter_bytes for one in held) == sum(one.nbytes for one in module.parameters())


@pytest.mark.process
def test_tensors_of_every_kind_go_in_and_out_and_shared_parameters_stay_shared(
    pool: PlainProcesses, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    module = ManyKinds()
    source_dir = save(module, tmp_path, drop="second.weight")
    settings = settings_for("ManyKinds", source_dir)
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    outputs = run(settings, 1, pool, image=image)
    for name, expected in module(image).items():
        assert outputs[name].dtype == expected.dtype
        assert torch.equal(outputs[name], expected)
    stage = ModuleStage(settings)
    assert len({id(parameter) for parameter in stage.own_parameters().values()}) == 2


@pytest.mark.process
@pytest.mark.parametrize("num_stages", [1, 2])
def test_what_a_module_raises_fails_the_step_and_not_the_shard(
    num_stages: int, pool: PlainProcesses, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = Perceptron()
    settings = settings_for("Perceptron", save(module, tmp_path), inputs=ROW, outputs=ROW_OUT)
    with stage_group(settings, stages(num_stages), pool) as group:
        bad = group.run({"x": to_data(torch.full((2, 7), 31415.0))})
        good = group.run({"x": to_data(torch.ones(2, 6))})
    assert bad.error == "RuntimeError"
    assert "31415" not in caplog.text
    assert good.error is None


@pytest.mark.process
def test_the_kind_alone_of_a_users_exception_is_told(
    pool: PlainProcesses, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stage_group(settings_for("Touchy", save(Touchy(), tmp_path)), stages(1), pool) as group:
        output = group.run({"x": to_data(torch.tensor([[-271828.0]]))})
    assert output.error == "ValueError"
    assert "271828" not in caplog.text


@pytest.mark.process
def test_an_output_that_is_not_as_declared_is_named(pool: PlainProcesses, tmp_path: Path) -> None:
    outputs = {"y": TensorSpec("float64", ("batch", 6))}
    settings = settings_for("Perceptron", save(Perceptron(), tmp_path), inputs=ROW, outputs=outputs)
    with stage_group(settings, stages(1), pool) as group:
        output = group.run({"x": to_data(torch.ones(2, 6))})
    assert output.error is not None
    assert "output y is torch.float32 [2, 6], declared float64 ['batch', 6]" in output.error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drop": "1.weight"}, None),
        ({"drop": "2.weight"}, "no tensor 2.weight"),
        ({"extra": "nothing.weight"}, "tensors that the module does not have, first nothing.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    changes: dict[str, str], message: str | None, tmp_path: Path
) -> None:
    settings = settings_for("Perceptron", save(Perceptron(), tmp_path, **changes), inputs=ROW, outputs=ROW_OUT)
    if message is None:
        load_module_stage(settings, CPU)
        return
    with pytest.raises(ConfigError, match=message):
        load_module_stage(settings, CPU)


def test_a_tensor_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    settings = settings_for("Perceptron", save(Perceptron(width=5), tmp_path), inputs=ROW, outputs=ROW_OUT)
    with pytest.raises(ConfigError, match=r"shape \[6, 6\] in the module, but \[5, 5\]"):
        load_module_stage(settings, CPU)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("tests.no_such_module:Thing", "cannot be imported"),
        ("tests.user_modules:NoSuchClass", "no nn.Module of the name NoSuchClass"),
        ("tests.user_modules:perceptron", "no nn.Module"),
    ],
)
def test_a_class_that_is_not_there_is_refused(path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_class(path)


def test_wrong_arguments_undeclared_inputs_and_missing_parts_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="depth"):
        ModuleStage(settings_for("Perceptron", str(tmp_path), arguments={"depth": 3}, inputs=ROW, outputs=ROW_OUT))
    with pytest.raises(ConfigError, match="does not declare its inputs"):
        ModuleStage(settings_for("Perceptron", str(tmp_path)))
    two = replace(settings_for("Uncuttable", str(tmp_path)), shard=ShardSpec(0, 2, 0, 1, 0, 0))
    with pytest.raises(ConfigError, match=r"no parts\(\)"):
        ModuleStage(two)
    five = replace(classifier_settings(str(tmp_path)), shard=ShardSpec(0, 5, 0, 1, 0, 0))
    with pytest.raises(ConfigError, match="use at most 3"):
        ModuleStage(five)


def test_a_text_is_classified_alone_as_beside_long_neighbours() -> None:
    module = make_classifier()
    text = torch.randint(0, 50, (3,))
    neighbours = torch.randint(0, 50, (63 * 200,))
    alone = module(text, torch.tensor([3])).softmax(-1)
    lengths = torch.tensor([3] + [200] * 63)
    beside = module(torch.cat([text, neighbours]), lengths).softmax(-1)[:1]
    assert (alone - beside).abs().max() <= TOLERANCE


def test_a_text_without_tokens_gets_the_answer_of_no_evidence() -> None:
    module = make_classifier()
    logits = module(torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0]))
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], module.head.linear.bias)
