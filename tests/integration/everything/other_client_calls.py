"""What the READMEs of other people's clients do first, which test_clients.py runs in a process of their own.

These clients warn of what they themselves do, which would be errors in the process of the tests.
"""

import os

import cohere
import litellm
import numpy as np
import ollama
import pytest
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import SecretStr
from sentence_transformers import SentenceTransformer

URL = os.environ["TEST_HTTP_URL"]
EMBEDDER = os.environ["TEST_EMBEDDER_SOURCE"]
MESSAGES = [{"role": "user", "content": "sort: c a b"}]
TEXTS = ["one text", "二つ目の文", "ü"]
DOCUMENTS = ["Cats purr when they are content.", "The bridge was built in 1890.", "A kitten sleeps most of the day."]


@pytest.fixture(scope="module")
def reference() -> SentenceTransformer:
    return SentenceTransformer(EMBEDDER, device="cpu")


def nearest(reference: SentenceTransformer, query: str) -> list[int]:
    return [int(index) for index in np.argsort(-(reference.encode(DOCUMENTS) @ reference.encode(query)))]


def test_langchain() -> None:
    model = ChatOpenAI(model="demo", base_url=f"{URL}/v1", api_key=SecretStr("none"), temperature=0, max_retries=0)
    whole = model.invoke("sort: c a b")
    assert whole.content
    assert "".join(str(piece.content) for piece in model.stream("sort: c a b")) == whole.content
    assert [one.content for one in model.batch(["sort: c a b"] * 3)] == [whole.content] * 3
    again = model.invoke([("user", "sort: c a b"), ("ai", str(whole.content)), ("user", "sort: c a b")])
    assert again.usage_metadata is not None
    assert again.usage_metadata["input_tokens"] > 20


def test_langchains_embeddings(reference: SentenceTransformer) -> None:
    embeddings = OpenAIEmbeddings(
        model="minilm", base_url=f"{URL}/v1", api_key=SecretStr("none"), check_embedding_ctx_length=False
    )
    assert np.abs(np.array(embeddings.embed_documents(TEXTS)) - reference.encode(TEXTS)).max() < 1e-5


@pytest.mark.parametrize("provider", ["openai", "hosted_vllm"])
def test_litellm(provider: str) -> None:
    options = {"model": f"{provider}/demo", "api_base": f"{URL}/v1", "api_key": "none", "temperature": 0}
    whole = litellm.completion(messages=MESSAGES, **options)
    text = whole.choices[0].message.content
    assert text
    pieces = litellm.completion(messages=MESSAGES, stream=True, **options)
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == text


def test_litellms_embeddings_and_rerank(reference: SentenceTransformer) -> None:
    made = litellm.embedding(model="openai/minilm", input=TEXTS, api_base=f"{URL}/v1", api_key="none")
    assert np.abs(np.array([one["embedding"] for one in made.data]) - reference.encode(TEXTS)).max() < 1e-5
    order = nearest(reference, "cat")
    ranked = litellm.rerank(model="hosted_vllm/minilm", query="cat", documents=DOCUMENTS, api_base=URL, api_key="none")
    assert [one["index"] for one in ranked.results] == order


def test_cohere(reference: SentenceTransformer) -> None:
    order = nearest(reference, "cat")
    old = cohere.Client(api_key="none", base_url=URL)
    assert [one.index for one in old.rerank(model="minilm", query="cat", documents=DOCUMENTS).results] == order
    new = cohere.ClientV2(api_key="none", base_url=URL)
    assert [one.index for one in new.rerank(model="minilm", query="cat", documents=DOCUMENTS).results] == order
    first = new.rerank(model="minilm", query="cat", documents=DOCUMENTS, top_n=1, max_tokens_per_doc=64)
    assert [one.index for one in first.results] == order[:1]
    made = new.embed(model="minilm", texts=TEXTS, input_type="search_document", embedding_types=["float"])
    assert made.embeddings.float_ is not None
    assert np.abs(np.array(made.embeddings.float_) - reference.encode(TEXTS)).max() < 1e-5


def test_coheres_chat() -> None:
    client = cohere.ClientV2(api_key="none", base_url=URL)
    messages: list[cohere.ChatMessageV2] = [cohere.UserChatMessageV2(content="sort: c a b")]
    whole = client.chat(model="demo", messages=messages, temperature=0)
    assert whole.message.content is not None
    (part,) = whole.message.content
    assert isinstance(part, cohere.TextAssistantMessageResponseContentItem)
    assert (whole.finish_reason, bool(part.text)) == ("COMPLETE", True)
    events = list(client.chat_stream(model="demo", messages=messages, temperature=0))
    pieces = [event.delta for event in events if event.type == "content-delta"]
    texts = [one.message.content.text for one in pieces if one and one.message and one.message.content]
    assert "".join(text or "" for text in texts) == part.text


def test_ollama(reference: SentenceTransformer) -> None:
    client = ollama.Client(host=URL)
    assert {"demo", "minilm"} <= {one.model for one in client.list().models}
    options = {"temperature": 0}
    whole = client.chat("demo:latest", MESSAGES, options=options)
    assert whole.message.content
    assert whole.done_reason == "stop"
    pieces = client.chat("demo", MESSAGES, stream=True, options=options)
    assert "".join(piece.message.content or "" for piece in pieces) == whole.message.content
    assert client.generate("demo", MESSAGES[0]["content"], options=options).response == whole.message.content
    vectors = reference.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(np.array(client.embed("minilm", TEXTS).embeddings) - vectors).max() < 1e-5
