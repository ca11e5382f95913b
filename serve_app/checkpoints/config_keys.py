"""The values of a config.json, by the names that families give them."""

from pathlib import Path

from serve_app.checkpoints.checkpoint_json import shown
from serve_app.errors import ConfigError


class ConfigKeys:
    """Typed look-ups in config.json; the first key that is present counts. All raise ConfigError."""

    def __init__(self, path: Path, values: dict[str, object]) -> None:
        self.path = path
        self.values = values

    def count(self, keys: tuple[str, ...], default: int) -> int:
        """A positive integer; null and absent are the default."""
        return self.count_or_none(keys, default) or default

    def count_or_none(self, keys: tuple[str, ...], default: int | None) -> int | None:
        """The same, where null means that there is none."""
        key = next((key for key in keys if key in self.values), None)
        if key is None:
            return default
        value = self.values[key]
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**40:
            raise ConfigError(f"{self.path}: {key}={shown(value)} is not a positive integer; download it again")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A switch."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise ConfigError(f"{self.path}: {key}={shown(value)} is neither true nor false; write one of them")
        return default if value is None else value
