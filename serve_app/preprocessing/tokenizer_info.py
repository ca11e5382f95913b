"""What a model's tokenizer files say, as they are told to clients."""

from typing import Any

from serve_app.preprocessing.tokenizer_files import TokenizerFiles

_UNNAMED_CLASS = "PreTrainedTokenizerFast"  # transformers' own for a tokenizer.json without a class
_MAX_INTEGER = 2**63 - 1  # files have 10**30 where they mean any


def tokenizer_info(files: TokenizerFiles) -> dict[str, Any]:
    """tokenizer_config.json with tokens as texts, the class, the chat template in use, and no paths."""
    shown = {name: _shown(value) for name, value in files.config.items() if not _is_path(name)}
    info = {**shown, **files.special_tokens, "tokenizer_class": files.class_name or _UNNAMED_CLASS}
    template = files.chat_templates.get("default")
    return info if template is None else {**info, "chat_template": template}


def _is_path(name: str) -> bool:
    return name == "name_or_path" or name.endswith("_file")


def _shown(value: object) -> object:
    if isinstance(value, dict):
        return value["content"] if "content" in value else {key: _shown(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
    return float(value) if type(value) is int and abs(value) > _MAX_INTEGER else value
