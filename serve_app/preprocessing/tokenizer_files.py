"""What a model directory says about its tokenizer: its class, its special and added tokens, its chat templates."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from serve_app.architectures.sentence_files import TRANSFORMER_CONFIGS
from serve_app.errors import ConfigError
from serve_app.preprocessing.tokenizer_class import default_tokens, tokenizer_class

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Paths and settings found in one model directory."""

    tokenizer_json: Path
    config: dict[str, Any]  # tokenizer_config.json
    class_name: str  # of transformers; empty: tokenizer.json is taken as it is
    special_tokens: dict[str, str]  # "bos_token" -> "<s>"; only those the model names
    added_tokens: list[AddedToken]  # in the order in which they get ids, where tokenizer.json lacks them
    added_ids: dict[str, int]  # the ids that the files have for some of them
    chat_templates: dict[str, str]  # by name: "default" and others
    is_lowercased: bool = False  # sentence-transformers makes text small before it is tokenized


def read_tokenizer_files(source_dir: str | Path) -> TokenizerFiles:
    """Everything beside the vocabulary itself. Raises ConfigError."""
    directory = Path(source_dir)
    tokenizer_json = directory / "tokenizer.json"
    if not tokenizer_json.is_file():
        raise ConfigError(
            f"source={directory}: no tokenizer.json there; save the fast tokenizer beside the weights "
            "(files of slow tokenizers, such as tokenizer.model or vocab.txt, are not read)",
            field="source",
        )
    path = directory / "tokenizer_config.json"
    config = _read_json(path)
    class_name = tokenizer_class(config, _read_json(directory / "config.json"))
    is_complete = "added_tokens_decoder" in config  # else it is of the time when other files stood beside it
    named = config if is_complete else {**config, **_read_json(directory / "special_tokens_map.json")}
    own = _own_tokens(named)
    given = {name: _token_string(named.get(name)) for name in SPECIAL_TOKEN_NAMES}
    given |= {name: _token_string(token) for name, token in own.items()}
    defaults = {name: token for name, token in default_tokens(class_name).items() if name not in named}
    special_tokens = defaults | {name: token for name, token in given.items() if token}
    unnamed = _extra_tokens(named)
    extra = [*own.values(), *(unnamed if isinstance(unnamed, list) else ())]
    if is_complete:
        added = _tokens_by_id(path, config["added_tokens_decoder"])
    else:
        known = {*special_tokens.values(), *map(str, map(_token_string, extra))}
        added = _legacy_tokens(directory / "added_tokens.json", known)
    flags = {token.content: token for token in added.values()}
    special = [named.get(name) or special_tokens.get(name) for name in SPECIAL_TOKEN_NAMES]
    more = [
        flags.get(str(_token_string(one))) or _added_token(path, one, special=True) for one in (*special, *extra) if one
    ]
    return TokenizerFiles(
        tokenizer_json=tokenizer_json,
        config=config,
        class_name=class_name,
        special_tokens=special_tokens,
        added_tokens=[*(added[token_id] for token_id in sorted(added)), *more],
        added_ids={token.content: token_id for token_id, token in added.items()},
        chat_templates=_read_chat_templates(directory, config),
        is_lowercased=_is_lowercased(directory),
    )


def _is_lowercased(directory: Path) -> bool:
    found = next((directory / name for name in TRANSFORMER_CONFIGS if (directory / name).is_file()), None)
    return found is not None and _read_json(found).get("do_lower_case") is True


def _own_tokens(named: dict[str, Any]) -> dict[str, object]:
    """Special tokens of names that only one model has, such as image_token."""
    own: dict[str, object] = {
        name: value for name, value in named.items() if name.endswith("_token") and isinstance(value, str)
    }
    extra = _extra_tokens(named)
    own |= extra if isinstance(extra, dict) else {}
    return {name: value for name, value in own.items() if name not in SPECIAL_TOKEN_NAMES}


def _extra_tokens(named: dict[str, Any]) -> list[object] | dict[str, object]:
    """Special tokens without a name, or by names."""
    extra = named.get("extra_special_tokens", named.get("additional_special_tokens"))
    return extra if isinstance(extra, list | dict) else []


def _tokens_by_id(path: Path, decoder: object) -> dict[int, AddedToken]:
    if not isinstance(decoder, dict) or not all(str(token_id).isdecimal() for token_id in decoder):
        raise ConfigError(f"{path}: added_tokens_decoder is not an object of tokens by id", field="source")
    return {int(token_id): _added_token(path, token) for token_id, token in decoder.items()}


def _legacy_tokens(path: Path, special: set[str]) -> dict[int, AddedToken]:
    tokens = _read_json(path)
    if not all(type(token_id) is int for token_id in tokens.values()):
        raise ConfigError(f"{path} is not an object of ids by token", field="source")
    return {
        token_id: AddedToken(text, normalized=text not in special, special=text in special)
        for text, token_id in tokens.items()
    }


def _added_token(path: Path, value: object, *, special: bool | None = None) -> AddedToken:
    text = _token_string(value)
    if text is None:
        raise ConfigError(f"{path}: {str(value)[:80]!r} is not a token; write a text or an object", field="source")
    flags = {name: value[name] for name in _TOKEN_FLAGS if isinstance(value, dict) and type(value.get(name)) is bool}
    return AddedToken(text, **(flags if special is None else {**flags, "special": special}))


def _read_chat_templates(directory: Path, config: dict[str, Any]) -> dict[str, str]:
    """By name. The `.jinja` files win over chat_template.json, which wins over tokenizer_config.json."""
    folder = directory / "additional_chat_templates"
    files = {"default": directory / "chat_template.jinja"} | {one.stem: one for one in sorted(folder.glob("*.jinja"))}
    found = _read_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):
        found = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
    templates = found if isinstance(found, dict) else {} if found is None else {"default": found}
    if not all(isinstance(template, str) for template in templates.values()):
        raise ConfigError(f"source={directory}: chat_template is not a text", field="source")
    return templates | {name: path.read_text(encoding="utf-8") for name, path in files.items() if path.is_file()}


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error})", field="source") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a JSON object", field="source")
    return content


def _token_string(value: object) -> str | None:
    """Tokens are written as a text or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
