"""A graph's steps, run on models that answer by rule."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from serve_app.config.graph import GraphConfig, GraphStepConfig
from serve_app.config.model import ModelConfig
from serve_app.errors import (
    InternalError,
    QueueFullError,
    RequestError,
    TimeoutExceededError,
    UnavailableError,
    UnprocessableError,
)
from serve_app.graphs.model_steps import ModelSteps, StepCall
from serve_app.graphs.runner import GraphRunner
from serve_app.preprocessing.arrays import integer_tensor, to_array
from serve_app.preprocessing.chain import Chain, ChainModel, make_chain
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.graphs import GraphRequest, GraphResult, GraphValue
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import TensorSpec
from tests.fakes import save_model_dir
from tests.fakes_graph import LABELS, FakeCaller, described, head

LANGUAGE = {"name": "language", "model": "lang"}
ANSWER = {"name": "answer", "choose": "language", "cases": {"de": "chat-de"}, "default": "chat-en", "max_tokens": 8}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save_model_dir(tmp_path)


@pytest.fixture
async def pool() -> AsyncIterator[TextPool]:
    pool = TextPool(1)
    yield pool
    pool.close()


@pytest.fixture
def caller(directory: Path) -> FakeCaller:
    models = [
        described(directory, "minilm", "embed"),
        described(directory, "lang", "classify"),
        described(directory, "chat-de", "generate"),
        described(directory, "chat-en", "generate"),
        head(directory),
        head(directory, "numbers", "predict"),
    ]
    return FakeCaller(models)


def runner(caller: FakeCaller, pool: TextPool, *steps: dict[str, Any], **more: Any) -> GraphRunner:
    values = {"name": "p", "steps": list(steps), "output": steps[-1]["name"], **more}
    return GraphRunner(GraphConfig.model_validate(values), ModelSteps(caller, pool), pool)


def request(*texts: str) -> GraphRequest:
    return GraphRequest("r", "p", list(texts), queue_timeout_s=7.0)


def first(result: GraphResult) -> list[GraphValue]:
    return [run.results[0] for run in result.runs]


def replaced(caller: FakeCaller, description: ModelDescription) -> None:
    caller.models = [one for one in caller.models if one.name != description.name] + [description]


def num_tokens(directory: Path, text: str) -> int:
    return len(Tokenizer.load(directory).encode(text))


async def test_sentences_become_vectors_and_those_labels(caller: FakeCaller, pool: TextPool, directory: Path) -> None:
    graph = runner(
        caller,
        pool,
        {"name": "sentences", "chain": ["split_sentences"]},
        {"name": "vectors", "model": "minilm", "input": "sentences"},
        {"name": "topic", "model": "head", "input": "vectors"},
        output=["sentences", "vectors", "topic"],
    )
    result = await graph.run(request("One. Two words.", "Three."))
    assert result.names == ["sentences", "vectors", "topic"]
    sentences = [run.results[0].texts for run in result.runs]
    assert sentences == [["One.", "Two words."], ["Three."]]
    sizes = [[num_tokens(directory, text) for text in texts] for texts in sentences]
    vectors = [[to_array(item["embedding"])[0, 0] for item in run.results[1].items] for run in result.runs]
    assert vectors == sizes
    best = [[max(scores, key=lambda one: one.score).label for scores in run.results[2].labels] for run in result.runs]
    assert best == [[LABELS[size % 3] for size in some] for some in sizes]
    assert all(value.is_list for run in result.runs for value in run.results)
    assert result.num_tokens == sum(map(sum, sizes))


async def test_all_inputs_of_a_request_go_to_a_model_together(caller: FakeCaller, pool: TextPool) -> None:
    result = await runner(caller, pool, {"name": "v", "model": "minilm"}).run(request(*"abcde"))
    (sent,) = caller.infer_requests
    assert (len(sent.items), sent.model, sent.queue_timeout_s) == (5, "minilm", 7.0)
    assert [value.is_list for value in first(result)] == [False] * 5


async def test_many_entries_go_in_pieces_and_keep_their_order(
    caller: FakeCaller, pool: TextPool, directory: Path
) -> None:
    texts = ["a" * (1 + index % 30) for index in range(100)]
    result = await runner(caller, pool, {"name": "v", "model": "minilm"}).run(request(*texts))
    assert [len(one.items) for one in caller.infer_requests] == [32, 32, 32, 4]
    sizes = [to_array(value.items[0]["embedding"])[0, 0] for value in first(result)]
    assert sizes == [num_tokens(directory, text) for text in texts]


async def test_independent_steps_run_side_by_side(caller: FakeCaller, pool: TextPool) -> None:
    caller.delay_s = 0.05
    steps = [{"name": "a", "model": "minilm"}, {"name": "b", "model": "lang"}]
    await runner(caller, pool, *steps, output=["a", "b"]).run(request("text"))
    assert caller.peak_running == 2


async def test_a_label_chooses_the_model_for_each_text(caller: FakeCaller, pool: TextPool, directory: Path) -> None:
    texts = ["z", "zq", "zqz"]  # no merges: one token for each letter
    result = await runner(caller, pool, LANGUAGE, ANSWER).run(request(*texts))
    labels = [LABELS[num_tokens(directory, text) % 3] for text in texts]
    assert set(labels) > {"de"}, "the texts must take both branches"
    models = dict(zip(texts, ["chat-de" if label == "de" else "chat-en" for label in labels], strict=True))
    tokenizer = Tokenizer.load(directory)
    asked = {tokenizer.decode(one.prompt_token_ids): model for model, one in caller.generate_requests}
    assert asked == models
    assert [value.texts for value in first(result)] == [[text] for text in texts]


async def test_a_label_without_a_case_is_an_error(caller: FakeCaller, pool: TextPool) -> None:
    replaced(caller, described(Path(caller.models[0].source_dir), "lang", "classify", labels=["x", "y", "z"]))
    step = {**ANSWER, "default": None, "cases": {"de": "chat-de", "en": "chat-en"}}
    with pytest.raises(UnprocessableError, match="step answer: no case is for label"):
        await runner(caller, pool, LANGUAGE, step).run(request("text"))


async def test_generation_is_cut_to_the_context_of_the_model(caller: FakeCaller, pool: TextPool) -> None:
    await runner(caller, pool, {"name": "a", "model": "chat-en"}).run(request("a" * 30))
    ((_model, sent),) = caller.generate_requests
    assert sent.params.max_tokens == 40 - len(sent.prompt_token_ids)
    assert sent.params.temperature == 0
    with pytest.raises(RequestError, match="step a: a text has 41 tokens, and model chat-en takes 39"):
        await runner(caller, pool, {"name": "a", "model": "chat-en"}).run(request("z" * 40))


async def test_a_model_is_given_what_its_own_preprocessing_makes(
    caller: FakeCaller, pool: TextPool, directory: Path
) -> None:
    caller.chain = chain_of({"truncate": {"max_chars": 2}})
    replaced(caller, described(directory, "minilm", "embed", has_preprocessing=True))
    result = await runner(caller, pool, {"name": "v", "model": "minilm"}).run(request("abcdef"))
    assert to_array(first(result)[0].items[0]["embedding"])[0, 0] == num_tokens(directory, "ab")


def chain_of(*steps: Any) -> Chain:
    values = {"name": "p", "output": "a", "steps": [{"name": "a", "chain": list(steps)}]}
    chain = GraphConfig.model_validate(values).steps[0].chain
    assert chain is not None
    return make_chain(chain)


async def test_a_generator_is_given_what_its_own_preprocessing_makes(
    caller: FakeCaller, pool: TextPool, directory: Path
) -> None:
    caller.chain = chain_of("redact_pii", "lowercase")
    replaced(caller, described(directory, "chat-en", "generate", has_preprocessing=True))
    graph = runner(caller, pool, {"name": "a", "model": "chat-en"})
    result = await graph.run(request("TO a@b.de", "x@y.de"))
    assert [value.texts for value in first(result)] == [["to <email_1>"], ["<email_1>"]]
    restored = await graph.run(replace(request("TO a@b.de", "x@y.de"), restores_redactions=True))
    assert [value.texts for value in first(restored)] == [["to a@b.de"], ["x@y.de"]]


async def test_what_chains_take_out_is_restored_in_texts_alone_and_only_when_asked(
    caller: FakeCaller, pool: TextPool
) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "clean", "chain": ["redact_pii"]},
        {"name": "sentences", "chain": ["split_sentences"], "input": "clean"},
        {"name": "answer", "model": "chat-en", "input": "clean"},
    ]
    replaced(caller, replace(caller.describe("chat-en"), max_model_len=400, max_request_tokens=400))
    graph = runner(caller, pool, *steps, output=["sentences", "answer"])
    asked = request("To a@b.de. Or c@d.de.", "To z@z.de.")
    plain = await graph.run(asked)
    assert [run.results[0].texts for run in plain.runs] == [["To <EMAIL_1>.", "Or <EMAIL_2>."], ["To <EMAIL_1>."]]
    restored = await graph.run(replace(asked, restores_redactions=True))
    assert [run.results[0].texts for run in restored.runs] == [["To a@b.de.", "Or c@d.de."], ["To z@z.de."]]
    assert [run.results[1].texts for run in restored.runs] == [["To a@b.de. Or c@d.de."], ["To z@z.de."]]
    prompts = {caller_text(caller, one.prompt_token_ids) for _model, one in caller.generate_requests}
    assert prompts == {"To <EMAIL_1>. Or <EMAIL_2>.", "To <EMAIL_1>."}, "no model sees the originals"


def caller_text(caller: FakeCaller, token_ids: list[int]) -> str:
    return Tokenizer.load(caller.models[0].source_dir).decode(token_ids)


def behind(caller: FakeCaller, *steps: Any) -> None:
    """Put steps behind the classifier `lang`."""
    values = {"name": "m", "source": "s", "task": "classify", "postprocessing": list(steps)}
    config = ModelConfig.model_validate(values)
    directory = Path(caller.models[0].source_dir)
    caller.after = make_chain(config.postprocessing, ChainModel(directory, LABELS), is_after=True)
    replaced(caller, described(directory, "lang", "classify", postprocessing_gives=config.postprocessing_gives))


async def test_the_steps_behind_a_model_make_what_it_gives(caller: FakeCaller, pool: TextPool) -> None:
    behind(caller, "softmax", "label_names", {"top_k": {"k": 1}})
    (value,) = first(await runner(caller, pool, LANGUAGE).run(request("z")))
    assert [len(scores) for scores in value.labels] == [1]
    assert not value.is_multi_label
    behind(caller, "tests.user_steps:Spread")
    (value,) = first(await runner(caller, pool, LANGUAGE).run(request("z")))
    assert (value.kind, [json.loads(text) for text in value.texts]) == ("json", [{"spread": 4.0, "of": 3}])


async def test_a_label_that_is_left_out_chooses_the_default(caller: FakeCaller, pool: TextPool) -> None:
    behind(caller, "softmax", "label_names", {"threshold": {"min_score": 0.999}})
    await runner(caller, pool, LANGUAGE, ANSWER).run(request("z", "zq", "zqz"))
    assert {model for model, _request in caller.generate_requests} == {"chat-en"}


async def test_a_graph_of_texts_takes_a_request_as_one(caller: FakeCaller, pool: TextPool) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "low", "chain": ["lowercase"]},
        {"name": "v", "model": "minilm", "input": "low"},
    ]
    result = await runner(caller, pool, *steps, input="texts", output=["low", "v"]).run(request("A", "B"))
    (run,) = result.runs
    assert result.is_joint
    assert run.results[0].texts == ["a", "b"]
    assert len(run.results[1].items) == 2


async def test_a_text_without_sentences_gives_an_empty_list(caller: FakeCaller, pool: TextPool) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "s", "chain": ["split_sentences"]},
        {"name": "t", "model": "lang", "input": "s"},
    ]
    result = await runner(caller, pool, *steps).run(request("  ", "One."))
    assert [(value.is_list, len(value.labels)) for value in first(result)] == [(True, 0), (True, 1)]


async def test_tensors_of_a_module_are_the_input_of_the_next(caller: FakeCaller, pool: TextPool) -> None:
    steps = [
        {"name": "v", "model": "minilm"},
        {"name": "n", "model": "numbers", "input": "v"},
        {"name": "t", "model": "head", "input": "n"},
    ]
    result = await runner(caller, pool, *steps, output=["n", "t"]).run(request("text"))
    (run,) = result.runs
    assert run.results[0].kind == "tensors"
    assert set(caller.infer_requests[-1].items[0]) == {"x"}


@pytest.mark.parametrize("spec", [TensorSpec("float64", ("batch", 3)), TensorSpec("float32", ("batch", 4))])
async def test_a_tensor_of_another_dtype_or_size_is_refused(
    caller: FakeCaller, pool: TextPool, spec: TensorSpec
) -> None:
    replaced(caller, described(Path("."), "head", "classify", inputs={"x": spec}))
    steps = [{"name": "v", "model": "minilm"}, {"name": "t", "model": "head", "input": "v"}]
    with pytest.raises(UnprocessableError, match=r"step t: model head takes x as .*, and gets float32 \[1, 3\]"):
        await runner(caller, pool, *steps).run(request("text"))


async def test_the_first_failure_ends_the_other_steps(caller: FakeCaller, pool: TextPool) -> None:
    caller.error, caller.failing = QueueFullError("full"), "lang"
    caller.delay_s = 0.01
    steps: list[dict[str, Any]] = [LANGUAGE, ANSWER, {"name": "v", "model": "minilm"}]
    with pytest.raises(QueueFullError, match="full"):
        await runner(caller, pool, *steps, output=["answer", "v"]).run(request("text"))
    assert caller.num_running == 0
    assert caller.generate_requests == []


async def test_a_model_that_is_gone_is_named(caller: FakeCaller, pool: TextPool) -> None:
    caller.models = []
    with pytest.raises(UnavailableError, match="model=minilm"):
        await runner(caller, pool, {"name": "v", "model": "minilm"}).run(request("text"))


async def test_a_graph_that_takes_too_long_is_ended(caller: FakeCaller, pool: TextPool) -> None:
    caller.delay_s = 30
    graph = runner(caller, pool, {"name": "v", "model": "minilm"}, timeout_s=0.2)
    with pytest.raises(TimeoutExceededError, match=r"longer than timeout_s=0.2"):
        await graph.run(request("text"))
    assert caller.num_cancelled == 1


async def test_a_request_that_is_given_up_gives_up_its_calls(caller: FakeCaller, pool: TextPool) -> None:
    caller.delay_s = 30
    task = asyncio.create_task(runner(caller, pool, {"name": "v", "model": "minilm"}).run(request("text")))
    await caller.is_running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (caller.num_cancelled, caller.num_running) == (1, 0)


async def test_a_chat_needs_a_template(pool: TextPool, tmp_path: Path) -> None:
    plain = save_model_dir(tmp_path / "plain", chat_template=None)
    caller = FakeCaller([described(plain, "chat", "generate")])
    with pytest.raises(InternalError, match="step a: is_chat=true, but the model has no chat template"):
        await runner(caller, pool, {"name": "a", "model": "chat", "is_chat": True}).run(request("text"))


async def test_packed_tokens_of_a_module_cannot_reach_other_requests(
    caller: FakeCaller, pool: TextPool, directory: Path
) -> None:
    packed = {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))}
    taker = described(directory, "taker", "predict", inputs=packed, has_tokenizer=False)
    caller.models.append(taker)
    lies = {"input_ids": integer_tensor([1, 2, 3]), "lengths": integer_tensor([5])}
    given = GraphValue("tensors", items=[lies])
    call = StepCall(GraphStepConfig(name="t", model="taker"), "r", None)
    with pytest.raises(RequestError, match="lengths must be positive and add up"):
        await ModelSteps(caller, pool).run(call, "taker", given)
    assert not caller.infer_requests
