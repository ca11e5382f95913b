"""Reading the JSON of a checkpoint, which is not to be trusted, and saying what is wrong with it."""

import json
from collections import Counter
from pathlib import Path

from serve_app.errors import ConfigError

MAX_JSON_BYTES = 32 * 1024**2


def read_json(path: Path) -> dict[str, object]:
    """The object in a JSON file. Raises ConfigError when there is none, or it is too large."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise damaged(path, f"{path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    return parse_json(path.read_bytes(), path)


def read_json_list(path: Path) -> list[object]:
    """The list in a JSON file. Raises ConfigError as read_json does."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise damaged(path, f"{path.stat().st_size} bytes, more than {MAX_JSON_BYTES}")
    value = _parse(path.read_bytes(), path)
    if not isinstance(value, list):
        raise damaged(path, "JSON that is not a list")
    return value


def parse_json(text: bytes, path: Path) -> dict[str, object]:
    """The object in a JSON text; `path` is the file it comes from."""
    value = _parse(text, path)
    if not isinstance(value, dict):
        raise damaged(path, "JSON that is not an object")
    return value


def _parse(text: bytes, path: Path) -> object:
    try:
        value: object = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"broken JSON ({str(error)[:120]})") from error
    return value


def is_count(value: object) -> bool:
    """Whether it can be a size or an offset: an integer from 0 up."""
    return type(value) is int and 0 <= value < 2**63


def damaged(path: Path, what: str) -> ConfigError:
    """The error of a file that has `what`."""
    return ConfigError(f"{path} has {what}: it is damaged or incomplete; download or copy it again")


def some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shown(value: object) -> str:
    """The value as a message shows it: short."""
    return repr(value)[:80]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) != len(pairs):
        twice = next(key for key, number in Counter(key for key, _ in pairs).items() if number > 1)
        raise ValueError(f"key {shown(twice)} twice")
    return values
