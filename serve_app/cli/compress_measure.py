"""`rayshard compress eval`: a model beside its original, read from disk or served."""

import argparse
from pathlib import Path

from serve_app.architectures.lookup import ARCHITECTURES
from serve_app.checkpoints.model_spec import read_checkpoint
from serve_app.compress.compare_served import (
    MAX_ANSWER_TOKENS,
    as_json,
    compare_served,
    describe,
    is_url,
    open_model,
)
from serve_app.compress.evaluate import Scored, compare, score_tasks, take
from serve_app.compress.local_model import LocalModel
from serve_app.compress.modules import count_module_weights, is_module, label_texts, measure_module_size
from serve_app.compress.quantize import is_encoder
from serve_app.compress.report import Measured, count_weights, measure_size, write_label_report, write_report
from serve_app.compress.speed import measure_speed
from serve_app.compress.texts import read_tasks, read_texts, sequences_of
from serve_app.errors import ConfigError
from serve_app.training.csv_rows import read_csv

_MAX_SEQUENCE_TOKENS = 512


def run_evaluate(arguments: argparse.Namespace) -> int:
    """Run the command; gives the exit status. Raises ConfigError."""
    names = ("model_name", "original_name", "json")
    if is_url(arguments.model) or is_url(arguments.original):
        return _compare_served(arguments)
    given = [name for name in names if getattr(arguments, name) is not None]
    if given:
        raise ConfigError(f"--{given[0].replace('_', '-')} has no effect without a URL; leave it out")
    return measure(arguments, Path(arguments.model), Path(arguments.original))


def _compare_served(arguments: argparse.Namespace) -> int:
    texts = read_texts(arguments.texts)[: arguments.max_sequences]
    examples = [] if arguments.tasks is None else read_tasks(arguments.tasks)
    if arguments.max_tokens is not None:
        raise ConfigError("--max-tokens has no effect on a URL, whose texts stay whole; give shorter ones")
    original = open_model(arguments.original, arguments.original_name)
    model = open_model(arguments.model, arguments.model_name)
    comparison = compare_served(original, model, texts, examples, has_speed=arguments.speed)
    print(describe(comparison))
    if arguments.json is not None:
        arguments.json.write_text(as_json(comparison))
    return 0


def measure(arguments: argparse.Namespace, directory: Path, original_directory: Path) -> int:
    """Measure a model beside its original, write its report and show it; gives the exit status. Raises ConfigError."""
    if is_module(original_directory):
        return _measure_module(arguments, directory, original_directory)
    if is_encoder(read_checkpoint(original_directory, ARCHITECTURES)):
        raise ConfigError(f"{original_directory} is an encoder; eval measures models that generate, and plain modules")
    texts = read_texts(arguments.texts)
    examples = None if arguments.tasks is None else read_tasks(arguments.tasks)
    original, model = LocalModel(original_directory), LocalModel(directory)
    _check_comparable(original, model)
    max_tokens = arguments.max_tokens or _MAX_SEQUENCE_TOKENS
    longest = min(max_tokens, original.spec.default_max_tokens or max_tokens)
    sequences = take(sequences_of(texts, original.tokenizer, longest), arguments.max_sequences)
    if not sequences:
        raise ConfigError(f"{arguments.texts} holds no text of two tokens; give longer ones")
    num_weights = count_weights(original.spec)
    measured = Measured(
        size=measure_size(directory, num_weights),
        original_size=measure_size(original_directory, num_weights),
        quality=compare(original, model, sequences),
        tasks=[] if examples is None else score_tasks(model, examples, MAX_ANSWER_TOKENS),
        original_tasks=[] if examples is None else score_tasks(original, examples, MAX_ANSWER_TOKENS),
        speed=measure_speed(model) if arguments.speed else [],
        original_speed=measure_speed(original) if arguments.speed else [],
    )
    write_report(directory, original_directory, arguments.texts, measured)
    print((directory / "report.md").read_text())
    return 0


def _measure_module(arguments: argparse.Namespace, directory: Path, original_directory: Path) -> int:
    if arguments.tasks is not None or arguments.speed:
        raise ConfigError("--tasks and --speed have no effect on a plain module; leave them out")
    rows = read_csv(arguments.texts, arguments.text_column, arguments.label_column).rows
    num_weights = count_module_weights(original_directory)
    sizes = [measure_module_size(one, num_weights) for one in (original_directory, directory)]
    labelling = label_texts(original_directory, directory, rows)
    write_label_report(directory, original_directory, arguments.texts, (sizes[0], sizes[1]), labelling)
    print((directory / "report.md").read_text())
    return 0


def _check_comparable(original: LocalModel, model: Scored) -> None:
    text = "Ünïcode, 12 words and a 😀."
    if original.tokenizer.encode(text) != model.tokenizer.encode(text):
        raise ConfigError("the two models have different tokenizers, so their tokens cannot be compared")
