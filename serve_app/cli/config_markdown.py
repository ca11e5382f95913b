"""docs/configuration.md: every setting, option and variable, from where the code has them."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from pydantic import ValidationError

from serve_app.cli.refusal_texts import raised_texts, refusals_of, reported_texts
from serve_app.cli.setting_facts import Setting, settings_of
from serve_app.config.base import ConfigModel
from serve_app.config.gateway import GatewayConfig
from serve_app.config.graph import GraphConfig
from serve_app.config.model import ModelConfig
from serve_app.config.model_set import ModelSetConfig
from serve_app.config.variables import VARIABLES
from serve_app.gateway import key_file
from serve_app.planning import cluster, device_profiles, router_problems, serve_file
from serve_app.planning.cluster import ClusterConfig
from serve_app.planning.device_profiles import DeviceProfile
from serve_app.planning.serve_options import ApplicationOptions, DeploymentOptions, ServeOptions
from serve_app.planning.setting_problems import problems_of

GROUPS: tuple[tuple[str, type[ConfigModel]], ...] = (  # where each group stands in a file, and what it holds
    ("The Serve file", ServeOptions),
    ("An entry of `applications`", ApplicationOptions),
    ("An entry of `deployments`", DeploymentOptions),
    ("`args` of the Gateway", GatewayConfig),
    ("`args` of a model", ModelConfig),
    ("`args` of several models in one process", ModelSetConfig),
    ("`args` of a graph", GraphConfig),
    ("Devices: `--devices FILE`, each entry by its name", DeviceProfile),
    ("Nodes: `--cluster FILE`", ClusterConfig),
)
_READERS: dict[type[ConfigModel], Callable[[], list[str]]] = {  # what checks a whole file beside its settings
    ServeOptions: partial(reported_texts, serve_file, router_problems),
    DeviceProfile: partial(raised_texts, device_profiles),
    ClusterConfig: partial(raised_texts, cluster),
}
_WRONG: tuple[tuple[str, type[ConfigModel], dict[str, object]], ...] = (  # one mistake of each kind
    ("no setting", ModelConfig, {"max_modle_len": 1024}),
    ("left out", ModelConfig, {"source": None}),
    ("not an integer", ModelConfig, {"max_model_len": "8k"}),
    ("not a number", GatewayConfig, {"queue_timeout_s": "30 s"}),
    ("not text", ModelConfig, {"revision": 7}),
    ("not true or false", GatewayConfig, {"open_metrics": "yes"}),
    ("not a size", GatewayConfig, {"max_request_bytes": "8 megs"}),
    ("none of the choices", ModelConfig, {"dtype": "fp16"}),
    ("not a group", ModelConfig, {"engine": 64}),
    ("not a list", ModelConfig, {"preprocessing": "lowercase"}),
    ("below its bounds", ModelConfig, {"max_model_len": 0}),
    ("above its bounds", GatewayConfig, {"tokenizer_threads": 1000}),
    ("not finite", GatewayConfig, {"body_timeout_s": float("inf")}),
    ("a list without an entry", GatewayConfig, {"allowed_hosts": []}),
)
_HEAD = """<!-- Written by `rayshard config --markdown` from the texts below each field in the code; change those. -->
# Every setting

`rayshard config` prints a Serve file to start from, with all of ours as comments; `rayshard validate FILE` names every
mistake in one, with the value and the way out. How settings go together for a load of yours: [tuning.md](tuning.md);
what messages mean: [troubleshooting.md](troubleshooting.md).

A setting without a default has to be given. A size is a number of bytes, or text such as `256MiB`: B, KB, MB, GB, TB
are powers of 1000, KiB, MiB, GiB, TiB of 1024. YAML reads a bare `on`, `off`, `no` or `yes` as true or false: put one
that is meant as text in quotes (for `auto`, `off` it does not matter). "What Serve takes" is not looked at here: Ray
Serve checks it when it starts. A setting that can have no effect where it is given is refused.
"""


def markdown(parser: argparse.ArgumentParser) -> str:
    """The whole file; the parser is that of `rayshard`."""
    parts = [_HEAD, _mistakes(), *_groups(), _key_file(), _recipe(), _variables(), *_commands(parser)]
    return "\n".join(parts)


def all_groups() -> list[tuple[str, type[ConfigModel]]]:
    """Each group of settings once, with the heading that it has: those that stand in a file, and those below them."""
    found: dict[type[ConfigModel], str] = {}
    for title, model in GROUPS:
        _add_group(title, model, found)
    return [(title, model) for model, title in found.items()]


def _add_group(title: str, model: type[ConfigModel], found: dict[type[ConfigModel], str]) -> None:
    if model in found:
        return
    found[model] = title
    for setting in settings_of(model):
        if setting.group is not None:
            entry = f"An entry of `{setting.name}`" if setting.is_many else f"`{setting.name}`"
            owner = title.removeprefix("`args` of ").partition(":")[0]
            _add_group(f"{entry}, of {owner[0].lower()}{owner[1:]}", setting.group, found)


def _groups() -> Iterator[str]:
    for title, model in all_groups():
        summary = " ".join((model.__doc__ or "").split())
        yield f"## {title}\n\n{summary}\n"
        yield _table(("setting", "what it is", "type", "default"), map(_row, settings_of(model)))
        refusals = [*refusals_of(model), *_READERS.get(model, list)()]
        if refusals:
            yield f"\n{_refused(refusals)}"
        yield ""


def _refused(texts: list[str]) -> str:
    lines = [f"- {_code(text)}" for text in texts]
    return "\n".join(["Refused with, beside what its types and bounds say:\n", *lines])


def _row(setting: Setting) -> tuple[str, str, str, str]:
    notes = [setting.unit if setting.unit != "none" else None, setting.bounds]
    kind = ", ".join([setting.kind, *filter(None, notes)])
    default = "" if setting.is_required else "below" if _is_group(setting) else f"`{shown_value(setting.default)}`"
    return f"`{setting.name}`", setting.meaning, kind, default


def _is_group(setting: Setting) -> bool:
    return isinstance(setting.default, ConfigModel)


def shown_value(value: object) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _mistakes() -> str:
    rows = []
    for kind, model, values in _WRONG:
        given: dict[str, object] = {"name": "chat", "source": "org/chat", **values} if model is ModelConfig else values
        if kind == "left out":
            del given["source"]
        try:
            model.model_validate(given)
        except ValidationError as error:
            rows += [(kind, _code(str(problem))) for problem in problems_of(error, model, "")]
    return (
        "## What is wrong with a value\n\n" + _table(("a value that is", "is refused with, for example"), rows) + "\n"
    )


def _key_file() -> str:
    rows = [(f"`{name}`", meaning, default) for name, meaning, default in key_file.KEY_OPTIONS]
    form = "One key on each line: an id, `sha256:SALT:HASH`, and options, as `rayshard key new` writes it"
    table = _table(("option", "what it is", "without it"), rows)
    refused = _refused(raised_texts(key_file))
    return f"## The file of API keys\n\n{form} ([api-keys.md](api-keys.md)).\n\n{table}\n\n{refused}\n"


def _recipe() -> str:
    return (
        "## `recipe.yaml` of a compressed model\n\nWritten by `rayshard compress`, and read by `rayshard compress "
        "inspect` and by the next step: nothing to set. `steps` is a list, the first step first; each has `step`, the "
        "options of that command as they were, `source_sha256` by file, and `versions` of packages.\n"
    )


def _variables() -> str:
    rows = [(f"`{one.name}`", one.meaning, one.default or "") for one in VARIABLES]
    return "## Environment variables\n\n" + _table(("variable", "what it does", "default"), rows) + "\n"


def _commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield "## Commands\n"
    for name, command in _leaves(parser):
        rows = [_option(action) for action in command._actions if not isinstance(action, argparse._HelpAction)]
        yield f"### `rayshard {name}`\n"
        yield _table(("option", "what it is", "default"), rows) + "\n"


def _leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    choices = [one.choices for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not choices:
        yield name.strip(), parser
    for commands in choices:
        for word, command in commands.items():
            yield from _leaves(command, f"{name} {word}")


def _option(action: argparse.Action) -> tuple[str, str, str]:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    choices = None if action.choices is None else " | ".join(map(str, action.choices))
    value = choices or metavar or ""
    name = f"{', '.join(action.option_strings)} {value}".strip() if action.option_strings else value
    meaning = (action.help or "").partition(" (default:")[0]
    has_default = action.default not in (None, [], argparse.SUPPRESS) and action.default is not False
    default = f"`{shown_value(action.default)}`" if has_default else ""
    if action.required and action.option_strings:
        default = "has to be given"
    return _code(name), meaning, default


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in row] for row in lines]
    return "\n".join(f"| {' | '.join(row)} |".replace("  |", " |") for row in cells)


def _code(text: str) -> str:
    fence = "``" if "`" in text else "`"
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"
