"""Each rank holds its part of every matrix, and the ranks together compute what one does."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from serve_app.architectures.rank_shares import even_range
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.models.transformers_model import TransformersStage, read_config
from serve_app.parallel.communicator import Communicator, LoneCommunicator
from serve_app.parallel.tensor_parallel import cut_stage, packed_ranges
from serve_app.types.shards import LoadQuantization, ShardSpec, WeightScheme
from tests.checkpoints import ARCHITECTURES, VOCAB_SIZE, make_checkpoint
from tests.quantized_checkpoints import make_model, pack_gptq

Result = TypeVar("Result")
BFLOAT16_ERROR = 0.02  # of a logit: what computing in bfloat16 does to quantized models
WITH_FEWER_KV_HEADS = [name for name in ARCHITECTURES if name not in ("gpt2", "opt")]


class ThreadCommunicator(LoneCommunicator):
    """Collectives among threads, one for each rank."""

    def __init__(self, rank: int, slots: list[Tensor], barrier: threading.Barrier) -> None:
        self._rank = rank
        self._slots = slots
        self._barrier = barrier
        self.num_reduced = 0

    def all_reduce(self, tensor: Tensor) -> Tensor:
        self.num_reduced += 1
        return tensor.copy_(torch.stack(self.all_gather(tensor)).sum(0))

    def all_gather(self, tensor: Tensor) -> list[Tensor]:
        self._slots[self._rank] = tensor.clone()
        self._barrier.wait(timeout=10)
        gathered = list(self._slots)
        self._barrier.wait(timeout=10)
        return gathered


class WholeAttention:
    """Attention of one sequence that has all its tokens in this step: [T, H, Dh]."""

    def attend(
        self,
        _layer_index: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        sliding_window: int | None,
        _softcap: float | None,
        _sinks: Tensor | None = None,
    ) -> Tensor:
        assert sliding_window is None or sliding_window >= query.shape[1]
        output = torch.nn.functional.scaled_dot_product_attention(
            query[None], key[None], value[None], is_causal=True, scale=scaling, enable_gqa=True
        )
        return output[0].transpose(0, 1)

    def compiled_rows(self) -> None:
        """None: there is no cache."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors are tiny


def on_ranks(num_ranks: int, run: Callable[[int, ThreadCommunicator], Result]) -> list[Result]:
    """Call `run(rank, communicator)` in a thread for each rank."""
    barrier, slots = threading.Barrier(num_ranks), [torch.empty(0)] * num_ranks
    results: dict[int, Result] = {}

    def work(rank: int) -> None:
        try:
            results[rank] = run(rank, ThreadCommunicator(rank, slots, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(num_ranks)]


def load(
    directory: Path,
    rank: int,
    num_ranks: int,
    communicator: Communicator | None = None,
    quantization: LoadQuantization | None = None,
) -> LoadedStage:
    shard = ShardSpec(0, 1, rank, num_ranks, 0, 4)
    return load_stage(
        directory, "float32", shard, communicator or LoneCommunicator(), torch.device("cpu"), quantization
    )


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=4), num_ranks=st.integers(1, 4))
def test_packed_ranges_hold_a_share_of_each_matrix(sizes: list[int], num_ranks: int) -> None:
    packed = torch.cat([torch.full((size,), index) for index, size in enumerate(sizes)])
    ranges = [packed_ranges(sizes, [even_range(size, rank, num_ranks) for size in sizes]) for rank in range(num_ranks)]
    for own in ranges:
        for index, (start, end) in enumerate(own):
            assert (packed[start:end] == index).all()
    assert sorted(place for own in ranges for start, end in own for place in range(start, end)) == list(
        range(sum(sizes))
    )


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_ranks_together_give_the_logits_of_one(tmp_path: Path, name: str, num_ranks: int) -> None:
    changes = {} if name in ("gpt2", "opt") else {"num_key_value_heads": 4}
    compare_ranks(make_checkpoint(name, tmp_path, **changes), num_ranks)


@pytest.mark.parametrize(("num_kv_heads", "num_ranks"), [(2, 4), (1, 2), (1, 4)])
@pytest.mark.parametrize("name", WITH_FEWER_KV_HEADS)
def test_ranks_that_hold_the_same_key_value_head_give_the_logits_of_one(
    tmp_path: Path, name: str, num_kv_heads: int, num_ranks: int
) -> None:
    compare_ranks(make_checkpoint(name, tmp_path, num_key_value_heads=num_kv_heads), num_ranks)


@pytest.mark.parametrize("is_stored", [False, True], ids=["int8 at load", "gptq"])
@pytest.mark.parametrize(("num_kv_heads", "num_ranks"), [(2, 4), (1, 2)])
def test_ranks_share_key_value_heads_of_quantized_weights(
    tmp_path: Path, num_kv_heads: int, num_ranks: int, is_stored: bool
) -> None:
    directory = make_model("llama", tmp_path / "model", num_key_value_heads=num_kv_heads, hidden_size=64)
    quantization = None if is_stored else LoadQuantization(WeightScheme(8))
    if is_stored:
        directory = pack_gptq(directory, tmp_path / "packed")
    expected = logits_of(load(directory, 0, 1, quantization=quantization).stage)
    outputs = on_ranks(
        num_ranks,
        lambda rank, communicator: logits_of(load(directory, rank, num_ranks, communicator, quantization).stage),
    )
    for output in outputs:
        assert (output - expected).norm() < BFLOAT16_ERROR * expected.norm()
        assert torch.equal(output, outputs[0])


@pytest.mark.parametrize(("num_kv_heads", "num_ranks", "held"), [(2, 4, [0, 0, 1, 1]), (1, 2, [0, 0]), (4, 2, None)])
def test_a_rank_holds_the_rows_of_its_own_key_value_head(
    tmp_path: Path, num_kv_heads: int, num_ranks: int, held: list[int] | None
) -> None:
    directory = make_checkpoint("qwen2", tmp_path, num_key_value_heads=num_kv_heads)
    tensors = stored(directory)
    for rank in range(num_ranks):
        model = load(directory, rank, num_ranks).stage.model
        for name in ("k_proj.weight", "k_proj.bias", "v_proj.weight", "v_proj.bias"):
            whole = tensors[f"model.layers.1.self_attn.{name}"]
            own = whole.chunk(num_ranks)[rank] if held is None else whole.chunk(num_kv_heads)[held[rank]]
            assert torch.equal(model.get_parameter(f"model.layers.1.self_attn.{name}"), own)


def logits_of(stage: TransformersStage) -> Tensor:
    tokens = torch.tensor([5, 17, 98, 49, 50, 3, 0])  # both sides of each cut of the vocabulary
    with torch.inference_mode():
        return stage.forward(tokens, torch.arange(len(tokens)), WholeAttention(), torch.tensor([0, 3, 6]))


def compare_ranks(directory: Path, num_ranks: int) -> None:
    """That as many ranks give the logits of one."""
    expected = logits_of(load(directory, 0, 1).stage)
    outputs = on_ranks(
        num_ranks, lambda rank, communicator: logits_of(load(directory, rank, num_ranks, communicator).stage)
    )
    assert expected.shape == (3, VOCAB_SIZE)
    for output in outputs:
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-4)
        assert torch.equal(output, outputs[0])  # ranks must never drift apart


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_layer_takes_two_sums_and_one_for_each_shared_norm_and_the_embedding_one(tmp_path: Path, name: str) -> None:
    directory = make_checkpoint(name, tmp_path)

    def count(rank: int, communicator: ThreadCommunicator) -> int:
        stage = load(directory, rank, 2, communicator).stage
        with torch.inference_mode():
            stage.forward(torch.tensor([5, 60]), torch.arange(2), WholeAttention(), torch.tensor([1]))
        return communicator.num_reduced

    num_norms = 2 if name == "olmo2" else 0
    assert on_ranks(2, count) == [1 + 4 * (2 + num_norms)] * 2


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("gpt2", ["transformer.h.1.attn.c_proj.bias", "transformer.h.1.mlp.c_proj.bias"]),
        ("opt", ["model.decoder.layers.1.self_attn.out_proj.bias", "model.decoder.layers.1.fc2.bias"]),
    ],
)
def test_the_bias_of_a_summed_matrix_is_added_by_the_first_rank_alone(
    tmp_path: Path, name: str, biases: list[str]
) -> None:
    directory = make_checkpoint(name, tmp_path)
    expected = stored(directory)
    for rank in range(2):
        model = load(directory, rank, 2).stage.model
        for bias in biases:
            assert expected[bias].count_nonzero() == len(expected[bias])
            held = model.get_parameter(bias)
            assert torch.equal(held, expected[bias] if rank == 0 else torch.zeros_like(held))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_packed_matrix_is_cut_in_each_of_its_parts(tmp_path: Path, rank: int) -> None:
    phi3 = make_checkpoint("phi3", tmp_path / "phi3")
    matrix = stored(phi3)["model.layers.1.self_attn.qkv_proj.weight"]  # 4 heads, 2 kv heads of 8
    query, key, value = torch.split(matrix, [32, 16, 16])
    own = torch.cat([part.chunk(2)[rank] for part in (query, key, value)])
    assert torch.equal(load(phi3, rank, 2).stage.model.get_parameter("model.layers.1.self_attn.qkv_proj.weight"), own)

    gpt2 = make_checkpoint("gpt2", tmp_path / "gpt2")
    tensors, model = stored(gpt2), load(gpt2, rank, 2).stage.model
    for leaf in ("weight", "bias"):  # Conv1D: outputs come last
        name = f"transformer.h.1.attn.c_attn.{leaf}"
        own = torch.cat([part.chunk(2, -1)[rank] for part in tensors[name].chunk(3, -1)], -1)
        assert torch.equal(model.get_parameter(name), own)

    mixtral = make_checkpoint("mixtral", tmp_path / "mixtral")
    tensors = stored(mixtral)
    experts = load(mixtral, rank, 2).stage.model.get_parameter("model.layers.1.mlp.experts.gate_up_proj")
    for expert in range(4):
        prefix = f"model.layers.1.block_sparse_moe.experts.{expert}"
        own = torch.cat([tensors[f"{prefix}.{name}.weight"].chunk(2)[rank] for name in ("w1", "w3")])
        assert torch.equal(experts[expert], own)


def test_ranks_differ_by_one_row_of_a_vocabulary_that_does_not_divide(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    sizes = []
    for rank in range(2):
        model = load(directory, rank, 2).stage.model
        sizes.append((model.lm_head.weight.shape[0], model.model.embed_tokens.weight.shape[0]))
    assert sizes == [(49, 49), (50, 50)]


def test_one_rank_is_left_uncut(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    stage = TransformersStage(read_config(directory), torch.float32, ShardSpec(0, 1, 0, 1, 0, 4))
    assert cut_stage(stage, LoneCommunicator()) == {}
    assert all(tensor.shape == stage.whole_state[name] for name, tensor in stage.model.state_dict().items())
