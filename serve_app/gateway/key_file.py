"""The file of API keys: one key on each line, by its salted hash.

    # id       salt and sha256(salt + key), both hexadecimal      who, and what is allowed
    9f2c41aa   sha256:5be0...:c2d7...   name=web models=demo,tickets requests_per_minute=60 tokens_per_minute=20000
    01b7d3ee   sha256:77aa...:09fe...   name=ops admin

A key is 256 random bits, so that a fast hash is as good as a slow one.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.types.generation import LAST_PRIORITY

PREFIX = "rs"
_KEY = re.compile(rf"{PREFIX}_(?P<id>[0-9a-f]{{8}})_[A-Za-z0-9_-]{{43}}")
_ID = re.compile(r"[0-9a-f]{8}")
_HASH = re.compile(r"sha256:(?P<salt>[0-9a-f]{32}):(?P<digest>[0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY_OPTIONS = (  # of a line: name, meaning, and what holds without it
    ("name", "Whose key it is: what the log shows. Letters, digits, '.', '_' and '-'; given on each line.", ""),
    ("models", "The models that it may use, with commas between them.", "all"),
    ("requests_per_minute", "Requests that it may send in a minute, from 1.", "any number"),
    ("tokens_per_minute", "Tokens of prompts and answers that it may use in a minute, from 1.", "any number"),
    ("concurrency", "Requests that it may have open at once, from 1.", "any number"),
    ("best_priority", "The lowest priority that its requests may ask for, from -1000 to 1000.", "0"),
    ("admin", "It may read /metrics; without a value.", "it may not"),
)
_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrency")
_OPTIONS = tuple(name for name, _meaning, _default in KEY_OPTIONS)
_PRIORITY = re.compile(r"-?[0-9]{1,4}")
_MAX_PRIORITY = LAST_PRIORITY  # of requests, too
_MAX_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """One line."""

    key_id: str
    name: str
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)
    models: frozenset[str] | None = None  # None: all
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    best_priority: int = 0  # the lowest number that its requests may ask for
    is_admin: bool = False


def new_key(options: str) -> tuple[str, str]:
    """A key, and its line with these options (`name=... models=...`). Raises ConfigError."""
    key_id, salt = secrets.token_hex(4), secrets.token_bytes(16)
    key = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    line = f"{key_id} sha256:{salt.hex()}:{digest_of(salt, key).hex()} {options}".strip()
    _entry_of(line, "the new key")
    return key, line


def digest_of(salt: bytes, key: str) -> bytes:
    """What a line holds of a key."""
    return hashlib.sha256(salt + key.encode()).digest()


def key_id_of(key: str) -> str | None:
    """The id within a key; None when it cannot be one."""
    match = _KEY.fullmatch(key)
    return None if match is None else match["id"]


def read_key_file(path: Path) -> dict[str, KeyEntry]:
    """The entries by id. Raises ConfigError that names the line and never quotes it."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ConfigError(f"{path} is larger than {_MAX_BYTES} bytes; it is not a file of keys")
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read ({type(error).__name__}); make it with `rayshard key new`"
        raise ConfigError(message, field="api_keys_file") from error
    entries: dict[str, KeyEntry] = {}
    names: set[str] = set()
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"{path}, line {number}"
        entry = _entry_of(line, where)
        if entry.key_id in entries or entry.name in names:
            raise ConfigError(f"{where}: its id or its name stands on an earlier line; take one of them out")
        entries[entry.key_id] = entry
        names.add(entry.name)
    return entries


def _entry_of(line: str, where: str) -> KeyEntry:
    words = line.split()
    found = _HASH.fullmatch(words[1]) if len(words) > 1 else None
    if found is None or _ID.fullmatch(words[0]) is None:
        raise ConfigError(f"{where}: begins with no id and sha256:salt:hash; make it with `rayshard key new`")
    options: dict[str, str] = {}
    for word in words[2:]:
        name, _, value = word.partition("=")
        if name in options or name not in _OPTIONS or (name == "admin") == bool(value):
            raise ConfigError(f"{where}: option {name[:32]} is unknown, twice, or without a value")
        options[name] = value
    if _NAME.fullmatch(options.get("name", "")) is None:
        raise ConfigError(f"{where}: has no name=...; use letters, digits, '.', '_' and '-'")
    limits = {name: _limit(options[name], name, where) for name in _LIMITS if name in options}
    models = frozenset(options["models"].split(",")) if "models" in options else None
    return KeyEntry(
        key_id=words[0],
        name=options["name"],
        salt=bytes.fromhex(found["salt"]),
        digest=bytes.fromhex(found["digest"]),
        models=models,
        best_priority=_priority(options.get("best_priority", "0"), where),
        is_admin="admin" in options,
        **limits,
    )


def _priority(value: str, where: str) -> int:
    if _PRIORITY.fullmatch(value) is None or abs(int(value)) > _MAX_PRIORITY:
        raise ConfigError(f"{where}: best_priority is not an integer from {-_MAX_PRIORITY} to {_MAX_PRIORITY}")
    return int(value)


def _limit(value: str, name: str, where: str) -> int:
    if not (value.isascii() and value.isdecimal() and 0 < int(value[:12]) < 10**10):
        raise ConfigError(f"{where}: {name} is not an integer above 0")
    return int(value)
