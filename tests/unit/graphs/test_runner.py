"""A graph's steps, run on models that answer by rule."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from serve_app.backend.text_models import Call, TextModels
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
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool
from serve_app.preprocessing.tokenizer import Tokenizer
from serve_app.types.graphs import GraphRequest, GraphResult, GraphValue
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import TensorSpec
from tests.fakes import END_OF_TURN, save_model_dir
from tests.fakes_graph import LABELS, FakeModels, described, head

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
def models(directory: Path) -> FakeModels:
    models = [
        described(directory, "minilm", "embed"),
        described(directory, "lang", "classify"),
        described(directory, "chat-de", "generate"),
        described(directory, "chat-en", "generate"),
        head(directory),
        head(directory, "numbers", "predict"),
    ]
    return FakeModels(models)


def runner(models: FakeModels, pool: TextPool, *steps: dict[str, Any], **more: Any) -> GraphRunner:
    values = {"name": "p", "steps": list(steps), "output": steps[-1]["name"], **more}
    return GraphRunner(GraphConfig.model_validate(values), ModelSteps(TextModels(models, pool), pool), pool)


def request(*texts: str) -> GraphRequest:
    return GraphRequest("r", "p", list(texts), queue_timeout_s=7.0)


def first(result: GraphResult) -> list[GraphValue]:
    return [run.results[0] for run in result.runs]


def described_one(models: FakeModels, name: str) -> ModelDescription:
    found = models.model(name)
    assert found is not None
    return found


def replaced(models: FakeModels, description: ModelDescription) -> None:
    models.described = [one for one in models.described if one.name != description.name] + [description]


def num_tokens(directory: Path, text: str) -> int:
    return len(Tokenizer.load(directory).encode(text))


async def test_sentences_become_vectors_and_those_labels(models: FakeModels, pool: TextPool, directory: Path) -> None:
    graph = runner(
        models,
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


async def test_all_inputs_of_a_request_go_to_a_model_together(models: FakeModels, pool: TextPool) -> None:
    result = await runner(models, pool, {"name": "v", "model": "minilm"}).run(request(*"abcde"))
    (sent,) = models.infer_requests
    assert (len(sent.items), sent.model, sent.queue_timeout_s) == (5, "minilm", 7.0)
    assert [value.is_list for value in first(result)] == [False] * 5


async def test_many_entries_go_together_and_keep_their_order(
    models: FakeModels, pool: TextPool, directory: Path
) -> None:
    texts = ["a" * (1 + index % 30) for index in range(100)]
    result = await runner(models, pool, {"name": "v", "model": "minilm"}).run(request(*texts))
    assert [len(one.items) for one in models.infer_requests] == [100]  # which the backend cuts into pieces
    sizes = [to_array(value.items[0]["embedding"])[0, 0] for value in first(result)]
    assert sizes == [num_tokens(directory, text) for text in texts]


async def test_independent_steps_run_side_by_side(models: FakeModels, pool: TextPool) -> None:
    models.delay_s = 0.05
    steps = [{"name": "a", "model": "minilm"}, {"name": "b", "model": "lang"}]
    await runner(models, pool, *steps, output=["a", "b"]).run(request("text"))
    assert models.peak_running == 2


async def test_a_label_chooses_the_model_for_each_text(models: FakeModels, pool: TextPool, directory: Path) -> None:
    texts = ["z", "zq", "zqz"]  # no merges: one token for each letter
    result = await runner(models, pool, LANGUAGE, ANSWER).run(request(*texts))
    labels = [LABELS[num_tokens(directory, text) % 3] for text in texts]
    assert set(labels) > {"de"}, "the texts must take both branches"
    chosen = dict(zip(texts, ["chat-de" if label == "de" else "chat-en" for label in labels], strict=True))
    tokenizer = Tokenizer.load(directory)
    asked = {tokenizer.decode(one.prompt_token_ids): model for model, one in models.generate_requests}
    assert asked == chosen
    assert [value.texts for value in first(result)] == [[text] for text in texts]


async def test_a_label_without_a_case_is_an_error(models: FakeModels, pool: TextPool) -> None:
    replaced(models, described(Path(models.described[0].source_dir), "lang", "classify", labels=["x", "y", "z"]))
    step = {**ANSWER, "default": None, "cases": {"de": "chat-de", "en": "chat-en"}}
    with pytest.raises(UnprocessableError, match="step answer: no case is for label"):
        await runner(models, pool, LANGUAGE, step).run(request("text"))


async def test_generation_is_cut_to_the_context_of_the_model(models: FakeModels, pool: TextPool) -> None:
    await runner(models, pool, {"name": "a", "model": "chat-en"}).run(request("a" * 30))
    ((_model, sent),) = models.generate_requests
    assert sent.params.max_tokens == 40 - len(sent.prompt_token_ids)
    assert sent.params.temperature == 0
    with pytest.raises(RequestError, match="step a: a text has 41 tokens, and model chat-en takes 39"):
        await runner(models, pool, {"name": "a", "model": "chat-en"}).run(request("z" * 40))


@pytest.mark.parametrize("step", [{"model": "lang"}, {"model": "chat-en"}, {"model": "chat-en", "is_chat": True}])
async def test_a_token_without_a_row_in_the_embedding_is_refused_by_name(
    models: FakeModels, pool: TextPool, directory: Path, step: dict[str, Any]
) -> None:
    end = Tokenizer.load(directory).num_tokens - 1
    models.described = [replace(model, vocab_size=end) for model in models.described]
    texts = request(f"hello {END_OF_TURN}")
    renderer = ChatTemplateRenderer()
    steps = ModelSteps(TextModels(models, pool), pool, renderer)
    graph = GraphConfig.model_validate({"name": "p", "steps": [{"name": "s", **step}], "output": "s"})
    with pytest.raises(RequestError, match=rf"text: token '<\|end\|>' \(id {end}\) is not in 0\.\.{end - 1}"):
        await GraphRunner(graph, steps, pool).run(texts)
    renderer.close()
    assert (models.infer_requests, models.generate_requests) == ([], [])


async def test_a_model_is_given_what_its_own_preprocessing_makes(
    models: FakeModels, pool: TextPool, directory: Path
) -> None:
    models.chain = chain_of({"truncate": {"max_chars": 2}})
    replaced(models, described(directory, "minilm", "embed", has_preprocessing=True))
    result = await runner(models, pool, {"name": "v", "model": "minilm"}).run(request("abcdef"))
    assert to_array(first(result)[0].items[0]["embedding"])[0, 0] == num_tokens(directory, "ab")


async def test_a_models_default_prompt_goes_before_its_texts(
    models: FakeModels, pool: TextPool, directory: Path
) -> None:
    prompts = {"prompts": {"query": "q: "}, "default_prompt_name": "query"}
    replaced(models, described(directory, "minilm", "embed", **prompts))
    result = await runner(models, pool, {"name": "v", "model": "minilm"}).run(request("ab"))
    assert to_array(first(result)[0].items[0]["embedding"])[0, 0] == num_tokens(directory, "q: ab")


def chain_of(*steps: Any) -> Chain:
    values = {"name": "p", "output": "a", "steps": [{"name": "a", "chain": list(steps)}]}
    chain = GraphConfig.model_validate(values).steps[0].chain
    assert chain is not None
    return make_chain(chain)


async def test_a_generator_is_given_what_its_own_preprocessing_makes(
    models: FakeModels, pool: TextPool, directory: Path
) -> None:
    models.chain = chain_of("redact_pii", "lowercase")
    replaced(models, described(directory, "chat-en", "generate", has_preprocessing=True))
    graph = runner(models, pool, {"name": "a", "model": "chat-en"})
    result = await graph.run(request("TO a@b.de", "x@y.de"))
    assert [value.texts for value in first(result)] == [["to <email_1>"], ["<email_1>"]]
    restored = await graph.run(replace(request("TO a@b.de", "x@y.de"), restores_redactions=True))
    assert [value.texts for value in first(restored)] == [["to a@b.de"], ["x@y.de"]]


async def test_what_chains_take_out_is_restored_in_texts_alone_and_only_when_asked(
    models: FakeModels, pool: TextPool
) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "clean", "chain": ["redact_pii"]},
        {"name": "sentences", "chain": ["split_sentences"], "input": "clean"},
        {"name": "answer", "model": "chat-en", "input": "clean"},
    ]
    replaced(models, replace(described_one(models, "chat-en"), max_model_len=400, max_request_tokens=400))
    graph = runner(models, pool, *steps, output=["sentences", "answer"])
    asked = request("To a@b.de. Or c@d.de.", "To z@z.de.")
    plain = await graph.run(asked)
    assert [run.results[0].texts for run in plain.runs] == [["To <EMAIL_1>.", "Or <EMAIL_2>."], ["To <EMAIL_1>."]]
    restored = await graph.run(replace(asked, restores_redactions=True))
    assert [run.results[0].texts for run in restored.runs] == [["To a@b.de.", "Or c@d.de."], ["To z@z.de."]]
    assert [run.results[1].texts for run in restored.runs] == [["To a@b.de. Or c@d.de."], ["To z@z.de."]]
    prompts = {caller_text(models, one.prompt_token_ids) for _model, one in models.generate_requests}
    assert prompts == {"To <EMAIL_1>. Or <EMAIL_2>.", "To <EMAIL_1>."}, "no model sees the originals"


def caller_text(models: FakeModels, token_ids: list[int]) -> str:
    return Tokenizer.load(models.described[0].source_dir).decode(token_ids)


def behind(models: FakeModels, *steps: Any) -> None:
    """Put steps behind the classifier `lang`."""
    values = {"name": "m", "source": "s", "task": "classify", "postprocessing": list(steps)}
    config = ModelConfig.model_validate(values)
    directory = Path(models.described[0].source_dir)
    models.after = make_chain(config.postprocessing, ChainModel(directory, LABELS), is_after=True)
    replaced(models, described(directory, "lang", "classify", postprocessing_gives=config.postprocessing_gives))


async def test_the_steps_behind_a_model_make_what_it_gives(models: FakeModels, pool: TextPool) -> None:
    behind(models, "softmax", "label_names", {"top_k": {"k": 1}})
    (value,) = first(await runner(models, pool, LANGUAGE).run(request("z")))
    assert [len(scores) for scores in value.labels] == [1]
    assert not value.is_multi_label
    behind(models, "tests.user_steps:Spread")
    (value,) = first(await runner(models, pool, LANGUAGE).run(request("z")))
    assert (value.kind, [json.loads(text) for text in value.texts]) == ("json", [{"spread": 4.0, "of": 3}])


async def test_a_label_that_is_left_out_chooses_the_default(models: FakeModels, pool: TextPool) -> None:
    behind(models, "softmax", "label_names", {"threshold": {"min_score": 0.999}})
    await runner(models, pool, LANGUAGE, ANSWER).run(request("z", "zq", "zqz"))
    assert {model for model, _request in models.generate_requests} == {"chat-en"}


async def test_a_graph_of_texts_takes_a_request_as_one(models: FakeModels, pool: TextPool) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "low", "chain": ["lowercase"]},
        {"name": "v", "model": "minilm", "input": "low"},
    ]
    result = await runner(models, pool, *steps, input="texts", output=["low", "v"]).run(request("A", "B"))
    (run,) = result.runs
    assert result.is_joint
    assert run.results[0].texts == ["a", "b"]
    assert len(run.results[1].items) == 2


async def test_a_text_without_sentences_gives_an_empty_list(models: FakeModels, pool: TextPool) -> None:
    steps: list[dict[str, Any]] = [
        {"name": "s", "chain": ["split_sentences"]},
        {"name": "t", "model": "lang", "input": "s"},
    ]
    result = await runner(models, pool, *steps).run(request("  ", "One."))
    assert [(value.is_list, len(value.labels)) for value in first(result)] == [(True, 0), (True, 1)]


async def test_tensors_of_a_module_are_the_input_of_the_next(models: FakeModels, pool: TextPool) -> None:
    steps = [
        {"name": "v", "model": "minilm"},
        {"name": "n", "model": "numbers", "input": "v"},
        {"name": "t", "model": "head", "input": "n"},
    ]
    result = await runner(models, pool, *steps, output=["n", "t"]).run(request("text"))
    (run,) = result.runs
    assert run.results[0].kind == "tensors"
    assert set(models.infer_requests[-1].items[0]) == {"x"}


@pytest.mark.parametrize("spec", [TensorSpec("float64", ("batch", 3)), TensorSpec("float32", ("batch", 4))])
async def test_a_tensor_of_another_dtype_or_size_is_refused(
    models: FakeModels, pool: TextPool, spec: TensorSpec
) -> None:
    replaced(models, described(Path("."), "head", "classify", inputs={"x": spec}))
    steps = [{"name": "v", "model": "minilm"}, {"name": "t", "model": "head", "input": "v"}]
    with pytest.raises(UnprocessableError, match=r"step t: model head takes x as .*, and gets float32 \[1, 3\]"):
        await runner(models, pool, *steps).run(request("text"))


async def test_the_first_failure_ends_the_other_steps(models: FakeModels, pool: TextPool) -> None:
    models.error, models.failing = QueueFullError("full"), "lang"
    models.delay_s = 0.01
    steps: list[dict[str, Any]] = [LANGUAGE, ANSWER, {"name": "v", "model": "minilm"}]
    with pytest.raises(QueueFullError, match="full"):
        await runner(models, pool, *steps, output=["answer", "v"]).run(request("text"))
    assert models.num_running == 0
    assert models.generate_requests == []


async def test_a_model_that_is_gone_is_named(models: FakeModels, pool: TextPool) -> None:
    models.described = []
    with pytest.raises(UnavailableError, match="model=minilm"):
        await runner(models, pool, {"name": "v", "model": "minilm"}).run(request("text"))


async def test_a_graph_that_takes_too_long_is_ended(models: FakeModels, pool: TextPool) -> None:
    models.delay_s = 30
    graph = runner(models, pool, {"name": "v", "model": "minilm"}, timeout_s=0.2)
    with pytest.raises(TimeoutExceededError, match=r"longer than timeout_s=0.2"):
        await graph.run(request("text"))
    assert models.num_cancelled == 1


async def count_turns(turns: list[float]) -> None:
    """When the event loop gets its turn."""
    while True:
        turns.append(time.monotonic())
        await asyncio.sleep(0.001)


async def test_a_step_that_works_too_long_ends_in_time_and_soon_leaves_its_thread(pool: TextPool) -> None:
    slow = {"name": "slow", "chain": [{"tests.user_steps:Slow": {"seconds": 0.3}}]}
    graph = runner(FakeModels([]), pool, slow, timeout_s=0.2)
    turns: list[float] = []
    counting = asyncio.create_task(count_turns(turns))
    started_s = time.monotonic()
    with pytest.raises(TimeoutExceededError, match=r"longer than timeout_s=0.2"):
        await graph.run(request(*["text"] * 100))  # 30 s
    assert time.monotonic() - started_s < 3
    await pool.run(str)  # the one thread is free again
    assert time.monotonic() - started_s < 10
    counting.cancel()
    assert len(turns) > 10


@pytest.mark.parametrize("piece", [".", "a. ", "a\u0301\u0323", "+49 30 1234567 ", "<a &amp;"])
async def test_a_long_text_leaves_the_event_loop_its_turns(pool: TextPool, piece: str) -> None:
    steps = ["strip_html", "normalize_unicode", "lowercase", "collapse_whitespace", "redact_pii", "split_sentences"]
    graph = runner(FakeModels([]), pool, {"name": "clean", "chain": steps})
    turns: list[float] = []
    counting = asyncio.create_task(count_turns(turns))
    await graph.run(request(piece * (200_000 // len(piece))))
    counting.cancel()
    assert max(later - sooner for sooner, later in pairwise(turns)) < 1


async def test_a_request_that_is_given_up_gives_up_its_calls(models: FakeModels, pool: TextPool) -> None:
    models.delay_s = 30
    task = asyncio.create_task(runner(models, pool, {"name": "v", "model": "minilm"}).run(request("text")))
    await models.is_running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (models.num_cancelled, models.num_running) == (1, 0)


async def test_a_chat_needs_a_template(pool: TextPool, tmp_path: Path) -> None:
    plain = save_model_dir(tmp_path / "plain", chat_template=None)
    models = FakeModels([described(plain, "chat", "generate")])
    with pytest.raises(InternalError, match="step a: is_chat=true, but the model has no chat template"):
        await runner(models, pool, {"name": "a", "model": "chat", "is_chat": True}).run(request("text"))


async def test_packed_tokens_of_a_module_cannot_reach_other_requests(
    models: FakeModels, pool: TextPool, directory: Path
) -> None:
    packed = {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))}
    taker = described(directory, "taker", "predict", inputs=packed, has_tokenizer=False)
    models.described.append(taker)
    lies = {"input_ids": integer_tensor([1, 2, 3]), "lengths": integer_tensor([5])}
    given = GraphValue("tensors", items=[lies])
    call = StepCall(GraphStepConfig(name="t", model="taker"), Call("r"))
    with pytest.raises(RequestError, match="lengths must be positive and add up"):
        await ModelSteps(TextModels(models, pool), pool).run(call, "taker", given)
    assert not models.infer_requests


async def test_priority_time_and_conversation_of_a_request_are_those_of_what_its_models_run(
    models: FakeModels, pool: TextPool
) -> None:
    step = {"name": "b", "model": "chat-en", "input": "text", "max_tokens": 4}
    graph = runner(models, pool, {"name": "a", "model": "minilm"}, step, output=["a", "b"])
    await graph.run(replace(request("one"), priority=-2, time_left_s=60.0, session="talk"))
    ((_model, generated),) = models.generate_requests
    (inferred,) = models.infer_requests
    assert generated.session == "talk"
    for sent in (generated, inferred):
        assert sent.priority == -2
        assert sent.time_left_s is not None
        assert 10 < sent.time_left_s < 60
    await graph.run(request("one"))
    assert (models.infer_requests[-1].priority, models.infer_requests[-1].time_left_s) == (0, None)


async def test_a_graphs_calls_end_with_the_requests_time(models: FakeModels, pool: TextPool) -> None:
    models.delay_s = 60.0
    with pytest.raises(TimeoutExceededError, match="the request's time passed"):
        await runner(models, pool, {"name": "v", "model": "minilm"}).run(replace(request("a"), time_left_s=0.03))
    assert models.num_cancelled == 1
