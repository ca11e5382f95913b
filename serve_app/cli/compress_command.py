"""`rayshard compress`: quantize, prune, distill, eval, inspect."""

import argparse

import torch

from serve_app.cli.compress_distill import run_distill
from serve_app.cli.compress_inspect import run_inspect
from serve_app.cli.compress_measure import run_evaluate
from serve_app.cli.compress_prune import run_prune
from serve_app.cli.compress_quantize import run_quantize


def run_compress(arguments: argparse.Namespace) -> int:
    """Run a subcommand; gives the exit status. Raises ConfigError."""
    torch.set_num_threads(arguments.threads)
    commands = {
        "quantize": run_quantize,
        "prune": run_prune,
        "distill": run_distill,
        "eval": run_evaluate,
        "inspect": run_inspect,
    }
    return commands[arguments.step](arguments)
