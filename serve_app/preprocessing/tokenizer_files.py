"""What a model directory says about its tokenizer: special tokens and chat template."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.architectures.sentence_files import TRANSFORMER_CONFIGS
from serve_app.errors import ConfigError

SPECIAL_TOKEN_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """Paths and settings found in one model directory."""

    tokenizer_json: Path
    special_tokens: dict[str, str]  # "bos_token" -> "<s>"; only those the model names
    chat_template: str | None
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
    config = _read_json(directory / "tokenizer_config.json")
    tokens_map = _read_json(directory / "special_tokens_map.json")
    named = ((name, _token_string(config.get(name) or tokens_map.get(name))) for name in SPECIAL_TOKEN_NAMES)
    return TokenizerFiles(
        tokenizer_json=tokenizer_json,
        special_tokens={name: token for name, token in named if token},
        chat_template=_read_chat_template(directory, config),
        is_lowercased=_is_lowercased(directory),
    )


def _is_lowercased(directory: Path) -> bool:
    found = next((directory / name for name in TRANSFORMER_CONFIGS if (directory / name).is_file()), None)
    return found is not None and _read_json(found).get("do_lower_case") is True


def _read_chat_template(directory: Path, config: dict[str, Any]) -> str | None:
    """The `.jinja` file wins over chat_template.json, which wins over tokenizer_config.json."""
    jinja_file = directory / "chat_template.jinja"
    if jinja_file.is_file():
        return jinja_file.read_text(encoding="utf-8")
    found = _read_json(directory / "chat_template.json").get("chat_template") or config.get("chat_template")
    if isinstance(found, list):  # several templates by name
        by_name = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = by_name.get("default")
    if found is not None and not isinstance(found, str):
        raise ConfigError(f"source={directory}: chat_template is not a text", field="source")
    return found


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
