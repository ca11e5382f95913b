"""The gate: a compressed model is served only if the report on exactly these files meets its settings."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

from serve_app.checkpoints.checkpoint_json import read_json, shown
from serve_app.config.compression import QualityConfig
from serve_app.errors import ConfigError

REPORT_NAME = "compress_report.json"
REPORT_VERSION = 1
_CHUNK_BYTES = 1 << 20


def check_quality(source_dir: Path, quality: QualityConfig) -> list[str]:
    """Every reason why the model in `source_dir` may not be served. Reads each of its weights once."""
    path = source_dir / quality.report
    if not path.is_file():
        return [
            f"quality.report={quality.report} is not in {source_dir}; measure the model with `rayshard compress eval`, "
            "or remove quality"
        ]
    try:
        report = read_json(path)
    except ConfigError as error:
        return [error.message]
    if report.get("version") != REPORT_VERSION:
        return [f"{path}: version={shown(report.get('version'))} is not known here; measure the model again"]
    return _file_problems(source_dir, path, report) or _figure_problems(path, report, quality)


def _file_problems(source_dir: Path, path: Path, report: Mapping[str, object]) -> list[str]:
    expected = report.get("files_sha256")
    if not isinstance(expected, dict) or not expected:
        return [f"{path} names no files; measure the model again"]
    there = {file.name for file in source_dir.glob("*.safetensors")}
    problems = [f"{path} does not list {name}; measure the model again" for name in sorted(there - expected.keys())]
    for name, digest in sorted(expected.items()):
        if name not in there:
            problems.append(f"{name}, which {path} was made for, is not in {source_dir}; copy it there")
        elif sha256_of(source_dir / name) != digest:
            problems.append(
                f"{name} is not the file that {path} was made for (sha256 differs): it was changed or damaged; copy "
                "the model again, or measure it again"
            )
    return problems


def _figure_problems(path: Path, report: Mapping[str, object], quality: QualityConfig) -> list[str]:
    figures = report.get("quality")
    if not isinstance(figures, dict):
        return [f"{path} has no figures; measure the model again"]
    problems = []
    bounds = (
        ("perplexity_increase", quality.max_perplexity_increase, 1),
        ("kl", quality.max_kl, 1),
        ("top1_agreement", quality.min_top1_agreement, -1),
    )
    for name, bound, sign in bounds:
        if bound is None:
            continue
        value = figures.get(name)
        setting = f"min_{name}" if sign < 0 else f"max_{name}"
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            problems.append(f"{path}: {name}={shown(value)} is not a finite number; measure the model again")
        elif sign * value > sign * bound:
            relation = "below" if sign < 0 else "above"
            problems.append(f"{name}={value:.4g} in {path} is {relation} quality.{setting}={bound:g}; compress it less")
    return problems


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in lowercase hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
