"""The prompts that a model of sentence-transformers puts before texts."""

from dataclasses import dataclass, field
from pathlib import Path

from serve_app.architectures.sentence_files import MODULES_FILE, SENTENCE_CONFIG
from serve_app.checkpoints.checkpoint_json import damaged, shown
from serve_app.checkpoints.sentence_modules import read_model_kind, read_sentence_config
from serve_app.errors import ConfigError

_KIND_OF_TASK = {"embed": "SentenceTransformer", "score": "CrossEncoder", "classify": "CrossEncoder"}


@dataclass(frozen=True, slots=True)
class Prompts:
    """Texts by their names, and the name of the one that is used when a request names none."""

    texts: dict[str, str] = field(default_factory=dict)
    default_name: str | None = None


def read_prompts(source_dir: Path, task: str, default_name: str | None) -> Prompts:
    """The prompts of a directory. `default_name` goes before its own; empty: none is used. Raises ConfigError."""
    texts, own_name = _read(source_dir, task)
    if default_name is not None:
        own_name = default_name or None
    if own_name is not None and own_name not in texts:
        none = f"there are none in its {SENTENCE_CONFIG}, which is read beside a {MODULES_FILE}; remove it"
        known = f"use one of {', '.join(sorted(texts))}" if texts else none
        raise ConfigError(f"default_prompt_name={shown(own_name)} is not a prompt of source={source_dir}; {known}")
    return Prompts(texts, own_name)


def _read(source_dir: Path, task: str) -> tuple[dict[str, str], str | None]:
    values = read_sentence_config(source_dir)
    if read_model_kind(source_dir) != _KIND_OF_TASK[task]:
        return {}, None  # written for another use of the model
    path = source_dir / SENTENCE_CONFIG
    prompts, name = values.get("prompts") or {}, values.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str | None) for text in prompts.values()):
        raise damaged(path, "prompts that are not texts by their names")
    if name is not None and not isinstance(name, str):
        raise damaged(path, f"default_prompt_name={shown(name)}")
    return {str(key): text or "" for key, text in prompts.items()}, name
