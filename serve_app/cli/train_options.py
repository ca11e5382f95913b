"""The options of `rayshard train`; no torch."""

import argparse
from pathlib import Path

from serve_app.config.training import training_settings


def add_train_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Its files, columns and settings."""
    training = commands.add_parser("train", help="train a text classifier on a CSV file")
    training.add_argument("file", type=Path, metavar="CSV", help="UTF-8, with a header line")
    training.add_argument("directory", type=Path, metavar="DIRECTORY", help="where the model is written")
    _add_named(training, "--text-column", "text", "of the CSV file")
    _add_named(training, "--label-column", "label", "of the CSV file")
    training.add_argument("--held-out", type=Path, metavar="CSV", help="score the model on these rows in the end")
    training.add_argument("--overwrite", action="store_true", help="write into a directory that is not empty")
    training.add_argument(
        "--threads", type=int, default=1, metavar="N", help="of torch; with one, the same bytes again (default: 1)"
    )
    training.add_argument(
        "--num-workers",
        type=int,
        default=1,
        metavar="N",
        help="train data-parallel on a Ray cluster (RAY_ADDRESS), or on this machine (default: 1, without Ray)",
    )
    training.add_argument(
        "--storage", metavar="PATH", help="a folder or URI that all nodes of a cluster reach, for snapshots"
    )
    for setting in training_settings():
        training.add_argument(
            setting.option,
            type=type(setting.default),
            default=setting.default,
            metavar="N" if isinstance(setting.default, int) else "X",
            help=f"{setting.meaning}; {setting.bounds} (default: {setting.default:g})",
        )


def _add_named(parser: argparse.ArgumentParser, option: str, default: str, meaning: str) -> None:
    parser.add_argument(option, default=default, metavar="NAME", help=f"{meaning} (default: {default})")
