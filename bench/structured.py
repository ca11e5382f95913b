"""What holding answers to JSON schemas costs: steps of eight sequences, all, half or none of them held.

The engine in this process on a random 120M llama with a vocabulary of 32,000, at temperature 1. The three take turns,
and the table has medians; those without a grammar run once with the library's matchers there and once without.
`--record` adds the table to bench/results.md.
"""

import argparse
import os
import tempfile
from pathlib import Path
from statistics import median

import torch

from bench.engine_step import now_s
from bench.random_llama import SIZES, write_checkpoint
from bench.results import describe_machine, record
from serve_app.engine.attention.choice import DecodeSizes, attention_of
from serve_app.engine.grammar_vocabulary import GrammarVocabulary
from serve_app.engine.grammars import Grammars
from serve_app.engine.loader import LoadedStage, load_stage
from serve_app.engine.model_runner import ModelRunner
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.preprocessing.grammar_text import schema_grammar
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, SamplingParams
from serve_app.types.shards import EngineLimits, ShardSpec

SIZE = SIZES["120M"]
NUM_SEQUENCES = 8
NUM_PROMPT_TOKENS = 32
NUM_STEPS = 48  # of decoding, after four that warm up
NUM_WARM_STEPS = 4
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=512, max_model_len=128, block_size=16, num_blocks=64)
EOS_ID = SIZE.vocab_size - 1
CPU = torch.device("cpu")
SCHEMA: dict[str, object] = {
    "type": "array",
    "minItems": 100,
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{4}$"},
            "kind": {"enum": ["book", "record", "film"]},
            "price": {"type": "number", "minimum": 0},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "code", "kind", "price", "tags"],
        "additionalProperties": False,
    },
}


def step_ms(loaded: LoadedStage, grammars: Grammars | None, num_held: int) -> float:
    """The median of the steps in which all sequences decode."""
    backend = attention_of("auto", loaded.stage, DecodeSizes.within(LIMITS), CPU).backend
    runner = ModelRunner(loaded.stage, LIMITS, LoneCommunicator(), CPU, backend, grammars=grammars)
    eos = frozenset([EOS_ID])
    scheduler = Scheduler(LIMITS, num_stages=1, max_queued=64, eos_token_ids=eos, has_prefix_cache=False)
    drawn = torch.Generator().manual_seed(0)
    for index in range(NUM_SEQUENCES):
        prompt = torch.randint(0, SIZE.vocab_size, (NUM_PROMPT_TOKENS,), generator=drawn).tolist()
        grammar = schema_grammar(SCHEMA) if index < num_held else None
        params = SamplingParams(NUM_WARM_STEPS + NUM_STEPS + 1, seed=index, ignore_eos=grammar is None, grammar=grammar)
        scheduler.add(GenerateRequest(str(index), prompt, params))
    steps_ms = []
    while (step := scheduler.schedule()) is not None:
        began = now_s()
        output = runner.run(step)
        elapsed_ms = 1000 * (now_s() - began)
        assert output is not None
        scheduler.update(output)
        if len(step.token_ids) == NUM_SEQUENCES:
            steps_ms.append(elapsed_ms)
    return median(steps_ms[NUM_WARM_STEPS:])


def measure(directory: Path, num_rounds: int) -> str:
    """The table."""
    write_checkpoint(SIZE, torch.float32, directory)
    whole = ShardSpec(0, 1, 0, 1, 0, SIZE.num_layers)
    tokenizer = Tokenizer.load(directory)
    grammars = Grammars(lambda: GrammarVocabulary.of(tokenizer, SIZE.vocab_size, [EOS_ID]), SIZE.vocab_size, CPU)
    grammars.prepare(schema_grammar(SCHEMA)).result()  # as a Router has it done ahead of its sequences
    lines = ["| weights | none held, no matchers, ms | none held | four of eight | all eight | cost of all eight |"]
    lines.append("| --- | --- | --- | --- | --- | --- |")
    for dtype in ("float32", "bfloat16"):
        loaded = load_stage(directory, dtype, whole, LoneCommunicator(), CPU, linear_kernel="auto")
        ways: tuple[tuple[Grammars | None, int], ...] = ((None, 0), (grammars, 0), (grammars, 4), (grammars, 8))
        rounds = [[step_ms(loaded, *way) for way in ways] for _ in range(num_rounds)]
        taken = [median(one[place] for one in rounds) for place in range(len(ways))]
        cells = " | ".join(f"{ms:.2f}" for ms in taken)
        lines.append(f"| {dtype} | {cells} | {taken[3] / taken[1] - 1:.1%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and keep it when asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as directory:
        table = measure(Path(directory), options.rounds)
    print(table)
    if options.record:
        record("Answers held to a JSON schema", machine, table)


if __name__ == "__main__":
    main()
