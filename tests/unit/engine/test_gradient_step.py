"""Slopes along paths of token embeddings: of linear models exactly, complete for every encoder, the same when split."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.checkpoints.encoder_spec import EncoderChoices, read_encoder_spec
from serve_app.checkpoints.model_spec import ModelSpec
from serve_app.engine import gradient_step
from serve_app.engine.batch_loader import load_batch_stage
from serve_app.engine.plain_processes import PlainProcesses
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.models.linear_kernels import COMPILED, KERNELS, make_product
from serve_app.models.text_classifier import TextClassifier
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.planner import plan_shards
from serve_app.types.shards import BatchModelSettings, LoadQuantization, ShardSpec, WeightScheme
from serve_app.types.steps import BatchStep, BatchStepOutput
from serve_app.types.tensors import PATH_BASELINE, PATH_POSITION, PATH_TARGET
from tests.compiled import kernels_or_skip
from tests.encoder_checkpoints import ENCODERS, VOCAB_SIZE, make_encoder
from tests.stage_group import CPU, StageGroup, lone_group, settings_of, stage_group, stages
from tests.user_modules import BagOfWords

NUM_STEPS = 100
LABEL = 1
KINKED = {"distilbert": 1e-2}  # it ends in a relu: the integral's error falls with the steps, not with their square


@pytest.fixture(scope="module")
def pool() -> Iterator[PlainProcesses]:
    processes = PlainProcesses(4)
    yield processes
    processes.kill()


def bag_of_words(directory: Path, fails_at: str = "") -> tuple[BatchModelSettings, BagOfWords]:
    torch.manual_seed(7)
    module = BagOfWords().eval()
    save_file(module.state_dict(), str(directory / "model.safetensors"))
    arguments = {"fails_at": fails_at} if fails_at else {}
    return settings_of(
        str(directory), task="classify", architecture="tests.user_modules:BagOfWords", arguments=arguments
    ), module


def classifier(directory: Path) -> BatchModelSettings:
    torch.manual_seed(5)
    arguments = {"vocab_size": VOCAB_SIZE, "num_labels": 3, "embedding_dim": 8, "hidden_size": 8}
    module = TextClassifier(**arguments)  # type: ignore[arg-type]
    save_file(module.state_dict(), str(directory / "model.safetensors"))
    path = "serve_app.models.text_classifier:TextClassifier"
    return settings_of(str(directory), task="classify", architecture=path, arguments=arguments)


def encoder(name: str, directory: Path, **changes: Any) -> tuple[BatchModelSettings, ModelSpec]:
    make_encoder(name, directory, is_classifier=True, **changes)
    spec = read_encoder_spec(EncoderChoices("classify"), directory).spec
    return settings_of(str(directory), task="classify", linear_kernel="torch"), spec


def path_inputs(texts: list[list[int]], baseline: int, positions: list[float], names: set[str]) -> dict[str, Tensor]:
    """All points of the paths of all texts."""
    ids = torch.tensor([token for text in texts for _ in positions for token in text])
    given = {
        "input_ids": ids,
        "lengths": torch.tensor([len(text) for text in texts for _ in positions]),
        "token_type_ids": torch.zeros_like(ids),
        PATH_BASELINE: torch.full_like(ids, baseline),
        PATH_POSITION: torch.tensor(positions * len(texts)),
        PATH_TARGET: torch.full((len(texts) * len(positions),), LABEL),
    }
    own = {"input_ids", "lengths", PATH_BASELINE, PATH_POSITION, PATH_TARGET}
    return {name: tensor for name, tensor in given.items() if name in names | own}


def step_of(step_id: int, inputs: dict[str, Tensor]) -> BatchStep:
    return BatchStep(step_id, 0, {name: to_data(tensor) for name, tensor in inputs.items()}, has_gradients=True)


def slopes_of(output: BatchStepOutput) -> tuple[Tensor, Tensor]:
    assert output.error is None, output.error
    return to_tensor(output.outputs["attributions"], CPU), to_tensor(output.outputs["value"], CPU)


def test_slopes_of_a_linear_model_are_weight_times_input(tmp_path: Path) -> None:
    settings, module = bag_of_words(tmp_path)
    texts = [[3, 4, 3], [5]]
    output = lone_group(settings).run_step(step_of(0, path_inputs(texts, -1, [0.25], set())))
    slopes, values = slopes_of(output)
    vectors = module.look_up.embedding.weight[torch.tensor([3, 4, 3, 5])]
    assert torch.allclose(slopes, vectors @ module.sum_up.linear.weight[LABEL], atol=1e-6)
    sums = torch.stack([vectors[:3].sum(dim=0), vectors[3]])
    assert torch.allclose(values, module.sum_up.linear(0.25 * sums)[:, LABEL], atol=1e-6)


def test_a_baseline_token_is_taken_off(tmp_path: Path) -> None:
    settings, module = bag_of_words(tmp_path)
    slopes, _values = slopes_of(lone_group(settings).run_step(step_of(0, path_inputs([[3, 9]], 9, [0.5], set()))))
    weight, vectors = module.sum_up.linear.weight[LABEL], module.look_up.embedding.weight
    assert slopes[0].item() == pytest.approx(((vectors[3] - vectors[9]) @ weight).item(), abs=1e-6)
    assert slopes[1] == 0


@pytest.mark.parametrize("name", ENCODERS)
def test_the_slopes_of_every_encoder_add_up_to_what_its_output_gains(name: str, tmp_path: Path) -> None:
    settings, spec = encoder(name, tmp_path / "model")
    group = StageGroup(settings, plan_shards(spec, 1, 1).shards, None)
    assert group.reports[0].models[0].gradient_problem == ""
    by_token = set(group.reports[0].models[0].inputs) - {"lengths"}
    nodes, weights = np.polynomial.legendre.leggauss(NUM_STEPS)
    positions = [0.0, 1.0, *((nodes + 1) / 2).tolist()]
    texts = [[2, 8, 5, 30, 6, 9, 9], [4, 3, 11]]
    inputs = path_inputs(texts, 1, positions, set(group.reports[0].models[0].inputs))
    slopes, values = slopes_of(group.run_step(step_of(0, inputs)))
    integral = torch.tensor(weights / 2, dtype=torch.float32)
    start = 0
    for index, text in enumerate(texts):
        num_rows = len(positions) * len(text)
        each = slopes[start : start + num_rows].view(len(positions), len(text))
        baseline, value = values[index * len(positions) :][:2]
        plain = group.run(
            {name: to_data(inputs[name][start : start + len(text)]) for name in by_token}
            | {"lengths": to_data(torch.tensor([len(text)]))}
        )
        assert value.item() == pytest.approx(to_tensor(plain.outputs["logits"], CPU)[0, LABEL].item(), abs=1e-4)
        assert abs(value - baseline) > 0.05
        assert (integral @ each[2:]).sum().item() == pytest.approx(
            (value - baseline).item(), abs=KINKED.get(name, 2e-3)
        )
        start += num_rows


@pytest.mark.parametrize(
    ("name", "num_stages", "num_ranks", "kernel"),
    [
        ("bert", 2, 1, "torch"),
        ("deberta-v2", 2, 1, "torch"),
        ("qwen3", 2, 1, "onednn"),
        ("bert", 1, 2, "torch"),
        ("qwen3", 1, 2, "gemv"),
        ("roberta", 2, 2, "onednn"),
    ],
)
@pytest.mark.process
def test_a_split_encoder_gives_the_slopes_of_a_whole_one(
    name: str, num_stages: int, num_ranks: int, kernel: str, tmp_path: Path, pool: PlainProcesses
) -> None:
    compare_split(*encoder(name, tmp_path / "model"), num_stages, num_ranks, kernel, pool)


@pytest.mark.parametrize("num_kv_heads", [1, 2])
@pytest.mark.process
def test_ranks_that_hold_the_same_key_value_head_give_the_slopes_of_a_whole_encoder(
    num_kv_heads: int, tmp_path: Path, pool: PlainProcesses
) -> None:
    settings, spec = encoder("qwen3", tmp_path / "model", num_key_value_heads=num_kv_heads)
    compare_split(settings, spec, 1, 4, "torch", pool)


def compare_split(
    settings: BatchModelSettings, spec: ModelSpec, num_stages: int, num_ranks: int, kernel: str, pool: PlainProcesses
) -> None:
    settings = replace(settings, linear_kernel=kernel)
    lone = StageGroup(settings, plan_shards(spec, 1, 1).shards, None)
    inputs = path_inputs([[2, 8, 5, 30, 6, 9, 9], [4, 3]], 1, [0.1, 0.5, 0.9], set(lone.reports[0].models[0].inputs))
    expected = slopes_of(lone.run_step(step_of(0, inputs)))
    with stage_group(settings, plan_shards(spec, num_stages, num_ranks).shards, pool) as group:
        assert {report.models[0].gradient_problem for report in group.reports} == {""}
        found = [slopes_of(group.run_step(step_of(number, inputs))) for number in range(2)]
    for slopes, values in found:
        assert torch.allclose(slopes, expected[0], atol=1e-5)
        assert torch.allclose(values, expected[1], atol=1e-5)


@pytest.mark.process
def test_the_text_classifier_in_three_stages_gives_the_slopes_of_a_whole_one_in_batches(
    tmp_path: Path, pool: PlainProcesses
) -> None:
    settings = classifier(tmp_path)
    texts = [[2 + place % 40 for place in range(length)] for length in (150, 150, 1, 150)]
    inputs = path_inputs(texts, 0, [0.2, 0.7, 1.0], set())  # 1,353 tokens: more than are held at once
    assert int(inputs["lengths"].sum()) > gradient_step.MAX_TOKENS
    expected = slopes_of(lone_group(settings).run_step(step_of(0, inputs)))
    with stage_group(settings, stages(3), pool) as group:
        slopes, values = slopes_of(group.run_step(step_of(0, inputs)))
    assert torch.allclose(slopes, expected[0], atol=1e-5)
    assert torch.allclose(values, expected[1], atol=1e-5)


@pytest.mark.parametrize("fails_at", ["look_up forward", "sum forward", "look_up backward", "sum backward"])
@pytest.mark.process
def test_a_step_that_breaks_on_one_stage_fails_alone(fails_at: str, tmp_path: Path, pool: PlainProcesses) -> None:
    settings, _module = bag_of_words(tmp_path, fails_at)
    good, bad = (path_inputs([[first, 4]], -1, [0.5], set()) for first in (3, 13))
    with stage_group(settings, stages(2), pool) as group:
        expected = slopes_of(group.run_step(step_of(0, good)))
        assert group.run_step(step_of(1, bad)).error == "ValueError"
        assert group.run_step(step_of(2, bad)).error == "ValueError"
        slopes, values = slopes_of(group.run_step(step_of(3, good)))
    assert torch.equal(slopes, expected[0])
    assert torch.equal(values, expected[1])


def test_what_gives_no_gradients_says_why(tmp_path: Path) -> None:
    settings = classifier(tmp_path)
    int8 = replace(settings, quantization=LoadQuantization(WeightScheme(8), has_embedding=True))
    assert "its weights are quantized" in lone_group(int8).reports[0].models[0].gradient_problem
    none = load_batch_stage(settings, LoneCommunicator(), CPU)
    none.root[0].embedding = nn.Identity()  # type: ignore[index]
    assert "not exactly one nn.Embedding" in gradient_step.gradient_problem(none, ShardSpec(0, 1, 0, 1, 0, 0))
    stage = load_batch_stage(settings, LoneCommunicator(), CPU)
    assert gradient_step.gradient_problem(stage, ShardSpec(0, 1, 0, 1, 0, 0)) == ""


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_of_floating_point_weights_has_the_gradient_of_its_inputs(kernel: str) -> None:
    torch.manual_seed(2)
    weight, bias = torch.randn(5, 8), torch.randn(5)
    product = make_product(kernel, weight, kernels_or_skip() if kernel == COMPILED else None)
    inputs = torch.randn(3, 8, requires_grad=True)
    outputs = product.multiply(inputs, bias)
    (outputs * torch.arange(5.0)).sum().backward()  # type: ignore[no-untyped-call]
    assert inputs.grad is not None
    assert torch.allclose(inputs.grad, (torch.arange(5.0) @ weight).expand(3, 8), atol=1e-2)
    assert torch.allclose(outputs, inputs @ weight.T + bias, atol=1e-2)
