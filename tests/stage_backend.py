"""Batch models behind a Gateway without Ray: a request goes through the real scheduler to real shards."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from serve_app.scheduling.batch_scheduler import BatchModel, BatchScheduler
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult
from tests.fakes import ScriptedBackend
from tests.stage_group import StageGroup


@dataclass
class StageBackend(ScriptedBackend):
    """Runs each request on the shards of its model, by itself."""

    groups: dict[str, StageGroup] = field(default_factory=dict)
    schedulers: dict[str, BatchScheduler] = field(default_factory=dict)
    num_steps: int = 0

    def serve(self, name: str, task: str, directory: Path, group: StageGroup) -> None:
        """Add a model."""
        config = json.loads((directory / "config.json").read_text())
        report = group.reports[0].models[0]
        problems = [one.models[0].gradient_problem for one in group.reports]
        self.groups[name] = group
        model = BatchModel(name, report.inputs, report.outputs, 0)
        self.schedulers[name] = BatchScheduler([model], num_stages=1, max_rows=64, max_tokens=2048, max_queued=8)
        vocab_size = config.get("vocab_size") or config["arguments"]["vocab_size"]
        labels = list(config.get("id2label", {}).values())
        self.extra_models.append(
            ModelDescription(
                name,
                task,
                str(directory),
                512,
                512,
                vocab_size,
                [],
                1,
                labels=labels,
                inputs=report.inputs,
                outputs=report.outputs,
                gradient_problem=next((one for one in problems if one), ""),
            )
        )

    async def infer(self, request: InferRequest) -> InferResult:
        """See ModelBackend."""
        group = self.groups[request.model]
        scheduler = self.schedulers[request.model]
        scheduler.add(request)
        while (step := scheduler.schedule()) is not None:
            self.num_steps += 1
            for ended in scheduler.update(group.run_step(step)):
                if ended.error is not None:
                    raise ended.error
                assert ended.result is not None
                return ended.result
        raise AssertionError("a request ends")
