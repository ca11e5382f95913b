"""Modules of ours, which a model's directory may name by itself; other code is run only where a Serve file names it."""

from pathlib import Path

from serve_app.checkpoints.checkpoint_json import read_json
from serve_app.errors import ConfigError

TEXT_CLASSIFIER = "serve_app.models.text_classifier:TextClassifier"  # what `rayshard train` writes
_OWN_MODULES = (TEXT_CLASSIFIER,)


def own_architecture(source_dir: Path) -> str | None:
    """The class that the directory's config.json names as its model's; None: it is not a plain module's directory.

    Raises ConfigError for a class that is not ours: whoever writes a model's files must not choose what is imported.
    """
    path = source_dir / "config.json"
    named = read_json(path).get("architecture") if path.is_file() else None
    if not isinstance(named, str) or ":" not in named:
        return None
    if named not in _OWN_MODULES:
        raise ConfigError(
            f"{path} names architecture={named[:200]!r}, and code is imported only when the YAML names it; write "
            "architecture: beside source, if you trust it",
            field="architecture",
        )
    return named
