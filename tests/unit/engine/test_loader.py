"""Loaded shards hold what the checkpoint says, and a checkpoint that is not whole is refused by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from serve_app.architectures.rank_shares import even_range
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.errors import ConfigError
from serve_app.models.transformers_model import read_config
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.types.shards import ShardSpec
from tests.checkpoints import ARCHITECTURES, make_checkpoint
from tests.plain_driver import WHOLE

SPLITS = [
    [WHOLE],
    [ShardSpec(stage, 2, rank, 2, 2 * stage, 2 * stage + 2) for stage in range(2) for rank in range(2)],
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tensors are tiny


def load(directory: Path, shard: ShardSpec = WHOLE, dtype: str = "auto") -> LoadedStage:
    return load_stage(directory, dtype, shard, LoneCommunicator(), torch.device("cpu"))


def stored(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")


def rewrite(directory: Path, tensors: dict[str, Tensor]) -> None:
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_whole_model_has_the_parameters_and_buffers_that_transformers_gives_it(tmp_path: Path, name: str) -> None:
    directory = make_checkpoint(name, tmp_path)
    expected = AutoModelForCausalLM.from_pretrained(str(directory), dtype=torch.float32)
    model = load(directory).stage.model
    for kind in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, kind)()), dict(getattr(expected, kind)())
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
        assert not any(tensor.is_meta for tensor in ours.values())


@pytest.mark.parametrize(
    ("name", "frequencies"),
    [
        ("llama", {"model.rotary_emb.inv_freq"}),
        ("gemma2", {"model.rotary_emb.inv_freq"}),
        ("gemma3", {f"model.rotary_emb.{kind}_attention_inv_freq" for kind in ("full", "sliding")}),
    ],
)
def test_a_later_stage_has_the_frequencies_of_the_whole_model(tmp_path: Path, name: str, frequencies: set[str]) -> None:
    directory = make_checkpoint(name, tmp_path)
    expected = dict(AutoModelForCausalLM.from_pretrained(str(directory)).named_buffers())
    ours = dict(load(directory, ShardSpec(1, 2, 1, 2, 2, 4)).stage.model.named_buffers())
    assert ours.keys() >= frequencies
    assert [key for key in ours if not torch.equal(ours[key], expected[key])] == []


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen2", "mixtral", "gpt2", "phi3", "opt"])
def test_the_shards_of_a_split_hold_all_of_the_model(tmp_path: Path, name: str) -> None:
    directory = make_checkpoint(name, tmp_path)
    whole = load(directory)
    shards = [load(directory, shard) for shard in SPLITS[1]]
    held = sum(shard.parameter_bytes for shard in shards)
    is_tied = whole.stage.config.tie_word_embeddings
    head_bytes = whole.stage.model.get_output_embeddings().weight.nbytes if is_tied else 0
    doubled = sum(  # vectors and routers, that every rank needs
        parameter.nbytes
        for key, parameter in whole.stage.model.named_parameters()
        if parameter.dim() == 1 or ".gate." in key or "wpe" in key or "embed_positions" in key or "project" in key
    )
    assert whole.parameter_bytes + head_bytes <= held <= whole.parameter_bytes + head_bytes + doubled


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_tied_head_shares_the_embeddings_memory_where_both_are_on_one_shard(tmp_path: Path, num_ranks: int) -> None:
    directory = make_checkpoint("llama_tied", tmp_path)
    loaded = load(directory, ShardSpec(0, 1, num_ranks - 1, num_ranks, 0, 4))
    model = loaded.stage.model
    assert isinstance(model, LlamaForCausalLM)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    untied = load(make_checkpoint("llama", tmp_path / "untied"), ShardSpec(0, 1, num_ranks - 1, num_ranks, 0, 4))
    assert untied.parameter_bytes - loaded.parameter_bytes == model.lm_head.weight.nbytes


def test_an_untied_head_has_memory_of_its_own(tmp_path: Path) -> None:
    model = load(make_checkpoint("llama", tmp_path)).stage.model
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


@pytest.mark.parametrize("shard", SPLITS[0] + SPLITS[1][1:3], ids=lambda shard: f"shard {shard.index}")
def test_several_files_with_an_index_give_what_one_file_gives(tmp_path: Path, shard: ShardSpec) -> None:
    one = make_checkpoint("mixtral", tmp_path / "one")
    many = make_checkpoint("mixtral", tmp_path / "many", max_shard_size="30KB")
    assert len(list(many.glob("model-*.safetensors"))) >= 3
    assert not (many / "model.safetensors").exists()
    ours, expected = (dict(load(directory, shard).stage.model.named_parameters()) for directory in (many, one))
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[key], expected[key]) for key in ours)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt2"])
@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_tensors_are_converted_while_they_are_read(
    tmp_path: Path, name: str, dtype: str, expected: torch.dtype
) -> None:
    directory = make_checkpoint(name, tmp_path)
    as_stored = dict(load(directory).stage.model.named_parameters())
    loaded = load(directory, dtype=dtype)
    for key, parameter in loaded.stage.model.named_parameters():
        assert torch.equal(parameter, as_stored[key].to(expected)), key
    assert loaded.parameter_bytes * 2 == sum(parameter.nbytes for parameter in as_stored.values())


def test_frequencies_stay_exact_in_a_model_of_low_precision(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    exact, rounded = (load(directory, dtype=dtype).stage.base.rotary_emb.inv_freq for dtype in ("float32", "bfloat16"))
    assert rounded.dtype == torch.float32
    assert torch.equal(exact, rounded)


@pytest.mark.parametrize("shard", [WHOLE, ShardSpec(0, 2, 1, 2, 0, 2)], ids=["whole", "a shard"])
def test_a_missing_tensor_is_named_with_its_directory(tmp_path: Path, shard: ShardSpec) -> None:
    directory = make_checkpoint("llama", tmp_path)
    tensors = stored(directory)
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    rewrite(directory, tensors)
    with pytest.raises(
        ConfigError, match=r"source=.* no tensor for parameter model\.layers\.1\.self_attn\.q_proj"
    ) as error:
        load(directory, shard)
    assert str(directory) in str(error.value)


def test_a_tensor_that_only_other_stages_need_is_not_missed(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    tensors = stored(directory)
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    rewrite(directory, tensors)
    assert load(directory, ShardSpec(1, 2, 0, 1, 2, 4)).parameter_bytes > 0


@pytest.mark.parametrize("rank", [0, 1])
def test_a_tensor_of_another_shape_is_named_with_both_shapes_and_its_file(tmp_path: Path, rank: int) -> None:
    directory = make_checkpoint("llama", tmp_path)
    tensors = stored(directory)
    tensors["model.layers.2.mlp.up_proj.weight"] = torch.zeros(128, 32)
    rewrite(directory, tensors)
    message = r"model\.layers\.2\.mlp\.up_proj\.weight has shape \[64, 32\] by config\.json, but \[128, 32\] in .*"
    with pytest.raises(ConfigError, match=message + r"model\.safetensors"):
        load(directory, ShardSpec(0, 1, rank, 2, 0, 4))


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["experts.3.w1", "experts.3.w2", "experts.3.w3"], r"experts \[3\] are missing"),
        (["experts.2.w3"], "elements in 4 experts"),
        ([f"experts.{expert}.w3" for expert in range(4)], "elements in 4 experts"),
        (["experts.0.w1", "experts.1.w1", "experts.2.w3", "experts.3.w3"], "elements in 4 experts"),
    ],
    ids=["one expert", "half of one", "half of all", "half of each"],
)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_missing_expert_is_named_with_its_parameter_and_file(
    tmp_path: Path, num_ranks: int, missing: list[str], message: str
) -> None:
    directory = make_checkpoint("mixtral", tmp_path)
    tensors = stored(directory)
    for name in missing:
        del tensors[f"model.layers.1.block_sparse_moe.{name}.weight"]
    rewrite(directory, tensors)
    with pytest.raises(ConfigError, match=message) as error:
        load(directory, ShardSpec(0, 1, 0, num_ranks, 0, 4))
    assert "parameter model.layers.1.mlp.experts." in str(error.value)
    assert str(directory / "model.safetensors") in str(error.value)


def test_an_expert_of_another_shape_is_refused(tmp_path: Path) -> None:
    directory = make_checkpoint("mixtral", tmp_path)
    tensors = stored(directory)
    name = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    tensors[name] = tensors[name].t().contiguous()  # as many elements
    rewrite(directory, tensors)
    with pytest.raises(ConfigError, match=r"model\.layers\.0\.mlp\.experts\.gate_up_proj has shape"):
        load(directory)


def test_the_vocabulary_is_read_in_uneven_parts(tmp_path: Path) -> None:
    directory = make_checkpoint("llama", tmp_path)
    head = stored(directory)["lm_head.weight"]
    for rank in range(2):
        start, end = even_range(read_config(directory).vocab_size, rank, 2)
        assert torch.equal(load(directory, ShardSpec(0, 1, rank, 2, 0, 4)).stage.model.lm_head.weight, head[start:end])
