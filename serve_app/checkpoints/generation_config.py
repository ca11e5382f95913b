"""What a checkpoint says about ending a generation."""

import json
from pathlib import Path

from serve_app.errors import ConfigError


def read_eos_token_ids(source_dir: Path, vocab_size: int) -> list[int]:
    """The end-of-sequence tokens: of generation_config.json, else of config.json, else none."""
    for name in ("generation_config.json", "config.json"):
        path = source_dir / name
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_bytes())
        except ValueError as error:
            raise ConfigError(f"{path} is not JSON: {error}; download it again", field="source") from error
        found = values.get("eos_token_id") if isinstance(values, dict) else None
        if found is not None:
            token_ids = found if isinstance(found, list) else [found]
            if not all(type(token_id) is int for token_id in token_ids):
                raise ConfigError(
                    f"{path}: eos_token_id={found!r} is neither a token id nor a list of them", field="source"
                )
            outside = [token_id for token_id in token_ids if not 0 <= token_id < vocab_size]
            if outside:
                raise ConfigError(
                    f"{path}: eos_token_id={outside[0]} is not below vocab_size={vocab_size}; correct it or remove it",
                    field="source",
                )
            return token_ids
    return []
