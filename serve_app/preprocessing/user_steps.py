"""Classes of the user's as steps. Their exceptions are told by their kind alone: they may quote a request."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping

import msgspec
import numpy as np

from serve_app.errors import ConfigError, InternalError
from serve_app.preprocessing.arrays import to_array
from serve_app.preprocessing.text_steps import TextStep
from serve_app.types.chains import ChainValue, Redaction


class UserTextStep(TextStep):
    """A class, `package.module:Class`, that maps a text to a text."""

    def __init__(self, path: str, arguments: Mapping[str, object]) -> None:
        self._path = path
        self._call = _make(path, arguments)

    def change(self, text: str) -> str:
        """What the user's class makes of a text."""
        changed = run_users(self._path, self._call, text)
        if not isinstance(changed, str):
            raise InternalError(f"step {self._path} gave {type(changed).__name__}, not a text")
        return changed


class UserAnswerStep:
    """A class that maps what a model gives for an entry to an answer: anything that JSON can hold.

    It is called with the output's numbers [C] float32, with the labels and their scores, or with the named outputs,
    each an array, whichever stands before it.
    """

    takes, gives = "", "json"

    def __init__(self, path: str, arguments: Mapping[str, object]) -> None:
        self._path = path
        self._call = _make(path, arguments)

    def run(self, value: ChainValue) -> tuple[ChainValue, list[Redaction]]:
        """The answer."""
        given: object
        if value.numbers is not None:
            given = np.array(value.numbers, np.float32)
        elif value.labels is not None:
            given = {one.label: one.score for one in value.labels}
        else:
            assert value.tensors is not None
            given = {name: to_array(tensor) for name, tensor in value.tensors.items()}
        answer = run_users(self._path, self._call, given)
        try:
            return ChainValue(json=msgspec.json.encode(answer).decode()), []
        except (TypeError, ValueError, RecursionError):  # its message may quote the answer
            told = type(answer).__name__
        raise InternalError(f"step {self._path} gave {told} with something in it that JSON cannot hold")


def users_class_problem(path: str) -> str | None:
    """Why there is no such class, as far as can be told without importing it."""
    module_name, _, class_name = path.partition(":")
    try:
        found = importlib.util.find_spec(module_name) if class_name.isidentifier() else None
    except (ImportError, ValueError):
        found = None
    if found is None:
        return f"there is no module {module_name} to import a class from; install it, or correct the path"
    return None


def run_users(path: str, call: Callable[..., object], given: object) -> object:
    """What a user's class makes of a value. Raises InternalError."""
    try:
        return call(given)
    except Exception as error:
        kind = type(error).__name__
    raise InternalError(f"step {path} failed: {kind}")


def _make(path: str, arguments: Mapping[str, object]) -> Callable[..., object]:
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        raise ConfigError(f"{path} cannot be imported ({error}); install it, or correct the path") from error
    if not isinstance(found, type):
        raise ConfigError(f"{module_name} has no class {class_name}; correct the path")
    made: Callable[..., object] = found(**arguments)
    return made
