"""What an encoder's checkpoint says, without torch: its sizes, what its vectors or outputs are, its longest text."""

from dataclasses import dataclass, replace
from pathlib import Path

from serve_app.architectures.lookup import EMBEDDERS
from serve_app.architectures.record import EncoderFacts
from serve_app.checkpoints.checkpoint_json import damaged, read_json, shown
from serve_app.checkpoints.classifier_head import ClassifierHead, read_classifier_head
from serve_app.checkpoints.embedding_head import EmbeddingHead, HeadChoices, check_modules, plain_head, read_head
from serve_app.checkpoints.model_spec import ModelSpec, read_checkpoint
from serve_app.checkpoints.prompts import Prompts, read_prompts
from serve_app.checkpoints.rank_sizes import tensor_problems
from serve_app.checkpoints.sentence_modules import (
    read_model_kind,
    read_module_entries,
    read_sentence_config,
    read_transformer_options,
    transformer_directory,
)
from serve_app.errors import ConfigError

SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_EMBEDDER = "SentenceTransformer"  # model_type of an embedder's config_sentence_transformers.json
_TOKENIZER_CONFIG = "tokenizer_config.json"
_TYPED_TOKENIZERS = ("BertTokenizer", "DebertaTokenizer", "DebertaV2Tokenizer", "ElectraTokenizer")
_TASKS = {"embed": "feature-extraction", "classify": "sequence-classification", "score": "sequence-classification"}
_PLAIN_OUTPUTS = ("last_hidden_state", ["last_hidden_state"], "logits", ["logits"])
_NEUTRAL_OPTIONS = (  # of a Transformer module: read elsewhere, or without effect on what comes out
    "do_lower_case",
    "max_seq_length",
    "model_args",
    "model_kwargs",
    "module_output_name",
    "processor_kwargs",
    "tokenizer_args",
    "transformer_task",
    "unpad_inputs",
)


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """One encoder's checkpoint, for one task: one of embedding and classifier is there."""

    spec: ModelSpec
    task: str
    max_tokens: int  # of one text, special tokens included
    has_token_types: bool
    is_causal: bool  # a token sees none that comes after it
    prompts: Prompts
    similarity: str  # of two vectors: cosine, dot, euclidean or manhattan
    embedding: EmbeddingHead | None
    classifier: ClassifierHead | None
    trained_sizes: tuple[int, ...] = ()  # that vectors may be cut to, as the files say; empty: they say nothing

    @property
    def has_prompt_lengths(self) -> bool:
        """Whether a text's vector leaves out the prompt before it."""
        has_prompts = any(self.prompts.texts.values())
        return (
            has_prompts and any(not one.includes_prompt for one in self.embedding.poolings) if self.embedding else False
        )

    @property
    def labels(self) -> tuple[str, ...]:
        """By output index; empty: it has none."""
        return self.classifier.labels if self.classifier is not None else ()


@dataclass(frozen=True, slots=True)
class EncoderChoices:
    """What a Serve file says of an encoder; None: as the checkpoint says."""

    task: str
    max_model_len: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    is_multi_label: bool | None = None
    default_prompt_name: str | None = None  # empty: none


def read_encoder_spec(choices: EncoderChoices, source_dir: Path) -> EncoderSpec:
    """The encoder in `source_dir` as it is to be served. Raises ConfigError."""
    if choices.task == "embed":
        _check_embedder(source_dir)
    directory = transformer_directory(source_dir)
    spec = replace(read_checkpoint(directory, EMBEDDERS), is_tied=False)
    config = read_json(directory / "config.json")
    _check_options(directory, choices.task)
    embedding, classifier = None, None
    if choices.task == "embed":
        embedding = _read_embedding(source_dir, spec, config, choices)
    else:
        classifier = read_classifier_head(spec, choices.task, config, source_dir, choices.is_multi_label)
    return EncoderSpec(
        spec=spec,
        task=choices.task,
        max_tokens=choices.max_model_len or _max_tokens(spec),
        has_token_types=_has_token_types(spec, config),
        is_causal=_is_causal(spec, config),
        prompts=read_prompts(source_dir, choices.task, choices.default_prompt_name),
        similarity="cosine" if embedding is None else _similarity(source_dir),
        embedding=embedding,
        classifier=classifier,
        trained_sizes=() if embedding is None else _trained_sizes(directory, config, embedding.size),
    )


def check_encoder(encoder: EncoderSpec, tensor: int, max_model_len: int | None) -> list[str]:
    """Why this encoder cannot be split over `tensor` ranks, or take texts of `max_model_len` tokens."""
    spec = encoder.spec
    longest = _position_limit(spec)
    if max_model_len is not None and max_model_len > longest:
        return [f"max_model_len={max_model_len} is above the {longest} positions of the model; use at most that"]
    return tensor_problems(spec, tensor)


def _read_embedding(
    source_dir: Path, spec: ModelSpec, config: dict[str, object], choices: EncoderChoices
) -> EmbeddingHead:
    head_choices = HeadChoices(choices.pooling, choices.normalize)
    if read_model_kind(source_dir) == _EMBEDDER and read_module_entries(source_dir):
        return read_head(source_dir, spec.hidden_size, head_choices)
    is_generator = spec.architectures[:1] and spec.architectures[0].endswith("ForCausalLM")
    pooling = "last" if is_generator and _is_causal(spec, config) else "mean"
    return plain_head(pooling, spec.hidden_size, head_choices)


def _check_embedder(source_dir: Path) -> None:
    kind = read_model_kind(source_dir)
    if kind == _EMBEDDER:
        check_modules(source_dir)
    elif kind != "CrossEncoder":
        raise ConfigError(
            f"source={source_dir} is a {kind} of sentence-transformers, which is not served; give an embedder"
        )


def _trained_sizes(directory: Path, config: dict[str, object], size: int) -> tuple[int, ...]:
    """Of Matryoshka vectors (arXiv:2205.13147) of at most `size` numbers, the smallest first."""
    sizes = config.get("matryoshka_dimensions")
    if sizes is None:
        return ()
    if not isinstance(sizes, list) or not all(type(one) is int and one > 0 for one in sizes):
        raise ConfigError(f"{directory}/config.json: matryoshka_dimensions={shown(sizes)} is not a list of sizes")
    return tuple(sorted(one for one in sizes if one <= size))


def _similarity(source_dir: Path) -> str:
    name = read_sentence_config(source_dir).get("similarity_fn_name")
    if name is None or read_model_kind(source_dir) != _EMBEDDER:
        return "cosine"
    if name not in SIMILARITIES:
        raise ConfigError(
            f"source={source_dir}: similarity_fn_name={shown(name)} is not served; {', '.join(SIMILARITIES)} are"
        )
    return str(name)


def _facts_of(spec: ModelSpec) -> EncoderFacts:
    facts = EMBEDDERS[spec.model_type].encoder
    assert facts is not None
    return facts


def _check_options(directory: Path, task: str) -> None:
    """Refuse what the options of a Transformer module ask for and is not done."""
    path, options = read_transformer_options(directory)
    wanted = options.get("transformer_task", _TASKS[task])
    if wanted != _TASKS[task]:
        raise ConfigError(f"{path}: transformer_task={shown(wanted)} is not served as task={task}; choose another task")
    for key, value in options.items():
        if key == "modality_config":
            _check_modality(path, value)
        elif key not in _NEUTRAL_OPTIONS and value not in (None, {}):
            raise ConfigError(f"{path}: {key}={shown(value)} is not served; remove it if the model works without")


def _check_modality(path: Path, value: object) -> None:
    text = value.get("text") if isinstance(value, dict) else None
    output = text.get("method_output_name") if isinstance(text, dict) else None
    is_plain = isinstance(text, dict) and text.get("method", "forward") == "forward"
    if not isinstance(value, dict) or set(value) != {"text"} or not is_plain or output not in _PLAIN_OUTPUTS:
        raise ConfigError(
            f"{path}: modality_config={shown(value)} is not served; a model that takes plain text is, by forward and "
            "last_hidden_state"
        )


def _is_causal(spec: ModelSpec, config: dict[str, object]) -> bool:
    if _facts_of(spec).is_causal:
        return config.get("is_causal") is not False and config.get("use_bidirectional_attention") is not True
    if config.get("is_decoder") is True:
        raise ConfigError(f"source={spec.source_dir}: is_decoder=true in config.json is not served; give an encoder")
    return False


def _position_limit(spec: ModelSpec) -> int:
    """Tokens of the longest text that the position embeddings hold."""
    longest = spec.max_position_embeddings or 512
    if not _facts_of(spec).has_positions_after_padding:
        return longest
    padding = read_json(spec.source_dir / "config.json").get("pad_token_id", 1)
    return longest - (padding if isinstance(padding, int) else 1) - 1  # positions begin after the padding's


def _max_tokens(spec: ModelSpec) -> int:
    """The first of these that is there, as sentence-transformers has it, as far as positions go."""
    path, options = read_transformer_options(spec.source_dir)
    limits: list[object] = []
    for key in ("processor_kwargs", "tokenizer_args"):
        section = options.get(key)
        limits.append(section.get("model_max_length") if isinstance(section, dict) else None)
    limits.append(options.get("max_seq_length"))
    tokenizer = _read_tokenizer_config(spec.source_dir)
    limits.append(tokenizer.get("model_max_length", tokenizer.get("max_len")))
    limit = next((one for one in limits if one is not None), None)
    if limit is not None and (not isinstance(limit, int | float) or isinstance(limit, bool) or limit < 1):
        raise damaged(path, f"a longest text of {shown(limit)} tokens")
    longest = min(_position_limit(spec), spec.unstretched_positions or _position_limit(spec))
    return longest if limit is None else int(min(limit, longest))


def _read_tokenizer_config(directory: Path) -> dict[str, object]:
    path = directory / _TOKENIZER_CONFIG
    return read_json(path) if path.is_file() else {}


def _has_token_types(spec: ModelSpec, config: dict[str, object]) -> bool:
    """Whether the model knows more than one type, and its tokenizer gives them."""
    default = EMBEDDERS[spec.model_type].sizes.num_token_types
    number = config.get("type_vocab_size", default)
    if default is None or not isinstance(number, int) or number < 2:
        return False
    tokenizer = _read_tokenizer_config(spec.source_dir)
    names, kind = tokenizer.get("model_input_names"), tokenizer.get("tokenizer_class")
    if isinstance(names, list):
        return "token_type_ids" in names
    return not isinstance(kind, str) or kind.removesuffix("Fast") in _TYPED_TOKENIZERS
