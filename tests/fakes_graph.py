"""Models of a graph without any process: what they give follows from their input."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.backend.protocol import HealthReport, TakeChunk
from serve_app.backend.token_stream import TokenStream
from serve_app.errors import RayshardError
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.preprocessing.chain import Chain
from serve_app.types.chains import ChainRequest, ChainResult
from serve_app.types.generation import GenerateRequest, OutputChunk
from serve_app.types.graphs import GraphRequest, GraphResult
from serve_app.types.models import ModelDescription
from serve_app.types.plans import CopyAccount
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorSpec

TEXT_INPUTS = {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))}
LABELS = ["de", "en", "fr"]
VECTOR_SIZE = 3


def described(directory: Path, name: str, task: str, **changes: Any) -> ModelDescription:
    """A model as its Router describes it; its tokenizer is in `directory`."""
    outputs = {
        "embed": {"embedding": TensorSpec("float32", ("batch", VECTOR_SIZE))},
        "classify": {"logits": TensorSpec("float32", ("batch", len(LABELS)))},
        "predict": {"y": TensorSpec("float32", ("batch", VECTOR_SIZE))},
        "generate": {},
        "score": {"logits": TensorSpec("float32", ("batch", 1))},
    }
    values: dict[str, Any] = {
        "inputs": {} if task == "generate" else TEXT_INPUTS,
        "outputs": outputs[task],
        "labels": LABELS if task == "classify" else [],
        "embedding_size": VECTOR_SIZE if task == "embed" else None,
    }
    return ModelDescription(name, task, str(directory), 40, 40, 400, [], 1, **{**values, **changes})


def head(directory: Path, name: str = "head", task: str = "classify", size: int = VECTOR_SIZE) -> ModelDescription:
    """A module that takes a vector."""
    inputs = {"x": TensorSpec("float32", ("batch", size))}
    return described(directory, name, task, inputs=inputs, has_tokenizer=False)


@dataclass
class FakeModels:
    """A ModelBackend: numbers that follow from the tokens; a generator says its prompt's last tokens."""

    described: list[ModelDescription]
    chain: Chain | None = None  # before every model that has steps
    after: Chain | None = None  # after every model that has steps
    error: RayshardError | None = None  # raised by the model `failing`
    failing: str = ""
    delay_s: float = 0.0
    infer_requests: list[InferRequest] = field(default_factory=list)
    generate_requests: list[tuple[str, GenerateRequest]] = field(default_factory=list)
    num_running: int = 0
    peak_running: int = 0
    num_cancelled: int = 0
    is_running: asyncio.Event = field(default_factory=asyncio.Event)

    def models(self) -> list[ModelDescription]:
        """Those that are described."""
        return self.described

    def model(self, name: str) -> ModelDescription | None:
        """One of them."""
        return next((model for model in self.described if model.name == name), None)

    async def wait_for_model(self, name: str, limit_s: float) -> None:
        """All are known."""

    async def accounts(self) -> list[CopyAccount]:
        """None tells any."""
        return []

    def health(self) -> HealthReport:
        """All are well."""
        return HealthReport(True)

    async def run_graph(self, request: GraphRequest) -> GraphResult:
        """Graphs do not call graphs."""
        raise NotImplementedError

    async def infer(self, request: InferRequest) -> InferResult:
        """What `answer` makes of each entry."""
        self.infer_requests.append(request)
        await self._work(request.model)
        model = self.model(request.model)
        assert model is not None
        outputs = model.outputs
        return InferResult([{next(iter(outputs)): answer(item)[next(iter(outputs))]} for item in request.items])

    async def run_chain(self, request: ChainRequest) -> ChainResult:
        """Run the values through a chain."""
        chain = self.after if request.is_after else self.chain
        assert chain is not None
        return ChainResult([chain.run(value, has_trace=False) for value in request.values])

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """The prompt without its BOS, as much of it as may be generated."""
        self.generate_requests.append((model, request))
        await self._work(model)
        token_ids = request.prompt_token_ids[1 : 1 + request.params.max_tokens]
        TokenStream(1, take).feed(OutputChunk(0, 0, token_ids, finish_reason="length"))

    async def _work(self, model: str) -> None:
        self.num_running += 1
        self.is_running.set()
        self.peak_running = max(self.peak_running, self.num_running)
        try:
            await asyncio.sleep(self.delay_s)
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        if self.error is not None and model == self.failing:
            raise self.error


def answer(item: Item) -> Item:
    """The most probable label is the number of tokens modulo 3; a vector begins with the number of tokens."""
    row = to_array(item["x"])[0] if "x" in item else to_array(item["input_ids"])
    size = float(row[0]) if "x" in item else float(len(row))
    logits = np.array([[4.0 if index == size % len(LABELS) else 0.0 for index in range(len(LABELS))]], np.float32)
    vector = to_tensor_data(np.array([[size, 0.5, -1.0]], np.float32))
    return {"embedding": vector, "y": vector, "logits": to_tensor_data(logits)}
