"""The options of `rayshard config`."""

import argparse

DEMO_SOURCE = "examples/demo_model/model"  # from the repository's folder
TASKS = ("generate", "embed", "classify", "score", "predict")


def add_config_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command `config`."""
    parser = commands.add_parser("config", help="print a Serve file to start from, every setting explained in it")
    source = "a directory or a hub id; without it the demo model, from the repository's folder"
    parser.add_argument("--model", metavar="SOURCE", help=source)
    parser.add_argument("--name", metavar="NAME", help="what clients write as model; without it, taken from the source")
    parser.add_argument("--task", choices=TASKS, default="generate", help="what the model does (default: %(default)s)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what computes (default: %(default)s)")
    everything = "print docs/configuration.md instead: all settings, options and environment variables"
    parser.add_argument("--markdown", action="store_true", help=everything)
