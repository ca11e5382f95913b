"""What a checkpoint's own files say about its answers: how a token is drawn, and which ones end them."""

from dataclasses import dataclass
from pathlib import Path

from serve_app.architectures.end_tokens import DEFAULT_END_TOKENS
from serve_app.checkpoints.checkpoint_json import read_json, shown
from serve_app.errors import ConfigError
from serve_app.types.generation import SamplingDefaults

_FILE = "generation_config.json"
_NEUTRAL: dict[str, object] = {  # keys that change an answer in ways of transformers that are not ours; None always is
    "do_sample": True,
    "num_beams": 1,
    "num_beam_groups": 1,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1,
    "diversity_penalty": 0,
    "typical_p": 1,
    "epsilon_cutoff": 0,
    "eta_cutoff": 0,
    "top_h": 1,
    "penalty_alpha": 0,
    "guidance_scale": 1,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": [],
    "begin_suppress_tokens": [],
    "bad_words_ids": [],
    "sequence_bias": {},
    "exponential_decay_length_penalty": None,
    "stop_strings": [],
    "watermarking_config": None,
    "dola_layers": None,
}


@dataclass(frozen=True, slots=True)
class EndTokens:
    """The end-of-sequence tokens that files name."""

    token_ids: tuple[int, ...]  # of generation_config.json and config.json together
    class_default: tuple[int, ...]  # of the config's class: what transformers takes where no file says anything
    outside: tuple[str, ...]  # those that cannot be drawn, as messages name them


def read_end_tokens(source_dir: Path, vocab_size: int) -> EndTokens:
    """Those of a model of `vocab_size` tokens. Raises ConfigError for what is not a token id."""
    known: dict[int, None] = {}
    outside: list[str] = []
    config: dict[str, object] = {}
    for name in (_FILE, "config.json"):
        path = source_dir / name
        config = read_json(path) if path.is_file() else {}
        for token_id in _token_ids(path, config.get("eos_token_id")):
            if 0 <= token_id < vocab_size:
                known[token_id] = None
            else:
                outside.append(f"{name}: eos_token_id={token_id}")
    is_silent = "eos_token_id" not in config and not (source_dir / _FILE).is_file()
    default = DEFAULT_END_TOKENS.get(str(config.get("model_type")), ()) if is_silent else ()
    return EndTokens(tuple(known), tuple(one for one in default if one < vocab_size), tuple(outside))


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What generation_config.json says of drawing tokens."""

    sampling: SamplingDefaults
    not_done: tuple[str, ...]  # what it asks for beside, as key=value


def read_generation_defaults(source_dir: Path) -> GenerationDefaults:
    """As vLLM takes them. Raises ConfigError for a value outside its range."""
    path = source_dir / _FILE
    values = read_json(path) if path.is_file() else {}
    is_greedy = values.get("do_sample") is False  # then they are what transformers would not use either

    def number(key: str, low: float, high: float) -> float | None:
        value = values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ConfigError(
                f"{path}: {key}={shown(value)} is not a number from {low:g} to {high:g}; correct it, or set "
                "generation_config: off",
                field="source",
            )
        return float(value)

    def count(key: str) -> int | None:
        value = number(key, -1, 2**31 - 1)
        return None if value is None else int(value)

    max_tokens = count("max_new_tokens")
    sampling = SamplingDefaults(
        temperature=None if is_greedy else number("temperature", 0, 2),
        top_k=None if is_greedy else count("top_k"),
        top_p=None if is_greedy else number("top_p", 0, 1),
        min_p=None if is_greedy else number("min_p", 0, 1),
        repetition_penalty=number("repetition_penalty", 0.01, 2),
        max_tokens=max_tokens if max_tokens is not None and max_tokens > 0 else None,
    )
    not_done = [f"{key}={shown(values[key])}" for key in _NEUTRAL if values.get(key) not in (None, _NEUTRAL[key])]
    return GenerationDefaults(sampling, tuple(not_done))


def _token_ids(path: Path, found: object) -> list[int]:
    """The ids of a key that holds one, several or none."""
    if found is None:
        return []
    given = found if isinstance(found, list) else [found]
    token_ids = [one for one in given if type(one) is int]
    if len(token_ids) != len(given):
        raise ConfigError(
            f"{path}: eos_token_id={shown(found)} is neither a token id nor a list of them", field="source"
        )
    return token_ids
