"""YAML read with care: what a parser would misread or choke on is a problem with its line."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from serve_app.planning.setting_problems import Problem, shown

_MAX_FILE_BYTES = 1024**2
_MAX_NESTING = 32
_MAX_YAML_EVENTS = 20_000
_MAX_ALIASES = 100


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file holds."""

    value: object  # None when it cannot be read
    problems: list[Problem]


def read_document(path: Path) -> Document:
    """The YAML at `path`, and all that is wrong with it before its settings are looked at."""
    problems: list[Problem] = []
    value: object = None
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many; a Serve file has at most {_MAX_FILE_BYTES}")
        text = path.read_bytes().decode("utf-8")
        _check_nesting(text)
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None or root.tag == "tag:yaml.org,2002:null":
            raise ValueError("empty file; begin with applications:")
        if _expanded_size(root, {}) > _MAX_YAML_EVENTS:
            raise ValueError(f"aliases repeat more than {_MAX_YAML_EVENTS} parts; write a plainer file")
        problems += [Problem(f"{path}, line {_line_of(node)}", message) for node, message in _node_problems(root)]
        value = loader.construct_document(root)
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read ({error.strerror}); give the path of a Serve file"))
    except UnicodeDecodeError as error:
        problems.append(Problem(str(path), f"byte {error.start} is not UTF-8; save the file as UTF-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        reason = error.problem or error.context
        problems.append(Problem(str(path), f"{line}not YAML ({reason}); mend the syntax there"))
    except (yaml.YAMLError, ValueError) as error:
        problems.append(Problem(str(path), " ".join(str(error).split())))
    return Document(value, problems)


def _check_nesting(text: str) -> None:
    # PyYAML's time grows with the square of open brackets, so those are counted before it sees them.
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if bracket in "[{" else max(depth - 1, 0)
        if depth > _MAX_NESTING:
            raise ValueError(f"more than {_MAX_NESTING} open brackets; nest less")
    depth = num_aliases = 0
    for num_events, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        num_aliases += isinstance(event, yaml.AliasEvent)
        if depth > _MAX_NESTING or num_events > _MAX_YAML_EVENTS or num_aliases > _MAX_ALIASES:
            raise ValueError(
                f"more than {_MAX_NESTING} levels, {_MAX_YAML_EVENTS} parts or {_MAX_ALIASES} aliases; "
                "write a plainer file"
            )


def _node_problems(root: yaml.Node) -> Iterator[tuple[yaml.Node, str]]:
    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        pending += reversed(_children(node))
        message = _scalar_problem(node) if isinstance(node, yaml.ScalarNode) else None
        if message is not None:
            yield node, message
        if isinstance(node, yaml.MappingNode):
            yield from _key_problems(node)


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    # An alias can only point at what stands before it, whose size is known, or at what surrounds it.
    if id(node) not in sizes:
        sizes[id(node)] = _MAX_YAML_EVENTS + 1  # stays so while inside: an alias to what surrounds it has no end
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for child in _children(node))
    return sizes[id(node)]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _key_problems(mapping: yaml.MappingNode) -> Iterator[tuple[yaml.Node, str]]:
    seen: set[str] = set()
    for key, _ in mapping.value:
        if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            yield key, f"key {shown(key.value)} is not text; put it in quotes"
        elif key.value in seen:
            yield key, f"key {shown(key.value)} is given twice in one place; keep one"
        else:
            seen.add(key.value)


def _scalar_problem(node: yaml.ScalarNode) -> str | None:
    text = shown(node.value)[1:-1]
    digits = node.value.lstrip("+-")
    kind = node.tag.removeprefix("tag:yaml.org,2002:")
    if kind not in ("str", "int", "float", "bool", "null", "merge"):
        return f"{text} reads as {kind} in YAML; put it in quotes"
    if kind in ("int", "float") and ":" in digits:
        return f"{text} reads as a number to base 60 in YAML; put it in quotes, or write the number out"
    if kind == "int" and re.fullmatch(r"0[0-7_]+|0b[01_]+", digits):
        return f"{text} reads as an octal or binary number in YAML; put it in quotes, or write the decimal number"
    if kind == "int" and len(digits) > 18:
        return f"{text} is too large a number; use at most 18 digits"
    if (
        kind == "str"
        and node.style is None
        and re.fullmatch(r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][+-]?[0-9]+|0[0-9]+", digits)
    ):
        return f"{text} reads as text in YAML, not as a number; put it in quotes, or write it like 1000.0"
    return None


def _line_of(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
