"""`rayshard key new`: an API key, and its line for the file that the Gateway reads."""

import argparse
import os
import sys
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.gateway.key_file import new_key, read_key_file

_LIMITS = {
    "requests_per_minute": "requests in a minute",
    "tokens_per_minute": "tokens of prompts and answers in a minute",
    "concurrency": "requests open at once",
}


def add_key_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `key` and its options."""
    key = commands.add_parser("key", help="make API keys")
    actions = key.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key: shown once, kept in the file by its hash")
    new.add_argument("file", type=Path, metavar="FILE", help="api_keys_file of the Gateway; made when it is not there")
    new.add_argument("--name", required=True, help="whose it is: what the log shows")
    new.add_argument("--models", metavar="A,B", help="the models that it may use; without it: all")
    for limit, meaning in _LIMITS.items():
        new.add_argument(f"--{limit.replace('_', '-')}", type=int, metavar="N", help=f"{meaning}; without it: any")
    new.add_argument("--best-priority", type=int, metavar="N", help="the lowest its requests may ask for; without it 0")
    new.add_argument("--admin", action="store_true", help="it may read /metrics")


def make_key(arguments: argparse.Namespace) -> int:
    """Make a key, say it, and write its line; gives the exit status."""
    try:
        entries = read_key_file(arguments.file) if arguments.file.exists() else {}
        if any(entry.name == arguments.name for entry in entries.values()):
            raise ConfigError(f"{arguments.file} has a key of name={arguments.name}; choose another name")
        key, line = new_key(_options(arguments))
        _append(arguments.file, line)
    except ConfigError as error:
        print(error.message, file=sys.stderr)
        return 1
    print(key)
    print(f"the line above is shown this once; its hash is in {arguments.file}", file=sys.stderr)
    return 0


def _options(arguments: argparse.Namespace) -> str:
    words = [f"name={arguments.name}"]
    if arguments.models is not None:
        words.append(f"models={arguments.models}")
    given = ("best_priority", *_LIMITS)
    words += [f"{name}={getattr(arguments, name)}" for name in given if getattr(arguments, name) is not None]
    return " ".join([*words, *(["admin"] if arguments.admin else [])])


def _append(path: Path, line: str) -> None:
    """One write, of whole lines, into a file that its owner alone may read."""
    try:
        content = path.read_bytes() if path.exists() else b""
        prefix = b"\n" if content and not content.endswith(b"\n") else b""
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, prefix + f"{line}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror})") from error
