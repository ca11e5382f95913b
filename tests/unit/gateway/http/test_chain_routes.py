"""Models with steps before and after them, over HTTP: what clients get, and what is restored when they ask."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from serve_app.config.gateway import GatewayConfig
from serve_app.config.model import ModelConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.preprocessing.arrays import to_tensor_data
from serve_app.preprocessing.chain import ChainModel, make_chain
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import Item, TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
TEXT_INPUTS = {"input_ids": TensorSpec("int64", ("tokens",)), "lengths": TensorSpec("int64", ("batch",))}
LABELS = ["red", "green", "blue"]
MAIL = "Mail a@b.de or c@d.fr, A@B.DE!"


@pytest.fixture
def backend(tmp_path: Path) -> ScriptedBackend:
    return ScriptedBackend(save_model_dir(tmp_path), max_model_len=512)


@pytest.fixture
async def client(backend: ScriptedBackend) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        yield client


def put_before(backend: ScriptedBackend, *steps: Any, renderer: ChatTemplateRenderer | None = None) -> None:
    """Give the scripted generator these steps; it says its prompt again."""
    config = ModelConfig.model_validate({"name": "m", "source": "s", "preprocessing": list(steps)})
    backend.chain = make_chain(config.preprocessing, ChainModel(backend.source_dir, renderer=renderer))
    backend.changes = {"has_preprocessing": True, "is_prompt_templated": config.is_prompt_templated}


def put_behind(backend: ScriptedBackend, task: str, *steps: Any) -> None:
    """A model `m` whose outputs go through these steps."""
    module = {"architecture": "a.b:C"} if task == "predict" else {}
    values = {"name": "m", "source": "s", "task": task, "postprocessing": list(steps), **module}
    config = ModelConfig.model_validate(values)
    backend.after = make_chain(config.postprocessing, ChainModel(backend.source_dir, LABELS), is_after=True)
    inputs = TEXT_INPUTS if task == "classify" else {"x": TensorSpec("float32", ("batch", 3))}
    name = "logits" if task == "classify" else "y"
    bare = ModelDescription("m", task, str(backend.source_dir), 64, 64, 300, [], 1, labels=LABELS)
    outputs = {name: TensorSpec("float32", ("batch", 3))}
    gives = config.postprocessing_gives
    backend.extra_models = [replace(bare, inputs=inputs, outputs=outputs, postprocessing_gives=gives)]
    backend.infer_script = answer


def answer(item: Item) -> Item:
    """Always the same numbers, which are 0.1, 0.3 and 0.6 as probabilities."""
    row = to_tensor_data(np.log(np.array([[1.0, 3.0, 6.0]], np.float32)))
    return {"y": row} if "x" in item else {"logits": row}


async def post(client: httpx.AsyncClient, path: str, **body: Any) -> Any:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_prompt_goes_through_the_models_steps(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_before(backend, "redact_pii", "lowercase")
    await post(client, COMPLETIONS, prompt=[MAIL, "B"], max_tokens=1)
    assert [backend.text(one.prompt_token_ids) for one in backend.requests] == [
        "mail <email_1> or <email_2>, <email_3>!",
        "b",
    ]


async def test_token_ids_are_taken_as_they_are(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_before(backend, "lowercase")
    await post(client, COMPLETIONS, prompt=backend.ids("ABC"), max_tokens=1)
    assert backend.requests[0].prompt_token_ids == backend.ids("ABC")


async def test_a_conversations_messages_share_their_placeholders(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    put_before(backend, "redact_pii")
    messages = [{"role": "user", "content": "I am a@b.de"}, {"role": "assistant", "content": "Not c@d.fr?"}]
    messages.append({"role": "user", "content": "No: a@b.de"})
    await post(client, CHAT, messages=messages, max_tokens=1)
    (request,) = backend.requests
    text = backend.text(request.prompt_token_ids)
    assert "[user]I am <EMAIL_1>" in text
    assert "[assistant]Not <EMAIL_2>?" in text
    assert "[user]No: <EMAIL_1>" in text


async def test_reasoning_and_what_calls_give_to_functions_go_through_the_steps_too(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message.content }}{{ message.reasoning_content }}{% for call in message.tool_calls or [] %}|{{ call.function.arguments.to }}{% endfor %}{% endfor %}"  # noqa: E501
    backend = ScriptedBackend(save_model_dir(tmp_path, chat_template=template))
    put_before(backend, "redact_pii")
    function = {"name": "send", "arguments": '{"to": "a@b.de"}'}
    messages = [
        {"role": "user", "content": "I am a@b.de"},
        {"role": "assistant", "tool_calls": [{"function": function}], "reasoning_content": "to a@b.de"},
    ]
    app = build_http_app(DataPlane(backend, GatewayConfig()))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://gateway") as client,
    ):
        await post(client, CHAT, messages=messages, max_tokens=1)
    assert backend.text(backend.requests[0].prompt_token_ids) == "I am <EMAIL_1>to <EMAIL_1>|<EMAIL_1>"


async def test_an_answer_shows_placeholders_unless_the_client_asks(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    put_before(backend, "redact_pii", "lowercase")
    num_tokens = len(backend.ids("mail <email_1> or <email_2>, <email_3>!")) + 1
    (choice,) = (await post(client, COMPLETIONS, prompt=MAIL, max_tokens=num_tokens))["choices"]
    assert choice["text"] == "mail <email_1> or <email_2>, <email_3>!"
    body = {"prompt": MAIL, "max_tokens": num_tokens, "restore_redactions": True}
    (choice,) = (await post(client, COMPLETIONS, **body))["choices"]
    assert choice["text"] == "mail a@b.de or c@d.fr, A@B.DE!"
    (choice,) = (await post(client, COMPLETIONS, **body, echo=True))["choices"]
    assert choice["text"] == "mail a@b.de or c@d.fr, A@B.DE!" * 2


async def test_a_stream_is_restored_across_its_tokens(backend: ScriptedBackend) -> None:
    put_before(backend, "redact_pii")
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as caller,
    ):
        stream = await caller.completions.create(
            model="tiny", prompt=f"{MAIL} <", max_tokens=45, stream=True, extra_body={"restore_redactions": True}
        )
        pieces = [event.choices[0].text async for event in stream]
    redacted = backend.text(backend.requests[0].prompt_token_ids)
    assert redacted == "Mail <EMAIL_1> or <EMAIL_2>, <EMAIL_3>! <"
    assert "".join(pieces).startswith(f"{MAIL} <")
    assert not any("EMAIL" in piece for piece in pieces)
    assert len(pieces) > 10


@pytest.mark.parametrize(
    ("steps", "body", "message"),
    [
        ([], {}, "redacts nothing"),
        (["redact_pii"], {"logprobs": 1}, "does not work with log-probabilities"),
        (["redact_pii"], {"return_token_ids": True}, "does not work with log-probabilities and token ids"),
    ],
)
async def test_what_cannot_be_restored_is_refused(
    client: httpx.AsyncClient, backend: ScriptedBackend, steps: list[str], body: dict[str, Any], message: str
) -> None:
    if steps:
        put_before(backend, *steps)
    response = await client.post(COMPLETIONS, json={"prompt": MAIL, "restore_redactions": True, **body})
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "restore_redactions"
    assert message in error["message"]
    assert not backend.requests


async def test_a_prompt_can_become_a_conversation(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    renderer = ChatTemplateRenderer(timeout_s=5)
    try:
        put_before(backend, "lowercase", "chat_template", renderer=renderer)
        await post(client, CHAT, messages=[{"role": "user", "content": "HI"}], max_tokens=1)
        await post(client, COMPLETIONS, prompt="HI", max_tokens=1)
    finally:
        renderer.close()
    first, second = (request.prompt_token_ids for request in backend.requests)
    assert first == second, "one template and one BOS, on either route"


async def test_preprocess_shows_the_steps_of_a_generator(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_before(backend, "redact_pii", "lowercase")
    (made,) = (await post(client, "/v1/preprocess", model="tiny", input="A@b.de", reveal=True))["data"]
    assert made["value"] == {"text": "<email_1>"}
    assert [step["step"] for step in made["steps"]] == ["redact_pii", "lowercase"]
    assert made["redactions"][0]["original"] == "A@b.de"


@pytest.mark.parametrize("body", [{}, {"input": []}, {"input": 5}, {"input": ["a"], "extra": 1}])
async def test_preprocess_names_what_is_wrong(
    client: httpx.AsyncClient, backend: ScriptedBackend, body: dict[str, Any]
) -> None:
    put_before(backend, "lowercase")
    response = await client.post("/v1/preprocess", json={"model": "tiny", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] in ("input", "extra")


async def test_preprocess_of_a_model_without_steps_says_so(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/preprocess", json={"model": "tiny", "input": "a"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "model")


async def test_the_steps_behind_a_classifier_make_its_answer(
    client: httpx.AsyncClient, backend: ScriptedBackend
) -> None:
    put_behind(backend, "classify", "softmax", "label_names", {"top_k": {"k": 2}})
    made = await post(client, "/predict", model="m", text=["a", "b"])
    expected = {"label": "blue", "probability": pytest.approx(0.6), "probabilities": {"blue": 0.6, "green": 0.3}}
    expected["probabilities"] = pytest.approx(expected["probabilities"])
    assert made == [expected, expected]
    (entry,) = (await post(client, "/v1/classify", model="m", input="a"))["data"]
    assert (entry["label"], entry["num_classes"]) == ("blue", 2)
    assert [one["label"] for one in entry["labels"]] == ["blue", "green"]


async def test_a_threshold_may_leave_no_label(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_behind(backend, "classify", "softmax", "label_names", {"threshold": {"min_score": 0.7}})
    made = await post(client, "/predict", model="m", text="a")
    assert made == {"label": None, "probability": None, "probabilities": {}}
    (entry,) = (await post(client, "/v1/classify", model="m", input="a"))["data"]
    assert (entry["label"], entry["labels"], entry["probs"]) == (None, [], [])


async def test_scores_below_zero_are_shown(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_behind(backend, "classify", "label_names")
    backend.infer_script = lambda _item: {"logits": to_tensor_data(np.array([[-3.0, -1.0, -2.0]], np.float32))}
    (entry,) = (await post(client, "/v1/classify", model="m", input="a"))["data"]
    assert [one["label"] for one in entry["labels"]] == ["green", "blue", "red"]


async def test_a_users_class_makes_the_whole_answer(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_behind(backend, "classify", "softmax", "tests.user_steps:Spread")
    one = await post(client, "/predict", model="m", text="a")
    assert one == {"spread": pytest.approx(0.5), "of": 3}
    assert await post(client, "/predict", model="m", text=["a", "b"]) == [one, one]
    refused = await client.post("/v1/classify", json={"model": "m", "input": "a"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")
    assert "use /predict" in refused.json()["error"]["message"]


async def test_a_users_class_makes_an_answer_of_tensors(client: httpx.AsyncClient, backend: ScriptedBackend) -> None:
    put_behind(backend, "predict", "tests.user_steps:Spread")
    made = await post(client, "/predict", model="m", inputs={"x": [[1, 2, 3]]})
    assert made == {"spread": pytest.approx(np.log(6)), "of": 3}
    put_behind(backend, "predict", "tests.user_steps:Unspeakable")
    response = await client.post("/predict", json={"model": "m", "inputs": {"x": [[1, 2, 3]]}})
    assert response.status_code == 500
