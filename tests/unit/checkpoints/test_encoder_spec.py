"""What an encoder's files say, and which of them are refused."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from serve_app.checkpoints.classifier_head import ClassifierHead
from serve_app.checkpoints.embedding_head import DenseStep, EmbeddingHead, NormalizeStep, PoolStep
from serve_app.checkpoints.encoder_spec import EncoderChoices, EncoderSpec, check_encoder, read_encoder_spec
from serve_app.errors import ConfigError
from tests.encoder_checkpoints import make_encoder

EMBED = EncoderChoices("embed")


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder("bert", tmp_path_factory.mktemp("bert"), is_classifier=False)


@pytest.fixture
def modules(embedder: Path, tmp_path: Path) -> Path:
    """A directory with the checkpoint, to write modules.json into."""
    for path in embedder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


def write_modules(directory: Path, *modules: tuple[str, dict[str, Any] | None]) -> None:
    entries = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (kind, config) in enumerate(modules, 1):
        name = f"{index}_{kind}"
        entries.append({"path": name, "type": f"sentence_transformers.models.{kind}"})
        (directory / name).mkdir()
        if config is not None:
            (directory / name / "config.json").write_text(json.dumps(config))
    (directory / "modules.json").write_text(json.dumps(entries))


def steps_of(spec: EncoderSpec) -> tuple[object, ...]:
    assert spec.embedding is not None
    return spec.embedding.steps


def write_options(directory: Path, **options: Any) -> None:
    (directory / "sentence_bert_config.json").write_text(json.dumps(options))


def test_a_plain_encoder_is_pooled_by_the_mean_and_not_normalised(embedder: Path) -> None:
    spec = read_encoder_spec(EMBED, embedder)
    assert (spec.embedding, spec.max_tokens) == (EmbeddingHead((PoolStep(("mean",)),), 32), 64)
    assert spec.has_token_types


def test_the_yaml_goes_before_the_files(modules: Path) -> None:
    write_modules(modules, ("Pooling", {"pooling_mode_mean_tokens": True}), ("Normalize", None))
    spec = read_encoder_spec(EncoderChoices("embed", pooling="cls", normalize=False, max_model_len=7), modules)
    assert (steps_of(spec), spec.max_tokens) == ((PoolStep(("cls",)),), 7)
    other = read_encoder_spec(EncoderChoices("embed", normalize=True), modules)
    assert steps_of(other) == (PoolStep(("mean",)), NormalizeStep())


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_sentence_transformers_modules_are_followed(modules: Path, config: dict[str, Any], pooling: str) -> None:
    write_modules(modules, ("Pooling", config), ("Normalize", None))
    write_options(modules, max_seq_length=20)
    spec = read_encoder_spec(EMBED, modules)
    assert (steps_of(spec), spec.max_tokens) == ((PoolStep((pooling,)), NormalizeStep()), 20)


def test_a_projection_changes_the_embeddings_size(modules: Path) -> None:
    dense = {"activation_function": "torch.nn.modules.activation.Tanh"}
    write_modules(modules, ("Pooling", {"pooling_mode_mean_tokens": True}), ("Dense", dense))
    save_file({"linear.weight": torch.zeros(5, 32)}, str(modules / "2_Dense" / "model.safetensors"))
    spec = read_encoder_spec(EMBED, modules)
    assert steps_of(spec)[1:] == (DenseStep(modules / "2_Dense", 32, 5, False, "Tanh"),)
    assert spec.embedding is not None
    assert spec.embedding.size == 5


@pytest.mark.parametrize(
    ("modules_given", "message"),
    [
        ([("Pooling", {"pooling_mode": "median"})], "pooling_mode='median' is not served; cls, max, mean,"),
        ([("Pooling", None)], "names Pooling in 1_Pooling, where no config.json is; copy the whole directory"),
        ([("WordWeights", {})], "names a module 'WordWeights', which is not served"),
        ([("Normalize", None)], "names no Pooling"),
        ([("Dense", {"activation_function": "torch.nn.PReLU"})], "activation_function='torch.nn.PReLU' is not served"),
        ([("Dense", {"activation_function": "my.code.Tanh"})], "activation_function='my.code.Tanh' is not served"),
        ([("Dense", {"activation_function": "torch.nn.Tanh"})], "has no model.safetensors"),
    ],
)
def test_modules_that_are_not_served_are_named(
    modules: Path, modules_given: list[tuple[str, dict[str, Any]]], message: str
) -> None:
    write_modules(modules, *modules_given)
    with pytest.raises(ConfigError, match=message):
        read_encoder_spec(EMBED, modules)


def test_code_of_a_models_own_and_paths_out_of_it_are_refused(modules: Path) -> None:
    write_modules(modules, ("Pooling", {}))
    entries = json.loads((modules / "modules.json").read_text())
    for changes, message in (
        ({"type": "modeling.Pooling"}, "'modeling.Pooling', which is code of its own"),
        ({"path": "../1_Pooling"}, "leaves the model's directory"),
        ({"path": "/1_Pooling"}, "leaves the model's directory"),
    ):
        (modules / "modules.json").write_text(json.dumps([entries[0], entries[1] | changes]))
        with pytest.raises(ConfigError, match=message):
            read_encoder_spec(EMBED, modules)


def test_a_model_that_is_no_transformer_is_refused_before_its_files_are_looked_for(tmp_path: Path) -> None:
    for kind, message in (
        (
            "StaticEmbedding",
            "names a module 'StaticEmbedding', which is not served; use a model of Transformer, Pooling",
        ),
        ("Pooling", "Pooling stands in place 0; begin with one Transformer"),
    ):
        entries = [{"type": f"sentence_transformers.models.{kind}", "path": ""}]
        (tmp_path / "modules.json").write_text(json.dumps(entries))
        with pytest.raises(ConfigError, match=message):
            read_encoder_spec(EMBED, tmp_path)


def test_vectors_of_another_size_than_a_module_takes_are_refused(modules: Path) -> None:
    write_modules(modules, ("Pooling", {"pooling_mode": ["cls", "mean"]}), ("Dense", {}))
    save_file({"linear.weight": torch.zeros(5, 32)}, str(modules / "2_Dense" / "model.safetensors"))
    with pytest.raises(ConfigError, match="2_Dense takes vectors of 32, and gets those of 64"):
        read_encoder_spec(EMBED, modules)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transformer_task": "fill-mask"}, "transformer_task='fill-mask' is not served as task=embed"),
        ({"query_length": 8}, "query_length=8 is not served"),
        ({"config_kwargs": {"num_hidden_layers": 2}}, "config_kwargs={'num_hidden_layers': 2} is not served"),
        ({"modality_config": {"text": {}, "message": {}}}, "modality_config=.* is not served"),
        ({"max_seq_length": "long"}, "a longest text of 'long' tokens"),
    ],
)
def test_options_that_are_not_done_are_named(modules: Path, options: dict[str, Any], message: str) -> None:
    write_options(modules, **options)
    with pytest.raises(ConfigError, match=message):
        read_encoder_spec(EMBED, modules)


def test_a_limit_of_the_options_goes_before_the_tokenizers(modules: Path) -> None:
    (modules / "tokenizer_config.json").write_text('{"model_max_length": 16}')
    assert read_encoder_spec(EMBED, modules).max_tokens == 16
    write_options(modules, max_seq_length=40)
    assert read_encoder_spec(EMBED, modules).max_tokens == 40
    write_options(modules, max_seq_length=400)
    assert read_encoder_spec(EMBED, modules).max_tokens == 64  # positions end there


def write_sentence_config(directory: Path, **values: Any) -> None:
    (directory / "config_sentence_transformers.json").write_text(json.dumps(values))


def test_prompts_are_read_and_the_yaml_chooses_among_them(modules: Path) -> None:
    write_modules(modules, ("Pooling", {}))
    write_sentence_config(modules, prompts={"query": "q: ", "document": None}, default_prompt_name="query")
    prompts = read_encoder_spec(EMBED, modules).prompts
    assert (prompts.texts, prompts.default_name) == ({"query": "q: ", "document": ""}, "query")
    assert read_encoder_spec(EncoderChoices("embed", default_prompt_name=""), modules).prompts.default_name is None
    with pytest.raises(ConfigError, match=r"default_prompt_name='x' is not a prompt .*; use one of document, query"):
        read_encoder_spec(EncoderChoices("embed", default_prompt_name="x"), modules)


def test_the_files_say_how_vectors_are_compared(modules: Path) -> None:
    write_modules(modules, ("Pooling", {}))
    assert read_encoder_spec(EMBED, modules).similarity == "cosine"
    write_sentence_config(modules, similarity_fn_name="dot")
    assert read_encoder_spec(EMBED, modules).similarity == "dot"
    write_sentence_config(modules, similarity_fn_name="maxsim")
    with pytest.raises(ConfigError, match="similarity_fn_name='maxsim' is not served; cosine, dot,"):
        read_encoder_spec(EMBED, modules)


def test_other_models_of_sentence_transformers_are_refused(modules: Path) -> None:
    write_modules(modules, ("Pooling", {}))
    write_sentence_config(modules, model_type="SparseEncoder")
    with pytest.raises(ConfigError, match="is a SparseEncoder of sentence-transformers, which is not served"):
        read_encoder_spec(EMBED, modules)


def test_an_encoder_that_would_attend_causally_is_refused(tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path, is_decoder=True)
    with pytest.raises(ConfigError, match=r"is_decoder=true in config\.json is not served"):
        read_encoder_spec(EMBED, directory)


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"tokenizer_class": "BertTokenizerFast"}, True),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, False),
        ({"tokenizer_class": "BertTokenizer", "model_input_names": ["input_ids", "attention_mask"]}, False),
        ({"tokenizer_class": "TokenizersBackend", "model_input_names": ["input_ids", "token_type_ids"]}, True),
    ],
)
def test_token_types_are_what_the_tokenizer_gives(modules: Path, tokenizer: dict[str, Any], expected: bool) -> None:
    (modules / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    assert read_encoder_spec(EMBED, modules).has_token_types is expected


def classifier_of(spec: EncoderSpec) -> ClassifierHead:
    assert spec.classifier is not None
    return spec.classifier


def test_labels_and_kinds_of_classifiers_are_read(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"problem_type": "multi_label_classification", "id2label": {0: "a", 1: "b", 2: "c"}}
    directory = make_encoder("roberta", tmp_path, is_classifier=True, **changes)
    spec = read_encoder_spec(EncoderChoices("classify"), directory)
    assert (classifier_of(spec), spec.max_tokens) == (ClassifierHead(3, ("a", "b", "c"), True, "softmax"), 62)
    single = read_encoder_spec(EncoderChoices("classify", is_multi_label=False), directory)
    assert not classifier_of(single).is_multi_label
    with pytest.raises(ConfigError, match="task=score needs a cross-encoder with one output"):
        read_encoder_spec(EncoderChoices("score"), directory)


_IDENTITY, _TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "sigmoid"),
        ({"problem_type": "regression"}, "identity"),
        ({"sentence_transformers": {"activation_fn": _IDENTITY}}, "identity"),
        ({"sentence_transformers": {"activation_fn": _TANH, "version": "5"}}, "tanh"),
        ({"sbert_ce_default_activation_function": _IDENTITY}, "identity"),
        ({"sbert_ce_default_activation_function": _TANH, "sentence_transformers": {"version": "5"}}, "tanh"),
        ({"problem_type": "regression", "sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}}, "sigmoid"),
        ({"problem_type": "regression", "num_labels": 3}, "identity"),
        ({"num_labels": 3, "sbert_ce_default_activation_function": _IDENTITY}, "softmax"),
    ],
)
def test_a_model_says_what_its_numbers_mean(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    directory = make_encoder("bert", tmp_path, is_classifier=True, **{"num_labels": 1, **changes})
    task = "classify" if "num_labels" in changes else "score"
    assert classifier_of(read_encoder_spec(EncoderChoices(task), directory)).activation == expected


def test_a_cross_encoder_saved_with_modules_is_read(tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path, is_classifier=True, num_labels=1)
    write_modules(directory)
    values = {"prompts": {"find": "find: "}, "default_prompt_name": "find", "activation_fn": _TANH}
    write_sentence_config(directory, model_type="CrossEncoder", **values)
    spec = read_encoder_spec(EncoderChoices("score"), directory)
    assert (classifier_of(spec).activation, spec.prompts.default_name) == ("tanh", "find")
    write_sentence_config(directory, model_type="CrossEncoder", activation_fn="torch.nn.ReLU")
    with pytest.raises(ConfigError, match=r"activation_fn='torch\.nn\.ReLU' is not served; torch\.nn's Identity,"):
        read_encoder_spec(EncoderChoices("score"), directory)
    write_sentence_config(directory, model_type="CrossEncoder")
    entries = json.loads((directory / "modules.json").read_text())
    entries.append({"path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.modules.LogitScore"})
    (directory / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ConfigError, match="a module 'LogitScore', which is not served for task=score"):
        read_encoder_spec(EncoderChoices("score"), directory)


def change_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_label_that_stands_twice_keeps_both_numbers_apart(tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path, is_classifier=True)
    change_config(directory, id2label={"0": "a", "1": "b", "2": "a"})
    assert read_encoder_spec(EncoderChoices("classify"), directory).labels == ("a#0", "b", "a#2")
    change_config(directory, id2label={"0": "a", "1": "a#2", "2": "a"})
    assert read_encoder_spec(EncoderChoices("classify"), directory).labels == ("a#0", "a#2#1", "a#2")
    change_config(directory, id2label={"0": "a", "1": "b"})
    with pytest.raises(ConfigError, match="id2label names 2 labels, and the classifier has 3 outputs"):
        read_encoder_spec(EncoderChoices("classify"), directory)


def test_a_head_of_another_kind_is_not_taken_for_a_classifier(tmp_path: Path) -> None:
    directory = make_encoder("bert", tmp_path, is_classifier=True)
    change_config(directory, architectures=["BertForTokenClassification"])
    with pytest.raises(ConfigError, match=r"needs a classifier, but .* is a BertForTokenClassification"):
        read_encoder_spec(EncoderChoices("classify"), directory)


def test_a_task_without_its_head_and_a_split_that_cannot_be_are_refused(embedder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="task=classify needs a classifier"):
        read_encoder_spec(EncoderChoices("classify"), embedder)
    spec = read_encoder_spec(EMBED, embedder)
    assert check_encoder(spec, 2, None) == []
    assert "does not divide num_heads=4" in check_encoder(spec, 3, None)[0]
    assert "max_model_len=65 is above the 64 positions" in check_encoder(spec, 1, 65)[0]
    distilbert = read_encoder_spec(EMBED, make_encoder("distilbert", tmp_path, is_classifier=False))
    assert "cannot cut model_type=distilbert; use parallel.pipeline" in check_encoder(distilbert, 2, None)[0]


def test_another_kind_of_model_is_refused_with_the_reason(embedder: Path, tmp_path: Path) -> None:
    config = json.loads((embedder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    (tmp_path / "model.safetensors").symlink_to(embedder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"'gpt2' in config\.json is not supported: it generates, and does not embed"):
        read_encoder_spec(EMBED, tmp_path)


@pytest.mark.parametrize(("given", "sizes"), [([32, 16, 64], (16, 32)), ([], ()), (None, ())])
def test_sizes_that_vectors_were_trained_for_are_read(
    embedder: Path, tmp_path: Path, given: object, sizes: tuple[int, ...]
) -> None:
    directory = copytree(embedder, tmp_path / "own")
    change_config(directory, matryoshka_dimensions=given)
    assert read_encoder_spec(EMBED, directory).trained_sizes == sizes


@pytest.mark.parametrize("given", [256, [0], ["a"], [True]])
def test_sizes_that_are_none_are_refused(embedder: Path, tmp_path: Path, given: object) -> None:
    directory = copytree(embedder, tmp_path / "own")
    change_config(directory, matryoshka_dimensions=given)
    with pytest.raises(ConfigError, match="matryoshka_dimensions"):
        read_encoder_spec(EMBED, directory)
