"""Answers that are held to grammars, on a random model that has never seen JSON."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import jsonschema
import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from serve_app.engine.generation_engine import GenerationEngine
from serve_app.engine.grammar_vocabulary import GrammarVocabulary
from serve_app.engine.grammars import Grammars, spread_bits, unpack_bits
from serve_app.engine.host_staging import HostStaging
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.sampler import Sampler
from serve_app.errors import ConfigError
from serve_app.parallel.communicator import LoneCommunicator
from serve_app.preprocessing.grammar_text import choice_grammar, own_grammar, regex_grammar, schema_grammar
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.scheduling.scheduler import Scheduler
from serve_app.types.generation import GenerateRequest, Progress, SamplingParams
from serve_app.types.shards import EngineLimits, ShardSettings
from serve_app.types.steps import NO_MATCHER, NOTHING_FITS, SequenceStart, StepInput
from tests.checkpoints import make_checkpoint
from tests.fakes import EOS, byte_level_tokenizer, save_model_dir
from tests.plain_driver import Outcome, Split, load_runner, run_in_process, shard_settings

CORE = byte_level_tokenizer()
VOCAB = CORE.get_vocab_size() + 3  # an embedding has rows that no token has
EOS_ID = CORE.get_vocab()[EOS]
LIMITS = EngineLimits(max_num_seqs=8, max_num_batched_tokens=64, max_model_len=512, block_size=4, num_blocks=512)
PROMPT = [5, 6, 7]
SHORT = {"type": "string", "maxLength": 6}
SCHEMAS: list[dict[str, Any]] = [
    {"enum": ["red", "größer", 3, None, {"a": [1]}]},
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 2.5},
    {"type": "string", "pattern": "^[a-z]{2,4}-\\d{3}$"},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "pattern": "^[äöüß日本]{2,3}$"},
    {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "minItems": 2, "maxItems": 3},
    {"type": "array", "prefixItems": [{"const": "x"}, {"type": "boolean"}], "items": False, "minItems": 2},
    {"anyOf": [{"const": "a"}, {"type": "object", "properties": {"k": {"type": "null"}}, "required": ["k"],
                               "additionalProperties": False}]},
    {
        "type": "object",
        "properties": {
            "name": SHORT,
            "kind": {"enum": ["cat", "dog"]},
            "age": {"type": "integer", "minimum": 0, "maximum": 30},
            "owner": {"$ref": "#/$defs/owner"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
        },
        "required": ["name", "kind", "owner"],
        "additionalProperties": False,
        "$defs": {
            "owner": {
                "type": "object",
                "properties": {"email": {"type": "string", "pattern": "^[a-z]{1,3}@[a-z]{1,3}$"}},
                "required": ["email"],
                "additionalProperties": False,
            }
        },
    },
]  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_checkpoint(
        "llama", tmp_path_factory.mktemp("checkpoint"), vocab_size=VOCAB, max_position_embeddings=512
    )
    return save_model_dir(made, CORE)


def grammars_of(directory: Path) -> Grammars:
    tokenizer = Tokenizer.load(directory)
    return Grammars(lambda: GrammarVocabulary.of(tokenizer, VOCAB, [EOS_ID]), VOCAB, torch.device("cpu"))


@pytest.fixture(scope="module")
def runner(directory: Path) -> ModelRunner:
    return load_runner(directory, LIMITS, grammars=grammars_of(directory))


def held(name: str, grammar: str | None, seed: int = 0, **params: Any) -> GenerateRequest:
    return GenerateRequest(name, PROMPT, SamplingParams(**{"max_tokens": 120, **params}, seed=seed, grammar=grammar))


def run(
    runner: ModelRunner, requests: Sequence[GenerateRequest], limits: EngineLimits = LIMITS, **settings: Any
) -> list[Outcome]:
    return run_in_process(runner, limits, requests, eos_token_ids=frozenset([EOS_ID]), **settings)


def text(outcome: Outcome) -> str:
    found: str = CORE.decode([one for one in outcome.token_ids if one < CORE.get_vocab_size()])
    return found


@pytest.mark.parametrize("overlaps_steps", [False, True])
def test_every_answer_that_ended_by_itself_is_valid(runner: ModelRunner, overlaps_steps: bool) -> None:
    schemas = [schema for schema in SCHEMAS for _ in range(5)]
    requests = [
        held(str(index), schema_grammar(schema, has_whitespace=False), index) for index, schema in enumerate(schemas)
    ]
    outcomes = run(runner, requests, overlaps_steps=overlaps_steps)
    ended = [pair for pair in zip(schemas, outcomes, strict=True) if pair[1].finish_reason == "stop"]
    assert len(ended) > 0.8 * len(schemas)
    for schema, outcome in ended:
        assert outcome.token_ids[-1] == EOS_ID
        jsonschema.validate(json.loads(text(outcome)), schema, jsonschema.Draft202012Validator)


def test_whitespace_is_the_models_own_choice_where_it_is_allowed(runner: ModelRunner) -> None:
    grammar = schema_grammar({"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2})
    texts = {text(one) for one in run(runner, [held(str(seed), grammar, seed) for seed in range(16)])}
    assert len(texts) > 1
    assert {text.translate({ord(char): None for char in " \t\r\n"}) for text in texts} == {"[1,1]"}


@pytest.mark.parametrize("pattern", ["(a+)+b", "[0-9]{3}-(x|y/z)", "é+\\.", "^ab$"])
def test_a_text_matches_its_pattern_as_a_whole(runner: ModelRunner, pattern: str) -> None:
    for outcome in run(runner, [held(str(seed), regex_grammar(pattern, "regex"), seed) for seed in range(4)]):
        assert outcome.finish_reason == "length" or re.fullmatch(pattern, text(outcome))


def test_choices_and_grammars(runner: ModelRunner) -> None:
    choices = ["yes", "no", 'per"haps\n', "größer"]
    grammar = own_grammar('root ::= "x" digit digit\ndigit ::= [0-9]')
    requests = [held(str(seed), choice_grammar(choices, "choice"), seed) for seed in range(8)]
    requests += [held(f"g{seed}", grammar, seed) for seed in range(4)]
    texts = [text(one) for one in run(runner, requests)]
    assert set(texts[:8]) <= set(choices)
    assert len(set(texts[:8])) > 1
    assert all(re.fullmatch("x[0-9]{2}", one) for one in texts[8:])


def test_pre_emptions_and_a_failover_leave_the_answer_as_it_is(directory: Path, runner: ModelRunner) -> None:
    grammar = schema_grammar(SCHEMAS[-1])
    requests = [held(str(seed), grammar, seed, max_tokens=60) for seed in range(4)]
    undisturbed = run(runner, requests)
    starts: list[SequenceStart] = []

    def note(step: StepInput) -> None:
        starts.extend(step.starts)

    few = replace(LIMITS, num_blocks=24)
    small = load_runner(directory, few, grammars=grammars_of(directory))
    pressed = run_in_process(small, few, requests, note, eos_token_ids=frozenset([EOS_ID]))
    assert len(starts) >= len(requests) + 2, "at least two pre-emptions"
    assert [one.token_ids for one in pressed] == [one.token_ids for one in undisturbed]
    other = load_runner(directory, LIMITS, grammars=grammars_of(directory))
    for request, whole in zip(requests, undisturbed, strict=True):
        known = whole.token_ids[:20]
        resumed = replace(request, progress=Progress([known], [False], is_replayed=True))
        assert known + resume(other, resumed) == whole.token_ids


def resume(runner: ModelRunner, request: GenerateRequest) -> list[int]:
    scheduler = Scheduler(LIMITS, num_stages=1, max_queued=10, eos_token_ids=frozenset([EOS_ID]))
    scheduler.add(request)
    token_ids: list[int] = []
    while (step := scheduler.schedule()) is not None:
        output = runner.run(step)
        assert output is not None
        for new in scheduler.update(output):
            token_ids += new.chunk.token_ids
    return token_ids


def test_those_without_a_grammar_draw_what_they_draw_alone(runner: ModelRunner) -> None:
    free = [held(str(seed), None, seed, max_tokens=20, num_logprobs=2) for seed in range(3)]
    alone = run(runner, free)
    mixed = run(runner, [*free, held("held", schema_grammar(SCHEMAS[-1]), max_tokens=20)])
    assert [one.token_ids for one in mixed[:3]] == [one.token_ids for one in alone]


def test_a_batch_without_grammars_goes_the_way_it_always_went() -> None:
    params = SamplingParams(max_tokens=5, seed=0)
    sampler = Sampler(2, VOCAB, "cpu")
    for slot_row, grammar in enumerate((None, regex_grammar("a", "regex"))):
        sampler.start(SequenceStart(slot_row, 0, replace(params, grammar=grammar), [EOS_ID], 0, [], 0))
    assert not sampler._batch_of([0]).changes_logits
    assert sampler._batch_of([1]).changes_logits


def test_the_end_comes_before_min_tokens_where_nothing_else_is_left(runner: ModelRunner) -> None:
    (outcome,) = run(runner, [held("a", regex_grammar("abc", "regex"), min_tokens=20)])
    assert (text(outcome), outcome.finish_reason) == ("abc", "stop")


def test_min_tokens_holds_the_end_back_while_the_grammar_goes_on(runner: ModelRunner) -> None:
    requests = [
        held(str(seed), regex_grammar("[ab]*", "regex"), seed, min_tokens=30, max_tokens=40) for seed in range(4)
    ]
    for outcome in run(runner, requests):
        assert len(outcome.token_ids) >= 30
        assert set(text(outcome)) <= {"a", "b"}


def test_a_special_stop_token_ends_an_answer_only_where_the_grammar_does(runner: ModelRunner) -> None:
    stop = CORE.get_vocab()["<|end|>"]
    bias = {stop: 100.0}
    requests = [
        held(str(seed), regex_grammar("[ab]{3}", "regex"), seed, stop_token_ids=(stop,), logit_bias=bias)
        for seed in range(4)
    ]
    for outcome in run(runner, requests):
        assert re.fullmatch("[ab]{3}", text(outcome))
        assert outcome.token_ids[-1] == stop


def test_the_longest_answer_is_cut(runner: ModelRunner) -> None:
    (outcome,) = run(runner, [held("a", regex_grammar("a{50}", "regex"), max_tokens=7)])
    assert outcome.finish_reason == "length"
    assert set(text(outcome)) == {"a"}


def test_what_no_token_can_write_ends_its_request_alone(tmp_path: Path) -> None:
    alphabet = [symbol for symbol in sorted(pre_tokenizers.ByteLevel.alphabet()) if symbol != "b"]
    core = tokenizers.Tokenizer(models.BPE(vocab={symbol: place for place, symbol in enumerate(alphabet)}, merges=[]))
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(EOS, special=True)])
    tokenizer, end = Tokenizer.load(save_model_dir(tmp_path, core)), core.get_vocab()[EOS]
    grammars = Grammars(lambda: GrammarVocabulary.of(tokenizer, VOCAB, [end]), VOCAB, torch.device("cpu"))
    sampler = Sampler(2, VOCAB, "cpu", grammars=grammars)
    for slot_row, grammar in enumerate((None, regex_grammar("ab", "regex"))):
        params = SamplingParams(max_tokens=5, seed=0, temperature=0.0, grammar=grammar)
        sampler.start(SequenceStart(slot_row, 0, params, [end], 0, [], 0))
    logits = torch.eye(2, VOCAB)
    assert sampler.sample(logits, [0, 1]).token_ids == [0, core.token_to_id("a")]
    assert sampler.sample(logits, [0, 1]).token_ids == [0, NOTHING_FITS]


def test_a_vocabulary_that_cannot_be_read_fails_its_requests_alone() -> None:
    def refuse() -> GrammarVocabulary:
        raise ConfigError("no tokenizer here")

    grammars = Grammars(refuse, VOCAB, torch.device("cpu"))
    sampler = Sampler(2, VOCAB, "cpu", grammars=grammars)
    for slot_row, grammar in enumerate((None, regex_grammar("a", "regex"))):
        params = SamplingParams(max_tokens=5, seed=0, temperature=0.0, grammar=grammar)
        sampler.start(SequenceStart(slot_row, 0, params, [EOS_ID], 0, [], 0))
    drawn = sampler.sample(torch.eye(2, VOCAB), [0, 1])
    assert drawn.token_ids == [0, NO_MATCHER]


def test_an_engine_reads_the_vocabulary_of_its_model(directory: Path) -> None:
    settings = cast(ShardSettings, shard_settings(directory, Split(1, 1))[0])
    engine = GenerationEngine(replace(settings, eos_token_ids=(EOS_ID,)), torch.device("cpu"))
    engine.load(LoneCommunicator())
    engine.allocate(LIMITS)
    assert engine._runner is not None
    (outcome,) = run(engine._runner, [held("a", regex_grammar("abc", "regex"))])
    assert (text(outcome), outcome.finish_reason) == ("abc", "stop")


def test_bits_are_spread_alike_on_both_ways() -> None:
    words = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, size=(3, 5), dtype=np.int64)
    device = torch.device("cpu")
    spread = spread_bits(torch.from_numpy(words), 300)
    assert torch.equal(unpack_bits(words, 300, device, HostStaging(device)), spread)
    assert spread[0, :3].tolist() == [bool(int(words[0, 0]) >> place & 1) for place in range(3)]
