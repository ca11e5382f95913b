"""`compress_report.json` and `report.md`: how large a compressed model is, and what it has lost."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.architectures.tensor_names import is_embedding, is_head, layer_of
from serve_app.checkpoints.model_spec import ModelSpec, read_checkpoint
from serve_app.checkpoints.quality_gate import REPORT_NAME, REPORT_VERSION, sha256_of
from serve_app.compress.artifact import weight_hashes, write_json
from serve_app.compress.evaluate import Labelling, Quality, TaskScore
from serve_app.compress.plot import Point, plot_sizes
from serve_app.compress.speed import Speed


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of a model's tensors."""

    num_bytes: int
    by_part: dict[str, int]  # embedding, head, layers, other
    num_weights: int  # numbers of the original that they stand for
    bits_per_weight: float


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was measured of a compressed model."""

    size: Size
    original_size: Size
    quality: Quality
    tasks: Sequence[TaskScore] = ()
    original_tasks: Sequence[TaskScore] = ()
    speed: Sequence[Speed] = ()
    original_speed: Sequence[Speed] = ()


def measure_size(directory: Path, num_weights: int) -> Size:
    """The size of the model in a directory, which stands for `num_weights` weights of the original."""
    spec = read_checkpoint(directory, ARCHITECTURES)
    parts = {"embedding": 0, "head": 0, "layers": 0, "other": 0}
    for name, tensor in spec.tensors.items():
        module = f"{name.rpartition('.')[0]}.weight"
        if layer_of(name) is not None:
            parts["layers"] += tensor.num_bytes
        elif is_embedding(module):
            parts["embedding"] += tensor.num_bytes
        else:
            parts["head" if is_head(name) else "other"] += tensor.num_bytes
    return Size(spec.num_bytes, parts, num_weights, 8 * spec.num_bytes / num_weights)


def count_weights(spec: ModelSpec) -> int:
    """Numbers of an unquantized model."""
    return sum(tensor.num_elements for tensor in spec.tensors.values())


def write_report(directory: Path, original: Path, texts: Path, measured: Measured) -> dict[str, Any]:
    """Write the report of a generator into its directory; gives what the JSON holds."""
    quality = measured.quality
    content: dict[str, Any] = {
        **_head(directory, original, texts, {"num_tokens": quality.model.num_tokens}),
        "size": asdict(measured.size),
        "original_size": asdict(measured.original_size),
        "quality": {
            "perplexity": quality.model.value,
            "perplexity_standard_error": quality.model.standard_error,
            "original_perplexity": quality.original.value,
            "original_perplexity_standard_error": quality.original.standard_error,
            "perplexity_increase": quality.perplexity_increase,
            "kl": quality.divergence.kl,
            "kl_standard_error": quality.divergence.kl_standard_error,
            "top1_agreement": quality.divergence.top1_agreement,
        },
        "tasks": [asdict(score) for score in measured.tasks],
        "original_tasks": [asdict(score) for score in measured.original_tasks],
        "speed": [asdict(one) for one in measured.speed],
        "original_speed": [asdict(one) for one in measured.original_speed],
    }
    _write(directory, content)
    return content


def write_label_report(
    directory: Path, original: Path, texts: Path, sizes: tuple[Size, Size], labelling: Labelling
) -> dict[str, Any]:
    """Write the report of a text classifier into its directory; gives what the JSON holds.

    sizes: of the original, and of the model.
    """
    content: dict[str, Any] = {
        **_head(directory, original, texts, {"num_texts": labelling.num_texts}),
        "size": asdict(sizes[1]),
        "original_size": asdict(sizes[0]),
        "quality": {
            "accuracy": labelling.num_right / labelling.num_texts,
            "original_accuracy": labelling.original_num_right / labelling.num_texts,
            "kl": labelling.kl,
            "top1_agreement": labelling.agreement,
        },
        "tasks": [],
        "original_tasks": [],
        "speed": [],
        "original_speed": [],
    }
    _write(directory, content)
    return content


def _head(directory: Path, original: Path, texts: Path, counts: Mapping[str, int]) -> dict[str, Any]:
    return {
        "version": REPORT_VERSION,
        "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "files_sha256": weight_hashes(directory),
        "original": {"name": original.name, "files_sha256": weight_hashes(original)},
        "texts": {"name": texts.name, "sha256": sha256_of(texts), **counts},
    }


def _write(directory: Path, content: Mapping[str, Any]) -> None:
    write_json(directory / REPORT_NAME, content)
    (directory / "report.svg").write_text(plot_sizes(_points(directory, content), "KL to the original"))
    (directory / "report.md").write_text(_markdown(directory.name, content))


def _points(directory: Path, content: Mapping[str, Any]) -> list[Point]:
    """The original, this model, and those beside it that were measured against the same original on the same texts."""
    points = [Point(content["original"]["name"], content["original_size"]["num_bytes"], 0.0)]
    for path in sorted(directory.absolute().parent.glob(f"*/{REPORT_NAME}")):
        try:
            other = content if path.parent.name == directory.name else json.loads(path.read_bytes())
            if all(other[key] == content[key] for key in ("version", "original", "texts")):
                is_subject = other is content
                points.append(Point(path.parent.name, other["size"]["num_bytes"], other["quality"]["kl"], is_subject))
        except (ValueError, KeyError, TypeError):  # not a file of ours
            continue
    return points


def read_report(directory: Path) -> dict[str, Any] | None:
    """The report beside a model; None: there is none."""
    path = directory / REPORT_NAME
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


def _markdown(name: str, content: Mapping[str, Any]) -> str:
    quality, size, original = content["quality"], content["size"], content["original_size"]
    share = size["num_bytes"] / original["num_bytes"]
    lines = [
        f"# {name}, made of {content['original']['name']}",
        "",
        "| | original | this model |",
        "| --- | --- | --- |",
        f"| bytes | {original['num_bytes']:,} | {size['num_bytes']:,} ({share:.2f}) |",
        f"| bits per weight | {original['bits_per_weight']:.2f} | {size['bits_per_weight']:.2f} |",
        *(_label_rows(quality) if "accuracy" in quality else _token_rows(quality)),
    ]
    originals = {score["task"]: score for score in content["original_tasks"]}
    for score in content["tasks"]:
        before = originals.get(score["task"])
        shown = "" if before is None else f"{before['num_exact']}/{before['num_examples']}"
        lines.append(f"| exact: {score['task']} | {shown} | {score['num_exact']}/{score['num_examples']} |")
    lines += _speed_rows(content["original_speed"], content["speed"])
    lines += ["", "Bytes by part:", "", "```", *_bars(original["by_part"], size["by_part"]), "```", ""]
    texts = content["texts"]
    lines += ["![Size against quality](report.svg)", ""]
    counted = f"{texts['num_tokens']} tokens" if "num_tokens" in texts else f"{texts['num_texts']} texts"
    lines.append(f"Measured on {counted} of {texts['name']}, {content['created']}.")
    return "\n".join(lines) + "\n"


def _token_rows(quality: Mapping[str, float]) -> list[str]:
    return [
        f"| perplexity | {quality['original_perplexity']:.4f} ± {quality['original_perplexity_standard_error']:.4f} | "
        f"{quality['perplexity']:.4f} ± {quality['perplexity_standard_error']:.4f} "
        f"({quality['perplexity_increase']:+.2%}) |",
        f"| KL to the original, nats a token | | {quality['kl']:.5f} ± {quality['kl_standard_error']:.5f} |",
        f"| same next token | | {quality['top1_agreement']:.2%} |",
    ]


def _label_rows(quality: Mapping[str, float]) -> list[str]:
    return [
        f"| accuracy | {quality['original_accuracy']:.4f} | {quality['accuracy']:.4f} |",
        f"| KL to the original, nats a text | | {quality['kl']:.5f} |",
        f"| same label | | {quality['top1_agreement']:.2%} |",
    ]


def _speed_rows(originals: Sequence[Mapping[str, float]], speeds: Sequence[Mapping[str, float]]) -> list[str]:
    """What decoding costs at each batch size."""
    before = {one["batch_size"]: one for one in originals}
    rows = []
    for one in speeds:
        sides = [before.get(one["batch_size"], {}), one]
        for what, shown in (("tokens/s", _rate), ("ms a step", _time), ("MiB of weights and cache", _memory)):
            cells = " | ".join(shown(side) if side else "" for side in sides)
            rows.append(f"| {what}, batch {one['batch_size']:.0f} | {cells} |")
    return rows


def _rate(speed: Mapping[str, float]) -> str:
    return f"{speed['tokens_per_s']:.0f}"


def _time(speed: Mapping[str, float]) -> str:
    return f"{speed['ms_per_step']:.2f}"


def _memory(speed: Mapping[str, float]) -> str:
    return f"{(speed['weight_bytes'] + speed['cache_bytes']) / 2**20:.1f}"


def _bars(original: Mapping[str, int], parts: Mapping[str, int], width: int = 50) -> list[str]:
    """Each part of both models as a bar."""
    largest = max(*original.values(), *parts.values(), 1)
    rows = []
    for part in original:
        for which, found in (("original", original), ("this", parts)):
            num_bytes = found.get(part, 0)
            bar = "█" * round(width * num_bytes / largest)
            rows.append(f"{part:>10} {which:>8} {bar} {num_bytes:,}")
    return rows
