"""docs/tuning.md and docs/troubleshooting.md: settings, commands and messages that they name are there in the code."""

import argparse
import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from serve_app.cli.config_markdown import all_groups
from serve_app.cli.main import build_parser
from serve_app.cli.setting_facts import Setting, settings_of
from serve_app.config.model import ModelConfig
from serve_app.config.variables import VARIABLES
from serve_app.gateway.key_file import KEY_OPTIONS

ROOT = Path(__file__).parents[3]
DOCS = ("tuning.md", "troubleshooting.md")
COMMANDS = ("curl ", "pip ", "ss ", "hf ", "ray ", "unset ", "dmesg")
HEADERS = ("Authorization: ", "Content-Type: ", "Retry-After", "x-request-")
FOREIGN = (*COMMANDS, *HEADERS, "/", "~/", ".rayshard/", "{")
NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)+|[a-z_]+(?:\.[a-z_]+)+")
VALUE = re.compile(r"([a-z_]+): (.+)")


def spans_of(name: str) -> list[str]:
    """What stands in code font, blocks left out."""
    text = re.sub(r"```.*?```", "", (ROOT / "docs" / name).read_text(), flags=re.DOTALL)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


@cache
def trees() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(path.read_text()) for path in sorted((ROOT / "serve_app").rglob("*.py")))


@cache
def texts() -> tuple[str, ...]:
    """Every text of the source, with … for what is put into it."""
    found = set()
    for tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(re.sub(r"%[.0-9]*[a-z]", "…", node.value))
    return tuple(text.replace("`", "") for text in found)


@cache
def settings() -> dict[str, list[Setting]]:
    found: dict[str, list[Setting]] = {}
    for _title, model in all_groups():
        for setting in settings_of(model):
            found.setdefault(setting.name, []).append(setting)
    return found


@cache
def names() -> frozenset[str]:
    """Settings, options of keys and commands, metrics, fields of answers, words such as kinds of errors."""
    fields = {
        ast.unparse(node.target)
        for tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    options = {name for name, _meaning, _default in KEY_OPTIONS}
    builders = {node.name for tree in trees() for node in tree.body if isinstance(node, ast.FunctionDef)}
    return frozenset({*settings(), *fields, *options, *builders, *texts(), *(one.name for one in VARIABLES)})


def is_quoted(span: str) -> bool:
    """Whether a text of the source is that, or holds it."""
    pattern = re.compile(".*".join(map(re.escape, span.split("…"))))
    return any(pattern.search(text) for text in texts())


def command_problem(span: str) -> str | None:
    """What of a command line there is not."""
    parser = build_parser()
    for word in span.split()[1:]:
        commands = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
        if commands:
            if word not in commands[0].choices:
                return f"no command {word}"
            parser = commands[0].choices[word]
        elif word.startswith("--") and word not in parser._option_string_actions:
            return f"no option {word}"
    return None


def problem_of(span: str) -> str | None:
    if span.startswith("rayshard "):
        return command_problem(span)
    if span.startswith("--"):
        known = {word for _name, parser in leaves(build_parser()) for word in parser._option_string_actions}
        return None if span.split()[0] in known else "no option"
    if span.startswith(("python -m ", "bench.")):
        module = span.removeprefix("python -m ").split()[0]
        return None if (ROOT / f"{module.replace('.', '/')}.py").is_file() else f"no module {module}"
    if span.startswith(FOREIGN):
        return None
    value = VALUE.fullmatch(span)
    if value is not None and value[1] in settings():
        choices = [one.kind for one in settings()[value[1]]]
        is_known = any("`" not in kind or f"`{value[2]}`" in kind for kind in choices)
        return None if is_known else f"{value[2]} is none of {choices}"
    if " " in span or "…" in span:
        return None if is_quoted(span) else "no such text in the source"
    if NAME.fullmatch(span):
        return None if {*span.split(".")} <= names() else "no such name"
    return None if span in names() or span.isdigit() else "no such word"


def leaves(parser: argparse.ArgumentParser, name: str = "") -> list[tuple[str, argparse.ArgumentParser]]:
    found = [(name, parser)]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                found += leaves(command, word)
    return found


@pytest.mark.parametrize("name", DOCS)
def test_what_stands_in_code_font_exists(name: str) -> None:
    spans = spans_of(name)
    assert len(spans) > 80
    wrong = {span: problem for span in spans if (problem := problem_of(span)) is not None}
    assert wrong == {}


@pytest.mark.parametrize(
    ("span", "problem"),
    [
        ("max_num_sequences", "no such name"),
        ("engine.max_seqs", "no such name"),
        ("compile: on", "on is none of ['`auto`, `off`']"),
        ("rayshard explain FILE", "no command explain"),
        ("rayshard validate --fast FILE", "no option --fast"),
        ("python -m bench.nothing", "no module bench.nothing"),
        ("the server is on holiday; try again …", "no such text in the source"),
        ("wombat", "no such word"),
    ],
)
def test_what_does_not_exist_is_found(span: str, problem: str) -> None:
    assert problem_of(span) == problem


@pytest.mark.parametrize("name", [*DOCS, "autoscaling.md"])
def test_yaml_in_them_is_right(name: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(), flags=re.DOTALL)
    for block in blocks:
        args = {"source": "/models/chat", **yaml.safe_load(block)["args"]}
        assert ModelConfig.model_validate(args).model_fields_set == set(args)


@pytest.mark.parametrize("name", [*DOCS, "configuration.md"])
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        aim = ROOT / "docs" / (path or name)
        assert aim.exists(), target
        heads = [
            re.sub(r"[^\w\s-]", "", head.lower()).strip() for head in re.findall(r"^#+ (.*)$", aim.read_text(), re.M)
        ]
        assert not anchor or anchor in [re.sub(r"\s", "-", head) for head in heads], target
