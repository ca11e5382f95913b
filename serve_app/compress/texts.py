"""Texts to calibrate and to measure on: plain text or JSON lines; tasks as JSON lines of prompt and answer."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.preprocessing.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TaskExample:
    """A prompt, and the one answer that counts as right."""

    prompt: str
    answer: str
    task: str = "task"


def read_texts(path: Path) -> list[str]:
    """A text for each line: the line itself, or in a .jsonl file its `text`. Raises ConfigError."""
    lines = _lines(path)
    if path.suffix == ".jsonl":
        return [_text_of(_object(path, number, line), "text", path, number) for number, line in lines]
    return [line for _number, line in lines]


def read_tasks(path: Path) -> list[TaskExample]:
    """A .jsonl file whose lines have `prompt`, `answer` and, where there are several kinds, `task`."""
    examples = []
    for number, line in _lines(path):
        entry = _object(path, number, line)
        task = entry.get("task", "task")
        if not isinstance(task, str):
            raise ConfigError(f"{path}:{number}: task is not text")
        prompt, answer = (_text_of(entry, name, path, number) for name in ("prompt", "answer"))
        examples.append(TaskExample(prompt, answer, task))
    return examples


def sequences_of(texts: list[str], tokenizer: Tokenizer, max_tokens: int) -> Iterator[list[int]]:
    """Token sequences of 2 to max_tokens; longer texts are cut into several."""
    for text in texts:
        token_ids = tokenizer.encode(text, add_special_tokens=True)
        for start in range(0, len(token_ids), max_tokens):
            piece = token_ids[start : start + max_tokens]
            if len(piece) > 1:
                yield piece


def _lines(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give one with a text on each line")
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    lines = [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not lines:
        raise ConfigError(f"{path} is empty; give a text on each line")
    return lines


def _object(path: Path, number: int, line: str) -> dict[str, object]:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{path}:{number} is not JSON ({error}); write one object on each line") from error
    if not isinstance(entry, dict):
        raise ConfigError(f"{path}:{number} is not a JSON object; write one on each line")
    return entry


def _text_of(entry: dict[str, object], name: str, path: Path, number: int) -> str:
    value = entry.get(name)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{path}:{number}: {name} is not text")
    return value
