"""Which model a copy runs: whether another copy can go on with its answers."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path

from serve_app.checkpoints.file_digest import file_digest
from serve_app.planning.generator_plan import GeneratorPlan
from serve_app.planning.planner import served_dtype
from serve_app.types.models import ModelVersion

_DIGEST_BYTES = 16
_TOKENIZER_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json")


def read_model_version(plan: GeneratorPlan) -> ModelVersion:
    """The version of a model that generates, by what lies in its directory now; reads a megabyte of each large file.

    What leaves a text as it is does not count: lengths, queues, how the model is split, chat templates, sampling
    defaults. (How it is split changes roundings, as the size of a batch does.)
    """
    directory, config = plan.spec.source_dir, plan.config
    quantization = None if config.quantization is None else asdict(config.quantization.for_loading)
    how = [served_dtype(plan.spec, config), quantization, sorted(plan.facts.end_token_ids)]
    files = [directory / "config.json", *sorted(directory.glob("*.safetensors"))]
    return ModelVersion(
        tokens=_joined([_tokenizer_settings(directory), *_digests(directory / name for name in _TOKENIZER_FILES)]),
        weights=_joined([json.dumps(how, sort_keys=True), *_digests(files)]),
    )


def _tokenizer_settings(directory: Path) -> str:
    """tokenizer_config.json without its chat template: prompts are made before a copy sees them."""
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_bytes()) if path.is_file() else {}  # read before, by what refuses it
    return json.dumps({name: value for name, value in settings.items() if name != "chat_template"}, sort_keys=True)


def _digests(files: Iterable[Path]) -> list[str]:
    return [f"{path.name} {file_digest(path)}" for path in files if path.is_file()]


def _joined(parts: Iterable[str]) -> str:
    return blake2b("\n".join(parts).encode(), digest_size=_DIGEST_BYTES).hexdigest()
