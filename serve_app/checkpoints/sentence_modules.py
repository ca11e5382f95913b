"""What sentence-transformers would load from a directory: the modules of modules.json, and where each has its files."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from serve_app.architectures.sentence_files import MODULES_FILE, SENTENCE_CONFIG, TRANSFORMER_CONFIGS
from serve_app.checkpoints.checkpoint_json import damaged, read_json, read_json_list, shown
from serve_app.errors import ConfigError

TRANSFORMER = "Transformer"
_PACKAGE = "sentence_transformers."
_WITH_CONFIG = (TRANSFORMER, "Pooling", "Dense", "LayerNorm")
_MAX_MODULES = 64


@dataclass(frozen=True, slots=True)
class ModuleEntry:
    """One module, in its place."""

    kind: str  # name of its class
    path: str  # of its directory within the source; empty: the source itself
    type_name: str  # as modules.json has it

    @property
    def is_custom(self) -> bool:
        """Whether its class is code that comes with the model."""
        return not self.type_name.startswith(_PACKAGE)


def read_module_entries(source_dir: Path) -> list[ModuleEntry]:
    """The modules in their order; empty without a modules.json. Raises ConfigError."""
    path = source_dir / MODULES_FILE
    if not path.is_file():
        return []
    entries = read_json_list(path)
    if not 0 < len(entries) <= _MAX_MODULES:
        raise damaged(path, f"{len(entries)} modules")
    return [_entry_of(entry, path) for entry in entries]


def module_paths(source_dir: Path) -> list[str]:
    """The sub-directories that modules.json names. Raises ConfigError."""
    return list(dict.fromkeys(entry.path for entry in _own_entries(source_dir) if entry.path))


def transformer_directory(source_dir: Path) -> Path:
    """Where config.json, weights and tokenizer are: the source itself, or its Transformer module's. Raises ConfigError.

    For any source: a modules.json that is not sentence-transformers' own is none.
    """
    first = next(iter(_own_entries(source_dir)), None)
    return source_dir / first.path if first is not None and first.kind == TRANSFORMER else source_dir


def read_model_kind(source_dir: Path) -> str:
    """The class of sentence-transformers that a directory was saved by. Raises ConfigError."""
    kind = read_sentence_config(source_dir).get("model_type", "SentenceTransformer")
    return kind if isinstance(kind, str) else shown(kind)


def read_sentence_config(source_dir: Path) -> dict[str, object]:
    """What config_sentence_transformers.json says; without modules.json nothing, as sentence-transformers has it."""
    path = source_dir / SENTENCE_CONFIG
    if not path.is_file() or not (source_dir / MODULES_FILE).is_file():
        return {}
    return read_json(path)


def read_transformer_options(directory: Path) -> tuple[Path, dict[str, object]]:
    """The file of a Transformer module's options, and what it says; empty when there is none. Raises ConfigError."""
    for name in TRANSFORMER_CONFIGS:
        if (directory / name).is_file():
            return directory / name, read_json(directory / name)
    return directory / TRANSFORMER_CONFIGS[0], {}


def missing_module(source_dir: Path) -> str | None:
    """A directory of modules.json without the config.json that its module needs; None: there is none."""
    for entry in _own_entries(source_dir):
        if entry.kind in _WITH_CONFIG and not (source_dir / entry.path / "config.json").is_file():
            return entry.path or "."
    return None


def module_config(source_dir: Path, entry: ModuleEntry) -> dict[str, object]:
    """What a module's own config.json says. Raises ConfigError when there is none."""
    path = source_dir / entry.path / "config.json"
    if not path.is_file():
        raise ConfigError(
            f"source={source_dir}: {MODULES_FILE} names {entry.kind} in {entry.path or '.'}, where no config.json is; "
            "copy the whole directory, with what is below it"
        )
    return read_json(path)


def _own_entries(source_dir: Path) -> list[ModuleEntry]:
    """The modules of a modules.json that is sentence-transformers' own, as its first one tells; of another none."""
    path = source_dir / MODULES_FILE
    if not path.is_file():
        return []
    first = next(iter(read_json_list(path)), None)
    is_own = isinstance(first, dict) and str(first.get("type", "")).startswith(_PACKAGE)
    return read_module_entries(source_dir) if is_own else []


def _entry_of(entry: object, path: Path) -> ModuleEntry:
    if not isinstance(entry, dict) or not isinstance(entry.get("type"), str):
        raise damaged(path, "a module without a type")
    where = entry.get("path", "")
    if not isinstance(where, str) or PureWindowsPath(where).anchor or ".." in PureWindowsPath(where).parts:
        raise ConfigError(f"{path}: path={shown(where)} leaves the model's directory; write one within it")
    name = entry["type"]
    return ModuleEntry(name.rpartition(".")[2], str(PurePosixPath(where)) if where.strip("/.") else "", name)
