"""What settings are refused with, as the source has it: each text with … where a value stands."""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from serve_app.cli.setting_facts import settings_of
from serve_app.config.base import ConfigModel

_VALIDATORS = ("field_validator", "model_validator")


def refusals_of(model: type[ConfigModel]) -> list[str]:
    """What the checks of a group say, beside its bounds; those of groups below it are their own."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef) and _is_validator(node)]
    module = inspect.getmodule(model)
    assert module is not None
    found: list[str] = []
    for function in functions:
        found += _texts_in(function, module, _methods_below(model))
    for node in ast.walk(tree):  # Annotated[..., BeforeValidator(function)]
        if isinstance(node, ast.Name) and node.id.startswith(("_check", "_parse")):
            found += _texts_of_function(getattr(module, node.id, None), {})
    return list(dict.fromkeys(found))


def reported_texts(*modules: ModuleType) -> list[str]:
    """What the checks of a whole file, in these modules, add to its list of problems."""
    found: list[str] = []
    for function, call in (one for module in modules for one in _calls_in(module)):
        called = ast.unparse(call.func)
        if called.endswith("._add") or called == "Problem":
            found += _template(call.args[1], function)
    return _whole(found)


def raised_texts(module: ModuleType) -> list[str]:
    """What a module raises as ConfigError while it reads a file."""
    found: list[str] = []
    for function, call in _calls_in(module):
        if ast.unparse(call.func) == "ConfigError" and call.args:
            found += _template(call.args[0], function)
    return _whole(found)


def _calls_in(module: ModuleType) -> Iterator[tuple[ast.FunctionDef, ast.Call]]:
    """Each call with the function that it stands in."""
    functions = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        yield from ((function, node) for node in ast.walk(function) if isinstance(node, ast.Call))


def _whole(texts: list[str]) -> list[str]:
    """Each text once, without those that others complete."""
    return [text for text in dict.fromkeys(texts) if len(re.findall(r"\w+", text)) > 2]


def _is_validator(node: ast.FunctionDef) -> bool:
    return any(ast.unparse(decorator).startswith(_VALIDATORS) for decorator in node.decorator_list)


def _methods_below(model: type[ConfigModel]) -> dict[str, FunctionType]:
    """Methods of the groups that a group holds, which its checks may call."""
    groups = [setting.group for setting in settings_of(model) if setting.group is not None]
    return {name: one for group in groups for name, one in vars(group).items() if isinstance(one, FunctionType)}


def _texts_of_function(function: object, methods: dict[str, FunctionType]) -> list[str]:
    if not isinstance(function, FunctionType) or not function.__module__.startswith("serve_app."):
        return []
    module = inspect.getmodule(function)
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert module is not None
    return _texts_in(tree, module, methods) if isinstance(tree, ast.FunctionDef) else []


def _texts_in(function: ast.FunctionDef, module: ModuleType, methods: dict[str, FunctionType]) -> list[str]:
    """The texts that a function raises, gives as problems, or has others find."""
    gives_problems = function.returns is not None and ast.unparse(function.returns) == "str | None"
    found: list[str] = []
    for node in ast.walk(function):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            found += _template(node.exc.args[0], function)
        elif isinstance(node, ast.Return) and gives_problems and node.value is not None:
            found += _template(node.value, function)
        elif isinstance(node, ast.Call):
            called: Any = None
            if isinstance(node.func, ast.Name) and node.func.id != function.name:
                called = getattr(module, node.func.id, None)
            elif isinstance(node.func, ast.Attribute):
                called = methods.get(node.func.attr)
            found += _texts_of_function(called, {})
    return _whole(found)


def _template(node: ast.expr, function: ast.FunctionDef) -> list[str]:
    """The texts that an expression may be; names are looked up among what the function assigns."""
    if isinstance(node, ast.Constant):
        return [node.value] if isinstance(node.value, str) else []
    if isinstance(node, ast.IfExp):
        return [*_template(node.body, function), *_template(node.orelse, function)]
    if isinstance(node, ast.Name):
        return [text for value in _assigned(node.id, function) for text in _template(value, function)]
    if not isinstance(node, ast.JoinedStr):
        return []
    texts = [""]
    for part in node.values:
        endings = [part.value] if isinstance(part, ast.Constant) else _placeholder(part, function)
        texts = [text + str(ending) for text in texts for ending in endings]
    return texts


def _placeholder(part: ast.expr, function: ast.FunctionDef) -> list[str]:
    value = part.value if isinstance(part, ast.FormattedValue) else part
    if isinstance(value, ast.Name | ast.IfExp):
        found = _template(value, function)
        if len(found) == 1:
            return found
    return ["…"]


def _assigned(name: str, function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == name for one in node.targets):
            yield node.value
