"""Chat templates in workers that can be killed."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from serve_app.errors import InternalError, QueueFullError, RequestError, UnprocessableError
from serve_app.preprocessing.chat_template import ChatTemplateRenderer
from serve_app.preprocessing.text_pool import TextPool

MESSAGES = [{"role": "user", "content": "hé <b>"}]
PLAIN = "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest_asyncio.fixture
async def renderer() -> AsyncIterator[ChatTemplateRenderer]:
    renderer = ChatTemplateRenderer(timeout_s=0.5, max_output_bytes=10_000)
    yield renderer
    renderer.close()


@pytest.mark.parametrize(
    ("template", "text"),
    [
        (PLAIN, "[user]hé <b>"),
        (PLAIN + "{% if add_generation_prompt %}[bot]{% endif %}", "[user]hé <b>[bot]"),
        ("{{ messages | tojson }}", '[{"role": "user", "content": "hé <b>"}]'),
        ("{% for m in messages %}\n  {% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}", "hé <b>"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{{ bos_token }}{{ mood }}", "<s>glad"),
        ("{% set ns = namespace(n=1) %}{% set ns.n = 2 %}{{ ns.n }}", "2"),
    ],
)
async def test_templates_render_as_models_expect(renderer: ChatTemplateRenderer, template: str, text: str) -> None:
    variables = {"bos_token": "<s>", "mood": "glad"}
    assert await renderer.render(template, MESSAGES, variables=variables) == text


async def test_an_endless_template_is_stopped_and_the_next_request_works(renderer: ChatTemplateRenderer) -> None:
    await renderer.render(PLAIN, MESSAGES)
    start = time.monotonic()
    with pytest.raises(UnprocessableError, match=r"longer than 0\.5 s"):
        await renderer.render(ENDLESS, MESSAGES)
    assert time.monotonic() - start < 60  # wall time; what is limited is CPU time
    assert await renderer.render(PLAIN, MESSAGES) == "[user]hé <b>"


async def test_a_worker_that_had_to_wait_for_a_core_is_not_taken_for_an_endless_template(
    renderer: ChatTemplateRenderer,
) -> None:
    await renderer.render(PLAIN, MESSAGES)
    process = renderer._workers[0]._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    rendering = asyncio.create_task(renderer.render(PLAIN, MESSAGES))
    await asyncio.sleep(0.8)  # more than its CPU time
    assert not rendering.done()
    process.send_signal(signal.SIGCONT)
    assert await rendering == "[user]hé <b>"
    assert renderer._workers[0]._process is process


async def test_workers_that_fail_do_not_run_out(renderer: ChatTemplateRenderer) -> None:
    for _ in range(4):
        with pytest.raises(UnprocessableError):
            await renderer.render("{{ 'a' * 20000 }}" + ENDLESS, MESSAGES)
    assert await renderer.render(PLAIN, MESSAGES) == "[user]hé <b>"


async def test_a_closed_renderer_says_so() -> None:
    renderer = ChatTemplateRenderer()
    hanging = asyncio.create_task(renderer.render(ENDLESS, MESSAGES))
    await asyncio.sleep(0.3)
    renderer.close()
    with pytest.raises((UnprocessableError, InternalError)):
        await hanging


async def test_the_loop_runs_on_while_a_template_hangs(renderer: ChatTemplateRenderer) -> None:
    await renderer.render(PLAIN, MESSAGES)
    hanging = asyncio.create_task(renderer.render(ENDLESS, MESSAGES))
    num_turns = 0
    while not hanging.done():
        await asyncio.sleep(0.01)
        num_turns += 1
    with pytest.raises(UnprocessableError):
        await hanging
    assert num_turns > 15


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('system comes first') }}", "system comes first"),
        ("{% if", "line 1"),
        ("{{ messages[7].content.x }}", "no element 7"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ 'a' * 20000 }}", "10000 bytes"),
        ("{{ 'a' * 10000000000 }}", "10000 bytes"),
        ("{% include '/etc/passwd' %}", "failed"),
    ],
)
async def test_a_template_that_fails_is_the_requests_fault(
    renderer: ChatTemplateRenderer, template: str, reason: str
) -> None:
    with pytest.raises(RequestError, match=reason) as caught:
        await renderer.render(template, MESSAGES)
    assert caught.value.field == "messages"
    assert await renderer.render(PLAIN, MESSAGES) == "[user]hé <b>"


async def test_a_continued_message_ends_with_its_own_content(renderer: ChatTemplateRenderer) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Well, "}]
    template = PLAIN + "<|end|>"
    text = await renderer.render(template, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "[user]hé <b>[assistant]Well, "


async def test_a_template_that_hides_the_last_message_cannot_continue_it(renderer: ChatTemplateRenderer) -> None:
    with pytest.raises(RequestError) as caught:
        await renderer.render("hi", MESSAGES, add_generation_prompt=False, continue_final_message=True)
    assert caught.value.field == "continue_final_message"


async def test_a_long_conversation_passes_through_the_pipes() -> None:
    renderer = ChatTemplateRenderer(num_workers=2, timeout_s=10)
    try:
        content = "x" * 900_000
        texts = await asyncio.gather(
            *(renderer.render("{{ messages[0].content }}", [{"content": content}]) for _ in range(6))
        )
        assert all(text == content for text in texts)
    finally:
        renderer.close()


async def test_a_full_text_pool_refuses() -> None:
    pool = TextPool(1, max_waiting=1)
    try:
        waiting = [asyncio.create_task(pool.run(time.sleep, 0.1)) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await pool.run(time.sleep, 0)
        await asyncio.gather(*waiting)
        assert await pool.run(len, "abc") == 3
    finally:
        pool.close()
