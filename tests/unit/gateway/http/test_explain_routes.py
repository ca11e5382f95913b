"""Explanations by occlusion over HTTP, with scripted models behind the Gateway."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from serve_app.backend.protocol import TakeChunk
from serve_app.config.gateway import GatewayConfig
from serve_app.gateway.calls.data_plane import DataPlane
from serve_app.gateway.http.app import build_http_app
from serve_app.preprocessing.arrays import to_array, to_tensor_data
from serve_app.types.generation import GenerateRequest, OutputChunk, TokenLogprobs
from serve_app.types.models import ModelDescription
from serve_app.types.tensors import InferRequest, InferResult, Item, TensorSpec
from tests.fakes import NO_TLS, ScriptedBackend, save_model_dir, serving

WORDS = ["[PAD]", "[UNK]", "[CLS]", "<s>", "</s>", "my", "refund", "is", "late", ",", "please", "pay", "yes", "no"]
WEIGHTS = {"refund": 3.0, "late": -1.5, "pay": 0.5, "[UNK]": 0.25}
OTHER_WEIGHTS = {"refund": 2.5, "late": 4.0, "pay": 0.5, "[UNK]": 0.25}


def word_tokenizer() -> Tokenizer:
    """A word is a token; a text begins with [CLS], a pair has another one between."""
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A", pair="[CLS] $A [CLS]:1 $B:1", special_tokens=[("[CLS]", WORDS.index("[CLS]"))]
    )
    return tokenizer


def linear(item: Item, weights: dict[str, float]) -> Item:
    """Logits of three labels: none, the sum of the words' weights, one for each word of a second text."""
    words = [WORDS[index] for index in to_array(item["input_ids"]).tolist()]
    kinds = to_array(item["token_type_ids"]).tolist() if "token_type_ids" in item else [0] * len(words)
    row = [0.0, sum(weights.get(word, 0.0) for word in words), float(sum(kinds))]
    return {"logits": to_tensor_data(np.array([row], dtype=np.float32))}


@dataclass
class Likely(ScriptedBackend):
    """A generator to which "yes" is as likely as the prompt has refunds, and answers it."""

    prompts: list[list[str]] = field(default_factory=list)

    async def infer(self, request: InferRequest) -> InferResult:
        """As the model's name has it."""
        weights = OTHER_WEIGHTS if request.model == "other" else WEIGHTS
        self.infer_script = lambda item: linear(item, weights)
        return await ScriptedBackend.infer(self, request)

    async def generate(self, model: str, request: GenerateRequest, take: TakeChunk) -> None:
        """Say yes as often as asked, and end."""
        assert model == self.name
        self.requests.append(request)
        words = [WORDS[index] for index in request.prompt_token_ids]
        self.prompts.append(words)
        logprobs = None
        if request.params.num_prompt_logprobs is not None:
            logprobs = [
                TokenLogprobs(index, likelihood(words, place), 1, [], []) for place, index in self.told(request)
            ]
        ids = [WORDS.index("yes")] * (request.params.max_tokens - 1) + [WORDS.index("</s>")]
        take(OutputChunk(0, 0, [], prompt_logprobs=logprobs))
        take(OutputChunk(0, 0, ids, finish_reason="stop", stop_token_id=ids[-1]))

    def told(self, request: GenerateRequest) -> list[tuple[int, int]]:
        """Every token but the first, and its place."""
        return list(enumerate(request.prompt_token_ids))[1:]


def likelihood(words: Sequence[str], place: int) -> float:
    return -1.0 - 2.0 * ("refund" not in words[:place]) if words[place] == "yes" else -9.0


@dataclass
class Served:
    """The Gateway's client, and the models behind it."""

    client: httpx.AsyncClient
    backend: Likely

    async def explain(self, **body: Any) -> dict[str, Any]:
        """The answer, which must be one."""
        response = await self.client.post("/v1/explain", json=body)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def refusal(self, **body: Any) -> tuple[int, str | None, str]:
        """Status, field and message of a refusal."""
        response = await self.client.post("/v1/explain", json=body)
        error = response.json()["error"]
        return response.status_code, error["param"], error["message"]


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    directory = save_model_dir(tmp_path, word_tokenizer())
    (directory / "tokenizer_config.json").write_text(
        '{"unk_token": "[UNK]", "pad_token": "[PAD]", "eos_token": "</s>"}'
    )
    tokens, lengths = TensorSpec("int64", ("tokens",)), TensorSpec("int64", ("batch",))
    inputs = {"input_ids": tokens, "lengths": lengths, "token_type_ids": tokens}
    outputs = {"logits": TensorSpec("float32", ("batch", 3))}
    backend = Likely(directory, name="writer", max_model_len=64)
    labels = ["quiet", "angry", "long"]
    backend.extra_models = [
        ModelDescription(
            name, "classify", str(directory), 64, 64, len(WORDS), [], 1, labels=labels, inputs=inputs, outputs=outputs
        )
        for name in ("mood", "other")
    ]
    async with (
        serving(build_http_app(DataPlane(backend, GatewayConfig()))) as url,
        httpx.AsyncClient(verify=NO_TLS, base_url=url) as client,
    ):
        yield Served(client, backend)


def scores(explanation: dict[str, Any]) -> dict[str, Any]:
    return {token["text"]: pytest.approx(token["score"]) for token in explanation["tokens"]}


async def test_scores_of_a_linear_model_are_its_weights_less_that_of_the_replacement(served: Served) -> None:
    answer = (await served.explain(model="mood", input="My refund  is late, pay"))["explanation"]
    assert (answer["target"], answer["target_index"], answer["method"]) == ("angry", 1, "occlusion")
    assert (answer["replacement"], answer["output"], answer["value"]) == ("unk", "logit", 2.25)  # My is [UNK]
    assert scores(answer) == {"My": 0.0, "refund": 2.75, "is": -0.25, "late": -1.75, ",": -0.25, "pay": 0.25}
    assert answer["baseline_value"] == 6 * 0.25
    for token in answer["tokens"]:
        assert answer["text"][token["start"] : token["end"]] == token["text"]


async def test_removed_words_leave_the_weights_themselves(served: Served) -> None:
    answer = (await served.explain(model="mood", input="refund is late", replacement="remove", target="angry"))[
        "explanation"
    ]
    assert scores(answer) == {"refund": 3.0, "is": 0.0, "late": -1.5}
    assert answer["baseline_value"] == 0.0
    (request,) = served.backend.infer_requests
    assert len(request.items) == 1 + 3 + 1  # one batch: as it is, without each, without all
    assert [len(to_array(item["input_ids"])) for item in request.items] == [4, 3, 3, 3, 1]


async def test_probabilities_and_other_labels_are_explained_when_asked_for(served: Served) -> None:
    answer = (await served.explain(model="mood", input="refund", target=0, output="probability"))["explanation"]
    powers = np.exp([0.0, 3.0, 0.0]), np.exp([0.0, 0.25, 0.0])
    whole, hidden = (float(power[0] / power.sum()) for power in powers)
    assert answer["target"] == "quiet"
    assert answer["value"] == pytest.approx(whole)
    assert scores(answer) == {"refund": whole - hidden}


async def test_the_second_text_of_a_pair_has_scores_of_its_own(served: Served) -> None:
    answer = (await served.explain(model="mood", input="refund", text_pair="is  late", target="long"))["explanation"]
    parts = [(token["part"], token["start"], token["end"]) for token in answer["tokens"]]
    assert parts == [("input", 0, 6), ("text_pair", 0, 2), ("text_pair", 4, 8)]
    assert answer["text_pair"] == "is  late"


async def test_another_model_is_asked_the_same_and_the_largest_difference_comes_first(served: Served) -> None:
    answer = await served.explain(model="mood", against="other", input="refund is late, pay", top_n=2)
    assert (answer["explanation"]["model"], answer["against"]["model"]) == ("mood", "other")
    assert answer["against"]["target"] == "angry"
    first, second = answer["comparison"]["differences"]
    assert (first["text"], first["start"], first["end"], first["difference"]) == ("late", 10, 14, 5.5)
    assert (second["text"], second["difference"]) == ("refund", -0.5)
    assert answer["comparison"]["rank_correlation"] == pytest.approx(-0.5 / 9.5)  # ranks 5 2.5 1 2.5 4; 4 1.5 5 1.5 3
    twin = await served.explain(model="mood", against="mood", input="refund is late, pay")
    assert twin["comparison"]["rank_correlation"] == pytest.approx(1)
    assert {one["difference"] for one in twin["comparison"]["differences"]} == {0.0}


async def test_a_generators_answer_is_scored_after_each_copy_of_the_prompt(served: Served) -> None:
    answer = await served.explain(model="writer", input="my refund is late", target="yes yes", replacement="remove")
    explanation = answer["explanation"]
    assert (explanation["output"], explanation["value"], explanation["target_index"]) == ("logprob", -2.0, None)
    assert scores(explanation) == {"my": 0.0, "refund": 4.0, "is": 0.0, "late": 0.0}
    assert explanation["baseline_value"] == -6.0
    assert served.backend.prompts[2] == ["[CLS]", "my", "is", "late", "yes", "yes"]
    assert all(request.params.num_prompt_logprobs == 0 for request in served.backend.requests)


async def test_without_a_target_a_generators_own_answer_is_explained(served: Served) -> None:
    answer = await served.explain(model="writer", input="my refund", max_tokens=3)
    assert answer["explanation"]["target"].strip() == "yes yes"
    assert served.backend.requests[0].params.temperature == 0.0
    assert scores(answer["explanation"])["refund"] == 4.0
    assert answer["usage"]["completion_tokens"] == 3


async def test_a_generators_hidden_words_are_removed_before_they_are_padding(served: Served, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": "[PAD]", "eos_token": "</s>"}')
    for model, stand in (("writer", "remove"), ("mood", "pad")):
        answer = await served.explain(model=model, input="my refund", target="yes" if model == "writer" else "angry")
        assert answer["explanation"]["replacement"] == stand


async def test_a_model_to_compare_with_that_is_not_there_is_named(served: Served) -> None:
    status, param, message = await served.refusal(model="mood", input="refund", against="nobody")
    assert (status, param) == (404, "against")
    assert message.startswith("against='nobody' is not served")


async def test_copies_have_the_callers_priority(served: Served) -> None:
    await served.explain(model="mood", input="refund", priority=7)
    await served.explain(model="writer", input="refund", target="yes", priority=7)
    assert {request.priority for request in served.backend.infer_requests} == {7}
    assert {request.priority for request in served.backend.requests} == {7}


@pytest.mark.parametrize(
    ("body", "param", "said"),
    [
        ({"model": "mood", "input": "  "}, "input", "holds no word"),
        ({"model": "mood", "input": "refund", "target": "sad"}, "target", "send one of ['quiet', 'angry', 'long']"),
        ({"model": "mood", "input": "refund", "target": 3}, "target", "send 0 to 2"),
        ({"model": "mood", "input": "pay " * 64}, "input", "the model takes 64"),
        ({"model": "mood", "input": "refund", "replacement": "mask"}, "replacement", "has no mask_token"),
        ({"model": "mood", "input": "refund", "unit": "line"}, "unit", "expected one of token, word"),
        ({"model": "mood", "input": "refund", "output": "score"}, "output", "expected one of logit, probability"),
        ({"model": "mood", "input": "refund", "replacement": "zero"}, "replacement", "does not go with this method"),
        ({"model": "mood", "input": "refund", "method": "occlusion", "steps": 3}, "steps", "the method is occlusion"),
        ({"model": "mood", "input": "refund", "method": "integrated_gradients"}, "method", "send auto or occlusion"),
        ({"model": "mood", "input": "refund", "max_tokens": 3}, "max_tokens", "is for models that generate"),
        ({"model": "mood", "input": "refund", "top_n": 3}, "top_n", "send it with against"),
        ({"model": "mood", "input": "refund", "against": "writer"}, "against", "compare models of one kind"),
        ({"model": "writer", "input": "refund", "target": 1}, "target", "send a text"),
        ({"model": "writer", "input": "refund", "target": ""}, "target", "target is empty"),
        ({"model": "writer", "input": "refund", "output": "logit"}, "output", "is for classifiers"),
        ({"model": "writer", "input": "refund", "max_tokens": 257}, "max_tokens", "at most 256"),
        ({"model": "writer", "input": "pay " * 62, "target": "yes yes"}, "target", "exceed this model's context of 64"),
        ({"model": "mood", "input": ["refund"]}, "input", "str"),
        ({"model": "mood", "input": "refund", "n_steps": 3}, "n_steps", "n_steps"),
    ],
)  # fmt: skip
async def test_what_cannot_be_explained_is_refused(served: Served, body: Any, param: str, said: str) -> None:
    status, field_name, message = await served.refusal(**body)
    assert (status, field_name) == (400, param), message
    assert said in message
