"""Models for the console to show: two generators, an embedder, a classifier, a cross-encoder, a module."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from serve_app.backend.protocol import HealthReport, TakeChunk
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.types.generation import GenerateRequest
from serve_app.types.models import CopyCounts, CopyState, ModelDescription, StageCounts
from serve_app.types.plans import CopyAccount, MeasuredBytes, SeenRates, ShardAccount
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorSpec
from tests.fakes import ScriptedBackend

TOKENS, LENGTHS = TensorSpec("int64", ("tokens",)), TensorSpec("int64", ("batch",))
LABELS = ["delivery", "invoice", "returns", "other"]


@dataclass
class ConsoleBackend(ScriptedBackend):
    """Copies that are as busy as the test says."""

    name: str = "demo"
    second_name: str = "demo-int8"
    answer: str = "The parcel left on Tuesday and is due tomorrow."
    second_answer: str = ""  # of the second generator; "": the same
    busy: dict[str, list[float]] = field(default_factory=dict)  # by copy: share of the time that each stage computes
    seconds: set[str] = field(default_factory=set)  # ids of requests for the second generator
    states: dict[str, str] = field(default_factory=dict)  # by copy, of those that are not ready

    def __post_init__(self) -> None:
        super().__post_init__()
        self.script = self._answer_of
        self._begun_s = time.monotonic()

    def models(self) -> list[ModelDescription]:
        """All of them."""
        own, *_ = super().models()
        return [
            own,
            replace(own, name=self.second_name),
            self._entries("vectors", "embed", "embedding", 8),
            self._entries("tickets", "classify", "logits", len(LABELS), LABELS),
            self._entries("judge", "score", "logits", 1),
            replace(
                self._entries("module", "predict", "y", 2),
                inputs={"x": TensorSpec("float32", ("batch", 2))},
                has_tokenizer=False,
            ),
        ]

    def model(self, name: str) -> ModelDescription | None:
        """One of them."""
        return next((one for one in self.models() if one.name == name), None)

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """Both generators take the same time."""
        assert model in (self.name, self.second_name)
        if model == self.second_name:
            self.seconds.add(request.request_id)
        await super().generate(self.name, request, take)

    def _answer_of(self, request: GenerateRequest, _choice: int) -> list[int]:
        is_second = request.request_id in self.seconds and self.second_answer != ""
        return [*self.ids(self.second_answer if is_second else self.answer), self.eos_token_id]

    async def infer(self, request: InferRequest) -> InferResult:
        """Numbers that follow from the tokens, as many as the model gives."""
        model = self.model(request.model)
        assert model is not None
        ((output, spec),) = model.outputs.items()
        size = int(spec.shape[1])

        def run(item: Item) -> Item:
            if "x" in item:
                return {output: item["x"]}
            token_ids = to_array(item["input_ids"]).astype(np.float64)
            row = np.cos(token_ids.mean() * np.arange(1, size + 1) / 7).astype(np.float32)
            return {output: to_tensor_data(3 * row[None])}

        return InferResult([run(item) for item in request.items])

    async def accounts(self) -> list[CopyAccount]:
        """Two stages of two ranks for the generators, one shard for the others."""
        return [
            CopyAccount(model, copy.replica_id, "cpu", _shards(len(copy.counts.stages)), None, SeenRates())
            for model, copies in self.health().models.items()
            for copy in copies
            if copy.state == "ready"
        ]

    def health(self) -> HealthReport:
        """Two copies of the first model, one of each other."""
        names = [(model.name, model.name) for model in self.models()]
        ids = [*names[:1], (self.name, f"{self.name}-2"), *names[1:]]
        models: dict[str, list[CopyState]] = {}
        for model, replica_id in ids:
            models.setdefault(model, []).append(self._copy(replica_id))
        is_healthy = all(any(copy.state == "ready" for copy in copies) for copies in models.values())
        return HealthReport(is_healthy, models, newcomers=self.newcomers)

    def _copy(self, replica_id: str) -> CopyState:
        num_stages = 2 if replica_id.startswith(self.name) else 1
        shares = self.busy.get(replica_id, [0.0] * num_stages)
        passed_s = time.monotonic() - self._begun_s
        stages = [StageCounts(int(passed_s * 40), share * passed_s) for share in shares]
        state = self.states.get(replica_id, "ready")
        num_running = round(6 * max(shares))
        return CopyState(
            replica_id,
            state,  # type: ignore[arg-type]  # a word of the test's
            "" if state == "ready" else "shard 1 (stage 0, rank 1) does not answer",
            num_running,
            max(0, num_running - 4),
            256 - 40 * num_running if num_stages == 2 else 0,
            256 if num_stages == 2 else 0,
            counts=CopyCounts(stages=stages, num_rebuilds=int(state == "rebuilding")),
            bubble=0.18 if num_running else None,
            waits_for="kv_cache" if num_running > 4 else "",
        )

    def _entries(self, name: str, task: str, output: str, size: int, labels: Sequence[str] = ()) -> ModelDescription:
        outputs = {output: TensorSpec("float32", ("batch", size))}
        inputs = {"input_ids": TOKENS, "lengths": LENGTHS}
        directory = str(self.source_dir)
        made = ModelDescription(name, task, directory, 128, 128, 300, [], 1_700_000_000, labels=list(labels))
        return replace(made, inputs=inputs, outputs=outputs)


def _shards(num_stages: int) -> list[ShardAccount]:
    num_ranks = 2 if num_stages == 2 else 1
    return [
        ShardAccount(stage, rank, (6 * stage, 6 * stage + 6), None, MeasuredBytes(1, total_bytes=412_000_000 + rank))
        for stage in range(num_stages)
        for rank in range(num_ranks)
    ]


def served(directory: Path) -> ConsoleBackend:
    """At work."""
    return ConsoleBackend(directory, busy={"demo": [0.82, 0.46], "demo-2": [0.11, 0.07], "demo-int8": [0.35, 0.3]})
