"""Every encoder with int8 weights, quantized while it is loaded: near to what it was, whole and split."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve_app.checkpoints.encoder_spec import EncoderChoices, read_encoder_spec
from serve_app.engine.encoder_loader import load_encoder_stage
from serve_app.engine.plain_processes import PlainProcesses
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.models.int8_linear import Int8Linear
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.planning.planner import plan_shards
from serve_app.types.shards import LoadQuantization, WeightScheme
from tests.encoder_checkpoints import ENCODERS, VOCAB_SIZE, make_encoder
from tests.stage_group import CPU, settings_of, stage_group

INT8 = LoadQuantization(WeightScheme(8, has_quantized_inputs=True), has_embedding=True)
NEAR = 0.12  # four layers of 7-bit inputs, as a share of the outputs' spread


def inputs(names: set[str]) -> dict[str, Tensor]:
    torch.manual_seed(3)
    lengths = torch.tensor([5, 1, 30, 12])
    ids = torch.randint(4, VOCAB_SIZE, (int(lengths.sum()),))
    given = {"input_ids": ids, "lengths": lengths, "token_type_ids": torch.zeros_like(ids)}
    return {name: given[name] for name in names}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_int8_encoder_is_near_to_what_it_was(name: str, tmp_path: Path) -> None:
    task = "classify"
    directory = make_encoder(name, tmp_path / "model", is_classifier=True)
    spec = read_encoder_spec(EncoderChoices(task), directory).spec
    (shard,) = plan_shards(spec, 1, 1).shards
    settings = replace(settings_of(str(directory), task=task), shard=shard)
    plain = load_encoder_stage(settings, LoneCommunicator(), CPU)
    small = load_encoder_stage(replace(settings, quantization=INT8), LoneCommunicator(), CPU)
    given = inputs(set(plain.inputs))
    (expected,), (output,) = (list(one.forward(given, None).values()) for one in (plain, small))
    assert (output - expected).norm() < NEAR * (expected - expected.mean(dim=0)).norm()
    assert not torch.equal(output, expected)
    assert small.parameter_bytes < 0.5 * plain.parameter_bytes
    assert any(isinstance(one, Int8Linear) for one in small.model.modules())  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def pool() -> Iterator[PlainProcesses]:
    processes = PlainProcesses(4)
    yield processes
    processes.kill()


@pytest.mark.process
def test_a_split_int8_encoder_gives_what_a_whole_one_gives(tmp_path: Path, pool: PlainProcesses) -> None:
    directory = make_encoder("bert", tmp_path / "model", is_classifier=True)
    spec = read_encoder_spec(EncoderChoices("classify"), directory).spec
    settings = settings_of(str(directory), task="classify", quantization=INT8)
    (whole,) = plan_shards(spec, 1, 1).shards
    stage = load_encoder_stage(replace(settings, shard=whole), LoneCommunicator(), CPU)
    given = inputs(set(stage.inputs))
    expected = stage.forward(given, None)["logits"]
    for pipeline, tensor, tolerance in (
        (2, 1, 1e-5),
        (2, 2, NEAR),
    ):  # ranks round what they have by scales of their own
        with stage_group(settings, plan_shards(spec, pipeline, tensor).shards, pool) as group:
            output = group.run({name: to_data(one) for name, one in given.items()})
        assert output.error is None, output.error
        logits = to_tensor(output.outputs["logits"], CPU)
        assert (logits - expected).norm() < tolerance * (expected - expected.mean(dim=0)).norm()
