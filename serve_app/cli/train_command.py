"""`rayshard train`: a text classifier from a CSV file. torch is loaded when there is something to train on."""

import argparse
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.checkpoints.own_modules import TEXT_CLASSIFIER
from serve_app.config.environment import prepare_ray_client
from serve_app.config.training import TrainingSettings, check_training
from serve_app.errors import ConfigError
from serve_app.training.csv_rows import LabelledText, read_csv
from serve_app.training.split_texts import SplitTexts, split_texts, unknown_warning
from serve_app.training.worker_options import wants_workers

if TYPE_CHECKING:
    from serve_app.training.fitting import Best
    from serve_app.training.text_training import PreparedTraining


def run_training(arguments: argparse.Namespace) -> int:
    """Train, say how good it is; gives the exit status. Raises ConfigError, if it can before torch is loaded."""
    settings = TrainingSettings(**{one.name: getattr(arguments, one.name) for one in fields(TrainingSettings)})
    check_training(settings, arguments.threads)
    has_workers = wants_workers(arguments.num_workers, arguments.storage)
    directory: Path = arguments.directory
    _check_directory(directory, can_replace=arguments.overwrite)
    given = read_csv(arguments.file, arguments.text_column, arguments.label_column)
    held_out: list[LabelledText] = []
    if arguments.held_out is not None:  # its mistakes are told before an hour of training
        held_out = read_csv(arguments.held_out, arguments.text_column, arguments.label_column).rows
    if given.num_blank:
        print(f"{given.num_blank} rows without a text are left out", file=sys.stderr)
    texts = split_texts(given.rows, settings)
    for rows, which in ((texts.validation, "validation"), (held_out, "held-out")):
        warning = unknown_warning(texts.tokenizer, rows, which)
        if warning is not None:
            print(warning, file=sys.stderr)
    spare = sorted({row.label for row in held_out} - set(texts.labels))
    if spare:
        print(
            f"warning: the held-out label {spare[0][:80]!r} is not in {arguments.file}; its rows count as wrong",
            file=sys.stderr,
        )
    _train(texts, held_out, settings, arguments, has_workers=has_workers)
    print(f"model in {directory}; to serve it, put this among the applications of a Serve file:\n{yaml_of(directory)}")
    return 0


def yaml_of(directory: Path) -> str:
    """The application that serves a trained model, as a Serve file has it."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", directory.resolve().name).strip("-._")[:64] or "classifier"
    source = str(directory.resolve()).replace("'", "''")
    return f"""
  - name: {name}
    route_prefix: null
    import_path: serve_app.app:build_model
    args:
      name: {name}
      source: '{source}'
      task: classify
      architecture: {TEXT_CLASSIFIER}
"""


def _check_directory(directory: Path, *, can_replace: bool) -> None:
    """Make the directory. Raises ConfigError where the model cannot be written."""
    if directory.is_dir() and any(directory.iterdir()) and not can_replace:
        raise ConfigError(f"{directory} is not empty; choose another directory, or give --overwrite")
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be made ({error.strerror}); choose another directory") from error
    if not os.access(directory, os.W_OK | os.X_OK):
        raise ConfigError(f"{directory} cannot be written to; choose another directory")


def _train(
    texts: SplitTexts,
    held_out: list[LabelledText],
    settings: TrainingSettings,
    arguments: argparse.Namespace,
    *,
    has_workers: bool,
) -> None:
    """Load torch, train and score."""
    import torch

    from serve_app.training.text_training import describe, evaluate, train_on

    torch.set_num_threads(arguments.threads)
    runner = _runner(arguments) if has_workers else None
    print(describe(train_on(texts, arguments.directory, settings, runner)))
    if held_out:
        share = evaluate(arguments.directory, held_out)
        print(f"accuracy on {len(held_out)} held-out rows {share:.3f}")


def _runner(arguments: argparse.Namespace) -> "Callable[[PreparedTraining], Best]":
    """What trains on several workers. Raises ConfigError without Ray Train."""
    try:
        from serve_app.training.ray_training import train_on_workers  # only with the extra `train`
    except ImportError as error:
        raise ConfigError(f"--num-workers needs Ray Train ({error}); run: pip install '.[train]'") from error
    is_local = prepare_ray_client()
    return lambda prepared: train_on_workers(
        prepared, arguments.num_workers, arguments.storage, arguments.threads, is_local=is_local
    )
