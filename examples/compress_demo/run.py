"""Compress the demo model in every way, over three seeds, and hold the results to what they should be.

`make demo-compress`; about ten minutes on two cores. The models and their reports are in build/compress_demo.
"""

import argparse
import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "demo_model"))
from tasks import COMPLETION_SUFFIX, TASKS, heldout, sample_training

from bench.results import describe_machine, record
from bench.serving import free_port, running
from serve_app.checkpoints.model_spec import read_model_spec
from serve_app.compress.distill import DistillSettings
from serve_app.compress.evaluate import Quality, TaskScore, compare, score_tasks
from serve_app.compress.gptq import quantize_gptq
from serve_app.compress.local_model import LocalModel
from serve_app.compress.prune import PruneSettings, prune
from serve_app.compress.quantize import QuantizeSettings, quantize
from serve_app.compress.remote_model import RemoteModel
from serve_app.compress.student import TrainingTexts, train_student
from serve_app.compress.texts import read_tasks, read_texts, sequences_of

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "demo_model" / "model"
BUILD = ROOT / "build" / "compress_demo"
END = "<|end|>"
NUM_LABELS = 300  # that the students learn from
NUM_UNLABELLED = 1200  # prompts that the teacher answers
MAX_ANSWER_TOKENS = 80
HEALING = DistillSettings(num_steps=30, batch_tokens=1536, learning_rate=1e-3, task_weight=0.0)
TRAINING = DistillSettings(num_steps=60, batch_tokens=1536, learning_rate=1e-3)


@dataclass(frozen=True, slots=True)
class Files:
    """The texts of one seed."""

    calibration: Path
    labelled: Path
    unlabelled: Path
    heldout: Path
    tasks: Path


@dataclass(frozen=True, slots=True)
class Row:
    """One model as the table shows it."""

    name: str
    served: Path | None  # itself, or a model of the same shapes and kernels; to serve all would take too long
    num_bytes: int
    quality: Quality
    scores: list[TaskScore]


class Demo:
    """All models of one seed, and the claims about them."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._folder = BUILD / f"seed-{seed}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._original = LocalModel(MODEL, "float32")
        self.files = self._write_texts()
        texts = list(sequences_of(read_texts(self.files.heldout), self._original.tokenizer, 512))
        self._texts = texts[:: max(1, len(texts) // 150)]
        self.claims: list[tuple[str, bool]] = []
        self._qualities: dict[Path, Quality] = {}  # each is measured once, for a claim or for the table
        self._scores: dict[Path, list[TaskScore]] = {}

    def quantized(self, name: str, scheme: str, *, is_whole: bool = False) -> Path:
        """Round to nearest."""
        settings = QuantizeSettings(scheme, has_embedding=is_whole, has_head=is_whole)
        quantize(MODEL, self._folder / name, settings, can_replace=True)
        return self._folder / name

    def gptq(self, name: str, scheme: str) -> Path:
        """With calibration texts."""
        target, calibration = self._folder / name, self.files.calibration
        settings = QuantizeSettings(scheme)
        quantize_gptq(MODEL, target, settings, calibration, num_samples=64, seed=self._seed, can_replace=True)
        return target

    def pruned(self, name: str, num_layers: int) -> Path:
        """Fewer layers."""
        settings = PruneSettings(num_layers=num_layers)
        prune(MODEL, self._folder / name, settings, self.files.calibration, can_replace=True)
        return self._folder / name

    def trained(self, name: str, student: Path, settings: DistillSettings, *, has_teacher_texts: bool) -> Path:
        """A student, on the labels and, where it has a teacher, on its answers too."""
        texts = TrainingTexts(self.files.labelled, self.files.unlabelled if has_teacher_texts else None)
        target = self._folder / name
        train_student(MODEL, student, target, texts, replace(settings, seed=self._seed), can_replace=True)
        return target

    def quality(self, directory: Path) -> Quality:
        """Beside the original, on held-out texts."""
        if directory not in self._qualities:
            self._qualities[directory] = compare(self._original, LocalModel(directory, "float32"), self._texts)
        return self._qualities[directory]

    def scores(self, directory: Path) -> list[TaskScore]:
        """Exact answers to held-out prompts."""
        if directory not in self._scores:
            model, examples = LocalModel(directory, "float32"), read_tasks(self.files.tasks)
            self._scores[directory] = score_tasks(model, examples, MAX_ANSWER_TOKENS)
        return self._scores[directory]

    def row(self, name: str, directory: Path, served: Path | None) -> Row:
        """All figures of a model but its speed."""
        num_bytes = read_model_spec(directory).num_bytes
        return Row(name, served, num_bytes, self.quality(directory), self.scores(directory))

    def claim(self, text: str, is_true: bool) -> None:
        """Something that must hold for every seed."""
        self.claims.append((f"seed {self._seed}: {text}", is_true))

    def _write_texts(self) -> Files:
        rng = Random(self._seed)
        names = ("calibration.txt", "labelled.txt", "unlabelled.txt", "heldout.txt", "tasks.jsonl")
        files = Files(*(self._folder / name for name in names))
        tasks = list(TASKS)
        for path, count in ((files.calibration, 300), (files.labelled, NUM_LABELS)):
            examples = [sample_training(tasks[index % len(tasks)], rng) for index in range(count)]
            path.write_text("".join(f"{one.prompt}{COMPLETION_SUFFIX}{one.answer}{END}\n" for one in examples))
        prompts = [sample_training(tasks[index % len(tasks)], rng).prompt for index in range(NUM_UNLABELLED)]
        files.unlabelled.write_text("".join(f"{text}{END}\n" for text in self._answered(prompts)))
        held_out = [(task, one) for task in tasks for one in heldout(task, 100, 1 + self._seed)]
        lines = [f"{one.prompt}{COMPLETION_SUFFIX}{one.answer}{END}\n" for _task, one in held_out]
        files.heldout.write_text("".join(lines))
        entries = [
            {"task": task, "prompt": one.prompt + COMPLETION_SUFFIX, "answer": one.answer} for task, one in held_out
        ]
        files.tasks.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        return files

    def _answered(self, prompts: Sequence[str]) -> list[str]:
        tokenizer = self._original.tokenizer
        asked = [tokenizer.encode(prompt + COMPLETION_SUFFIX) for prompt in prompts]
        answers = self._original.generate(asked, MAX_ANSWER_TOKENS)
        return [
            f"{prompt}{COMPLETION_SUFFIX}{tokenizer.decode(one)}" for prompt, one in zip(prompts, answers, strict=True)
        ]


def main() -> None:
    """Run all seeds; exit status 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--record", action="store_true", help="add the table to bench/results.md")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(options.threads)
    machine, begin_s = describe_machine(), time.monotonic()
    rows: list[Row] = []
    claims: list[tuple[str, bool]] = []
    for seed in options.seeds:
        demo = Demo(seed)
        rows += run_seed(demo, has_table=seed == options.seeds[0])
        claims += demo.claims
    text = "\n".join(
        [
            *_table(rows, served_rates(rows)),
            "",
            *(f"- {'holds' if is_true else 'FAILS'}: {claim}" for claim, is_true in claims),
        ]
    )
    text += f"\n- {time.monotonic() - begin_s:.0f} s on {options.threads} threads."
    print(text)
    if options.record:
        record("The demo model, compressed", machine, text)
    if not all(is_true for _claim, is_true in claims):
        sys.exit(1)


def run_seed(demo: Demo, *, has_table: bool) -> list[Row]:
    """Make the models, and claim what must hold."""
    int8 = demo.quantized("int8", "int8", is_whole=True)
    int3, int3_gptq = demo.quantized("int3", "int3"), demo.gptq("int3-gptq", "int3")
    unhealed = demo.pruned("pruned", 6)
    healed = demo.trained("pruned-healed", unhealed, HEALING, has_teacher_texts=False)
    half = demo.pruned("half", 4)
    alone = demo.trained("half-alone", half, replace(TRAINING, kl_weight=0.0), has_teacher_texts=False)
    distilled = demo.trained("half-distilled", half, TRAINING, has_teacher_texts=True)
    before, after = (sum(one.num_exact for one in demo.scores(path)) for path in (MODEL, int8))
    share = LocalModel(int8).spec.num_bytes / LocalModel(MODEL).spec.num_bytes
    demo.claim(f"int8 keeps {after} of {before} exact answers (0.99 or more)", after >= 0.99 * before)
    demo.claim(f"int8 has {share:.3f} x the bytes of bfloat16 (0.55 at most)", share <= 0.55)
    for better, worse, what in (
        (int3_gptq, int3, "GPTQ beats rounding at 3 bits"),
        (healed, unhealed, "healed beats unhealed"),
    ):
        good, bad = demo.quality(better), demo.quality(worse)
        figures = f"KL {good.divergence.kl:.4f} against {bad.divergence.kl:.4f}"
        figures += f", perplexity {good.model.value:.2f} against {bad.model.value:.2f}"
        demo.claim(f"{what}: {figures}", good.divergence.kl < bad.divergence.kl)
    taught, untaught = (sum(one.num_exact for one in demo.scores(path)) for path in (distilled, alone))
    claim = f"distilled beats the same student alone: {taught} against {untaught} exact answers"
    demo.claim(claim, taught > untaught)
    if not has_table:
        return []
    int4, int4_gptq = demo.quantized("int4", "int4"), demo.gptq("int4-gptq", "int4")
    return [
        demo.row("original", MODEL, MODEL),
        demo.row("int8, embedding and head too", int8, int8),
        demo.row("int4", int4, int4),
        demo.row("int4 GPTQ", int4_gptq, int4),
        demo.row("int3", int3, None),
        demo.row("int3 GPTQ", int3_gptq, None),
        demo.row("6 of 8 layers", unhealed, None),
        demo.row("6 of 8 layers, healed", healed, None),
        demo.row("4 of 8 layers, trained alone", alone, distilled),
        demo.row("4 of 8 layers, distilled", distilled, distilled),
    ]


def served_rates(rows: Sequence[Row]) -> dict[Path, float]:
    """Tokens a second over HTTP, 8 requests at once, by directory; all are in one server, and answer in turn."""
    port, directories = free_port(), sorted({row.served for row in rows if row.served is not None})
    gateway = {"name": "gateway", "route_prefix": "/", "import_path": "serve_app.app:build_gateway", "args": {}}
    applications = [gateway] + [
        {
            "name": directory.name,
            "route_prefix": None,
            "import_path": "serve_app.app:build_model",
            "args": {"name": directory.name, "source": str(directory), "dtype": "float32"},
        }
        for directory in directories
    ]
    serve_file: dict[str, object] = {"http_options": {"host": "127.0.0.1", "port": port}, "applications": applications}
    with running(["serve", "run"], port, {}, serve_file) as server:
        return {one: RemoteModel(f"{server.url}/v1", one.name).measure_speed([8])[8] for one in directories}


def _table(rows: Sequence[Row], rates: Mapping[Path, float]) -> list[str]:
    tasks = [score.task for score in rows[0].scores]
    lines = [
        f"| model | bytes | perplexity | KL | {' | '.join(tasks)} | tokens/s over HTTP, 8 at once |",
        f"| --- | --- | --- | --- | {' | '.join('---' for _ in tasks)} | --- |",
    ]
    for row in rows:
        exact = " | ".join(f"{score.num_exact}/{score.num_examples}" for score in row.scores)
        quality = row.quality
        perplexity = f"{quality.model.value:.2f} ± {quality.model.standard_error:.2f}"
        lines.append(
            f"| {row.name} | {row.num_bytes:,} | {perplexity} | {quality.divergence.kl:.4f} | {exact} | "
            f"{'' if row.served is None else f'{rates[row.served]:.0f}'} |"
        )
    return [*lines, "", "Of two models of the same shapes and kernels one was served; int3 and 6 layers were not."]


if __name__ == "__main__":
    main()
