"""What `rayshard serve` says: where Ray is, where the models are, a request to try."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from serve_app.cli.ray_dashboard import LOOPBACK

if TYPE_CHECKING:
    from serve_app.planning.serve_file import ServeFile


def ray_text(dashboard_url: str, path: Path) -> str:
    """What a user sees when Ray's dashboard is up: where to look, and the commands that look and change."""
    command = shlex.quote(str(Path(sys.executable).with_name("rayshard")))
    return "\n".join(
        [
            f"Ray's dashboard is at {dashboard_url}. From another terminal:",
            f"  {command} status",
            f"  {command} deploy {shlex.quote(str(path))}",
        ]
    )


def draining_text(num_requests: int) -> str:
    """What a user sees while running requests end."""
    return f"Draining: {_requests(num_requests, 'runs', 'run')}; again to end at once"


def drained_text(num_left: int, drain_s: float) -> str:
    """What a user sees when nothing is waited for any more."""
    if num_left == 0:
        return "Stopping ..."
    return f"Stopping; {_requests(num_left, 'has', 'have')} not ended within {drain_s:g} s ..."


def ready_text(serve_file: "ServeFile", plan_text: str, log_path: Path) -> str:
    """What a user sees when the models answer: address, shards, a request to try."""
    address = base_url(serve_file)
    lines = ["", plan_text.strip(), "", f"Serving at {address}; log in {log_path}; Ctrl-C stops it."]
    if serve_file.gateway.api_keys_file is None and serve_file.http_host not in LOOPBACK:
        lines.append(f"Open to everybody who reaches {serve_file.http_host}: no api_keys_file is set for the Gateway.")
    if serve_file.models:
        route, example = _example_request(serve_file)
        body = json.dumps(example, ensure_ascii=True)
        url = f"{address}{route}"
        lines += ["Try it:", f"  curl {url} -H 'Content-Type: application/json' -d {shlex.quote(body)}"]
    return "\n".join(lines)


def base_url(serve_file: "ServeFile") -> str:
    """Where a client on this machine reaches the Gateway."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(serve_file.http_host, serve_file.http_host)
    return f"http://{f'[{host}]' if ':' in host else host}:{serve_file.http_port}"


def _requests(count: int, one: str, several: str) -> str:
    return f"1 request {one}" if count == 1 else f"{count} requests {several}"


def _can_chat(serve_file: "ServeFile") -> bool:
    """Whether the first model is a directory with a chat template."""
    directory = serve_file.path.resolve().parent / Path(serve_file.models[0].config.source).expanduser()
    config = directory / "tokenizer_config.json"
    return (directory / "chat_template.jinja").is_file() or (
        config.is_file() and '"chat_template"' in config.read_text()
    )


def _example_request(serve_file: "ServeFile") -> tuple[str, dict[str, object]]:
    """A route and a body that the first model answers."""
    model = serve_file.models[0].config
    text = "date jan 8 2038"  # what the demo model knows; a plain prompt ends with its sign for the answer
    sampling = {"max_tokens": 32, "temperature": 0}
    if model.task == "generate" and _can_chat(serve_file):
        messages = [{"role": "user", "content": text}]
        return "/v1/chat/completions", {"model": model.name, "messages": messages, **sampling}
    if model.task == "generate":
        return "/v1/completions", {"model": model.name, "prompt": f"{text} =", **sampling}
    if model.task == "score":
        return "/v1/score", {"model": model.name, "text_1": "a question", "text_2": ["an answer", "another"]}
    if model.task == "predict":
        return "/predict", {"model": model.name, "inputs": {}}
    route = "/v1/embeddings" if model.task == "embed" else "/v1/classify"
    return route, {"model": model.name, "input": "I was charged twice"}
