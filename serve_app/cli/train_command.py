"""`rayshard train`: a text classifier from a CSV file."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch

from serve_app.config.environment import prepare_ray_client
from serve_app.errors import ConfigError
from serve_app.training.csv_rows import read_csv
from serve_app.training.fitting import Best, TrainingSettings
from serve_app.training.text_training import PreparedTraining, describe, evaluate, train
from serve_app.training.worker_options import wants_workers


def _runner(arguments: argparse.Namespace) -> Callable[[PreparedTraining], Best] | None:
    """What trains on several workers; None: this process does. Raises ConfigError."""
    if not wants_workers(arguments.num_workers, arguments.storage):
        return None
    try:
        from serve_app.training.ray_training import train_on_workers  # only with the extra `train`
    except ImportError as error:
        raise ConfigError(f"--num-workers needs Ray Train ({error}); run: pip install 'rayshard[train]'") from error
    is_local = prepare_ray_client()
    return lambda prepared: train_on_workers(
        prepared, arguments.num_workers, arguments.storage, arguments.threads, is_local=is_local
    )


def run_training(arguments: argparse.Namespace) -> int:
    """Train, say how good it is; gives the exit status."""
    directory: Path = arguments.directory
    if directory.exists() and any(directory.iterdir()) and not arguments.overwrite:
        raise ConfigError(f"{directory} is not empty; choose another directory, or give --overwrite")
    runner = _runner(arguments)
    torch.set_num_threads(arguments.threads)
    chosen = {
        one.name: getattr(arguments, one.name) for one in fields(TrainingSettings) if hasattr(arguments, one.name)
    }
    given = read_csv(arguments.file, arguments.text_column, arguments.label_column)
    held_out = None
    if arguments.held_out is not None:  # its mistakes are told before an hour of training
        held_out = read_csv(arguments.held_out, arguments.text_column, arguments.label_column).rows
    if given.num_blank:
        print(f"{given.num_blank} rows without a text are left out", file=sys.stderr)
    print(describe(train(given.rows, directory, TrainingSettings(**chosen), runner)))
    if held_out is not None:
        share = evaluate(directory, held_out)
        print(f"accuracy on {len(held_out)} held-out rows {share:.3f}")
    print(f"model in {directory}; serve it with task: classify, architecture: and source: {directory}")
    return 0
