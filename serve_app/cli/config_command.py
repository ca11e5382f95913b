"""`rayshard config`: a Serve file to start from, or all there is to set. No Ray, no torch."""

import argparse
import re

from pydantic import ValidationError

from serve_app.cli.config_markdown import markdown
from serve_app.cli.config_options import DEMO_SOURCE
from serve_app.cli.config_starter import starter
from serve_app.config.model import ModelConfig
from serve_app.errors import ConfigError
from serve_app.planning.setting_problems import problems_of


def run_config(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Print it; gives the exit status. Raises ConfigError where no file can be made of what was asked for."""
    if arguments.markdown:
        print(markdown(parser), end="")
        return 0
    source: str | None = arguments.model
    if source is None and arguments.task != "generate":
        raise ConfigError(f"--task {arguments.task} needs --model SOURCE: the demo model generates")
    name = arguments.name or _name_of(source)
    _check({"name": name, "source": source or DEMO_SOURCE, "task": arguments.task})
    print(starter(name, source or DEMO_SOURCE, arguments.task, arguments.device), end="")
    return 0


def _name_of(source: str | None) -> str:
    if source is None:
        return "demo"
    last = source.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:64] or "model"


def _check(values: dict[str, str]) -> None:
    try:
        ModelConfig.model_validate(values)
    except ValidationError as error:
        options = {"source": "--model", "name": "--name"}
        found = [(options.get(one.where, one.where), one.message) for one in problems_of(error, ModelConfig, "")]
        raise ConfigError("\n".join(f"{option}: {message}" for option, message in found)) from error
