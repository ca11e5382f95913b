"""A Serve file to start from: what was asked for, and every other setting as a comment with its default.

A line whose `#` has no blank behind it is a setting: without the `#`, and that of the group it is in, it is set.
"""

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

import yaml
from pydantic import ValidationError

from serve_app.cli.config_markdown import shown_value
from serve_app.cli.setting_facts import Setting, settings_of
from serve_app.config.base import ConfigModel
from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig
from serve_app.planning.serve_options import (
    GATEWAY_IMPORT_PATH,
    MODEL_IMPORT_PATH,
    AutoscalingOptions,
    HttpOptions,
)
from serve_app.planning.setting_problems import problems_of

_WIDTH = 120
_HEAD = """\
# A Serve file for rayshard. To set what is commented out, take away the `#`, and that of the group that it is in.
# `rayshard validate FILE` checks it, `rayshard plan FILE` says what it takes, `rayshard serve FILE` serves it.
# docs/configuration.md has each setting's bounds, and Ray Serve's own options, which are left out here."""

Place = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Group:
    """Settings on their way into the file."""

    root: type[ConfigModel]  # whose checks say what is refused
    given: dict[str, object]  # what is set there
    path: Place = ()  # of the group within it
    indent: str = ""


def starter(name: str, source: str, task: str, device: str) -> str:
    """The file, for one model; a `source` that is relative is meant from where the file will be."""
    model: dict[str, object] = {"name": name, "source": source, "task": task}
    if device != "cpu":
        model["device"] = {"type": device}
    lines = [_HEAD, "http_options:"]
    lines += _lines(HttpOptions, _Group(HttpOptions, {"host": "127.0.0.1", "port": 8000}, indent="  "))
    lines += ["", "applications:", *_application("gateway", "/", GATEWAY_IMPORT_PATH, "HTTP and gRPC, for all models")]
    lines += _lines(GatewayConfig, _Group(GatewayConfig, {"queue_timeout_s": 30.0}, indent="      "))
    lines += ["", *_application(name, "null", MODEL_IMPORT_PATH, "reached through the Gateway only")]
    lines += _lines(ModelConfig, _Group(ModelConfig, model, indent="      "))
    lines += _copies()
    return "\n".join(lines) + "\n"


def _application(name: str, route: str, import_path: str, remark: str) -> list[str]:
    return [
        f"  - name: {_yaml(name)} # {remark}",
        f"    route_prefix: {route}",
        f"    import_path: {import_path}",
        "    args:",
    ]


def _copies() -> list[str]:
    """How many copies there are: Serve's options, of which these are for everybody."""
    lines = [
        "    # Copies of the model, each with all of its shards: so many, or as many as the load asks for.",
        "    #deployments:",
        "      #- name: Router",
        "        #num_replicas: 1",
        "    #deployments:",
        "      #- name: Router",
        "        #autoscaling_config:",
    ]
    for setting in settings_of(AutoscalingOptions):
        if "Deprecated" not in setting.meaning and (setting.default is not None or setting.unit == "requests"):
            lines += [*_comment(setting, "          "), f"          #{setting.name}: {_yaml(setting.default)}"]
    return lines


def _lines(model: type[ConfigModel], group: _Group) -> Iterator[str]:
    for setting in settings_of(model):
        if setting.kind.startswith("what Serve takes"):
            continue
        path = (*group.path, setting.name)
        value = _at(group.given, path)
        yield from _comment(setting, group.indent)
        if setting.group is not None and not setting.is_many:
            yield from _lines_of_group(setting, value is not None, replace(group, path=path))
        elif value is not None:
            yield f"{group.indent}{setting.name}: {_yaml(value)}"
        else:
            default = _sample(setting) if setting.is_required else setting.default
            yield from _refusal(group, model, path, default)
            yield f"{group.indent}#{setting.name}: {_yaml(default)}"


def _lines_of_group(setting: Setting, is_set: bool, group: _Group) -> Iterator[str]:
    assert setting.group is not None
    yield f"{group.indent}{'' if is_set else '#'}{setting.name}:"
    yield from _lines(setting.group, replace(group, indent=group.indent + "  "))


def _comment(setting: Setting, indent: str) -> list[str]:
    text = setting.first_sentence
    if not setting.kind.startswith(("text", "list", "group", "true")) and "`" in setting.kind:
        text += f" One of {setting.kind.replace('`', '').removesuffix(' or null')}."
    if setting.group is not None and setting.is_many:
        text += f" Each entry: {', '.join(one.name for one in settings_of(setting.group))}."
    if setting.unit is not None and setting.unit != "none":
        text += f" [{setting.unit}]"
    return _wrapped(text, indent)


def _refusal(group: _Group, model: type[ConfigModel], path: Place, default: object) -> list[str]:
    """What the setting is refused with when it is set to its default in this file, with what its group must have."""
    is_left_out = group.root.model_fields[path[0]].default is None
    if default is None and len(path) > 1 and is_left_out:  # of a group that is not there either
        return []
    values = group.given
    for sibling in settings_of(model) if len(path) > 1 else ():
        if sibling.is_required and _at(values, (*path[:-1], sibling.name)) is None:
            values = _with(values, (*path[:-1], sibling.name), _sample(sibling))
    try:
        group.root.model_validate(_with(values, path, default))
    except ValidationError as error:
        told = [one.message for one in problems_of(error, group.root, "") if not one.message.startswith("missing")]
        return _wrapped(f"Not here: {'; '.join(told)}", group.indent) if told else []
    return []


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _sample(setting: Setting) -> object:
    """A value for a setting that has no default."""
    if setting.kind.startswith("integer"):
        return 1
    return setting.kind.split("`")[1] if setting.kind.startswith("`") else "..."


def _at(values: object, path: Place) -> object:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def _with(values: dict[str, object], path: Place, value: object) -> dict[str, object]:
    """A copy of nested groups, with one value set."""
    first, *rest = path
    if not rest:
        return {**values, first: value}
    inner = values.get(first)
    return {**values, first: _with(inner if isinstance(inner, dict) else {}, tuple(rest), value)}


def _yaml(value: object) -> str:
    """A value on one line, read by YAML as what it is."""
    if isinstance(value, ConfigModel):
        value = value.model_dump()
    if value is None or isinstance(value, bool | float):
        return shown_value(value)
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n").removesuffix("\n...")
