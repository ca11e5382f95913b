"""The playground in a real browser: answers as they come, side by side, stopped, refused, hostile."""

import json

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from serve_app.errors import ShardLostError
from tests.browser.chromium import Page
from tests.browser.console_backend import ConsoleBackend
from tests.fakes import NO_TLS

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>&lt;b&gt;"


INLINE = "const one = document.createElement('script'); one.textContent = 'window.taken = 1'; document.body.append(one)"
HANDLER = "document.body.setAttribute('onclick', 'window.taken = 1'); document.body.click()"


def speeds(page: Page) -> list[str]:
    return [one.text for one in page.all(".speed")]


def until_answered(page: Page, num_panes: int = 1) -> None:
    page.until(lambda: sum("tokens/s" in one and "about" not in one for one in speeds(page)) == num_panes)


def test_an_answer_stays_text_whatever_stands_in_it(page: Page, backend: ConsoleBackend) -> None:
    backend.answer = HOSTILE
    page.ask(HOSTILE)
    until_answered(page)
    assert (page.text(".answer .text"), page.text(".question")) == (HOSTILE, HOSTILE)
    assert page.all("main img, main script, main b") == []
    assert page.driver.title == "rayshard console"


def test_an_answer_shows_as_it_comes_and_stops_when_told(page: Page, backend: ConsoleBackend) -> None:
    backend.step_s = 0.1
    page.ask("Where is my parcel?")
    page.until(lambda: 5 < len(page.text(".answer .text")) < 30)
    assert page.find(".log").get_attribute("aria-busy") == "true"
    page.find("#stop").click()
    page.until(lambda: "stopped" in speeds(page)[0])
    page.until(lambda: backend.num_open == 0)
    assert backend.num_aborted == 1
    assert len(page.text(".answer .text")) < len(backend.answer)
    assert page.find("#send").is_enabled()
    assert page.text("#announcer") == "demo was stopped"


def test_focus_goes_back_to_the_text_but_from_nowhere_that_was_chosen_meanwhile(
    page: Page, backend: ConsoleBackend
) -> None:
    focused = "return document.activeElement.id"
    page.ask("hello")
    until_answered(page)
    page.until(lambda: page.run(focused) == "field-text")
    backend.step_s = 0.03
    page.ask("again")
    page.run("document.getElementById('model-0').focus()")
    page.until(lambda: page.text("#announcer") == "demo has answered")
    assert page.run(focused) == "model-0"


def test_a_conversation_goes_on_and_a_cleared_one_does_not(page: Page, backend: ConsoleBackend) -> None:
    def last_prompt() -> str:
        return backend.text(backend.requests[-1].prompt_token_ids)

    page.ask("first question")
    until_answered(page)
    page.ask("second question")
    page.until(lambda: len(backend.requests) == 2)
    until_answered(page)
    for part in ("first question", backend.answer, "second question"):
        assert part in last_prompt()
    page.find("#clear").click()
    page.ask("third question")
    page.until(lambda: len(backend.requests) == 3)
    assert "first question" not in last_prompt()


def test_two_models_answer_side_by_side(page: Page, backend: ConsoleBackend) -> None:
    backend.step_s = 0.01
    page.find("#compare").click()
    assert [one.text for one in page.all(".pane-model")] == ["demo", "demo-int8"]
    page.ask("Where is my parcel?")
    until_answered(page, 2)
    assert [one.text for one in page.all(".answer .text")] == [backend.answer] * 2
    for told in speeds(page):
        assert told.startswith("first token ")
        assert "44 tokens" in told
    assert page.text("#announcer") == "demo has answered. demo-int8 has answered"
    assert page.text("#comparison").startswith("Both answers are the same.")
    backend.second_answer = "The parcel was lost."
    page.ask("Where is it now?")
    page.until_text("#comparison", f"part at character {len('The parcel ') + 1}.")
    page.find("#clear").click()
    assert not page.find("#comparison").is_displayed()


def test_who_types_is_not_disturbed_by_models_that_come_and_go(page: Page, backend: ConsoleBackend) -> None:
    page.ask("hello")
    until_answered(page)
    kept = [page.find(css) for css in ("#field-text", "#task-chat", "#model-0 option", ".log")]
    scrolled = "const [log] = arguments; log.style.minHeight = '0'; log.style.maxHeight = '40px'; log.scrollTop = 7"
    page.run(f"{scrolled}; arguments[1].focus()", kept[-1], kept[0])
    assert page.run("return arguments[0].scrollTop", kept[-1]) == 7
    kept[0].send_keys("half ", Keys.HOME)
    backend.second_name = "newcomer"
    page.until(lambda: [one.text for one in page.all("#model-0 option")] == ["demo", "newcomer"])
    assert page.run("return arguments[0] === document.activeElement", kept[0])
    assert all(page.run("return arguments[0].isConnected", one) for one in kept)
    assert page.run("return arguments[0].scrollTop", kept[-1]) == 7
    kept[0].send_keys("a ")
    assert kept[0].get_attribute("value") == "a half "


def test_settings_go_with_the_request(page: Page, backend: ConsoleBackend) -> None:
    page.find("#settings summary").click()
    for name, value in (("max_tokens", "7"), ("temperature", "0.25"), ("seed", "11"), ("system", "Be brief.")):
        page.find(f"#field-{name}").send_keys(value)
    page.ask("hello")
    until_answered(page)
    params = backend.requests[-1].params
    assert (params.max_tokens, params.temperature, params.seed) == (7, 0.25, 11)
    assert "[system]Be brief." in backend.text(backend.requests[-1].prompt_token_ids)
    page.task("completion")
    page.ask("once upon")
    page.until(lambda: backend.text(backend.requests[-1].prompt_token_ids).endswith("once upon"))
    assert backend.requests[-1].params.max_tokens == 7


def test_errors_stand_as_the_server_words_them(page: Page) -> None:
    page.ignored.append("400 (Bad Request)")
    page.find("#settings summary").click()
    page.find("#field-max_tokens").send_keys("100000")
    page.ask("hello")
    shown = page.until_text(".error", "max_tokens=100000")
    with httpx.Client(verify=NO_TLS, base_url=page.url) as client:
        body = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 100_000}
        error = client.post("/v1/chat/completions", json=body).json()["error"]
    assert shown == f"400 {error['type']}, {error['param']}\n{error['message']}"


def test_what_came_before_an_error_stays(page: Page, backend: ConsoleBackend) -> None:
    backend.error, backend.fail_at_step = ShardLostError("shard 1 is gone; ask again"), 5
    page.ask("hello")
    assert "shard 1 is gone; ask again" in page.until_text(".error", "shard 1")
    assert backend.answer.startswith(page.text(".answer .text"))
    assert page.text(".answer .text") != ""
    backend.error = None
    page.ask("again")
    until_answered(page)
    assert "hello" not in backend.text(backend.requests[-1].prompt_token_ids)  # nothing was answered to it


def test_each_task_offers_the_models_that_do_it(page: Page) -> None:
    offered = {
        "chat": ["demo", "demo-int8"],
        "classify": ["tickets"],
        "embeddings": ["vectors"],
        "rerank": ["vectors", "judge"],
        "predict": ["module"],
    }
    for task, names in offered.items():
        page.task(task)
        assert [one.text for one in page.all("#model-0 option")] == names
        assert page.find("#compare").is_displayed() == (len(names) > 1)


def test_classes_vectors_and_ranks_are_shown(page: Page) -> None:
    page.task("classify")
    page.ask("Where is my parcel?")
    verdict = page.until(lambda: page.text(".verdict"))
    assert page.all(".measured .what")[0].text == verdict
    assert len(page.all(".measured li")) == 4
    page.task("embeddings")
    page.ask("one text\nanother text")
    assert "8 numbers" in page.until_text(".vectors", "Text 2")
    assert page.text("table tr:nth-child(2) td") == "1.00"
    page.task("rerank")
    page.choose("#model-0", "judge")
    page.find("#field-query").send_keys("parcel")
    page.ask("a long document about parcels\nshort")
    page.until(lambda: len(page.all(".measured li")) == 2)
    figures = [float(one.text) for one in page.all(".measured .figure")]
    assert figures == sorted(figures, reverse=True)


def test_explanations_are_offered_where_the_server_describes_them(page: Page) -> None:
    with httpx.Client(verify=NO_TLS, base_url=page.url) as client:
        is_described = "/v1/explain" in client.get("/openapi.json").json()["paths"]
    page.until(lambda: page.run("return performance.getEntriesByName(arguments[0]).length", f"{page.url}/openapi.json"))
    if is_described:
        page.task("explain")
        page.choose("#model-0", "tickets")
        page.ask("Where is my parcel?")
        page.until(lambda: len(page.all(".explanations .measured li")) == 5)
        assert page.text(".explanations .text") == "Where is my parcel?"
    text = {"type": "string"}
    method = {"enum": ["auto", "occlusion", "gradient", None]}
    fields = {"model": text, "input": text, "method": method, "target": text, "against": text}
    route = {"post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/B"}}}}}}
    document = {"paths": {"/v1/explain": route}, "components": {"schemas": {"B": {"properties": fields}}}}
    made = page.driver.execute_async_script(
        """const [document, done] = arguments;
        import("/console/tasks.js").then(({ explainTask }) => {
          const task = explainTask(document);
          const body = task.body({ text: "a b", method: "occlusion", target: "" });
          const choices = task.fields.map((one) => one.choices?.(["demo"]) ?? null);
          done([task.fields.map((one) => one.name), choices, body, explainTask({ paths: {} })]);
        });""",
        document,
    )
    names = ["text", "method", "target", "against"]
    choices = [None, ["occlusion", "gradient"], None, ["demo"]]
    assert made == [names, choices, {"input": "a b", "method": "occlusion"}, None]


def test_an_explanation_marks_the_words_of_the_text_and_nothing_else(page: Page) -> None:
    text = "\U0001f4e6 late <b>parcel</b>"  # of characters that are two units of UTF-16
    words = [("late", 2, 6, 1.0), ("<b>parcel</b>", 7, 20, -0.3)]
    tokens = [dict(zip(("text", "start", "end", "score"), word, strict=True), part="input") for word in words]
    one = {"model": "m", "method": "occlusion", "target": "<i>delivery</i>", "output": "logit", "value": 2.5}
    explanation = {**one, "text": text, "text_pair": None, "tokens": tokens}
    difference = {"text": "late", "score": 1.0, "against_score": -0.5, "difference": -1.5}
    comparison = {"rank_correlation": None, "differences": [difference]}
    page.driver.execute_async_script(
        """const [body, done] = arguments;
        import("/console/explanations.js").then(({ explained }) => {
          document.querySelector(".log").replaceChildren(explained(body));
          done();
        });""",
        {"explanation": explanation, "comparison": comparison},
    )
    assert (page.text(".explanations .text"), page.text(".explanations .verdict")) == (text, "<i>delivery</i>")
    assert [(mark.text, mark.get_attribute("class")) for mark in page.all("mark")] == [
        ("late", "plus of-4"),
        ("<b>parcel</b>", "minus of-2"),
    ]
    assert [one.text for one in page.all(".measured .figure")] == ["+1.000", "-0.300", "+1.000 to -0.500"]
    assert page.all(".log b, .log i") == []


def test_the_keyboard_is_enough(page: Page, backend: ConsoleBackend) -> None:
    backend.step_s = 0.1

    def press(*keys: str) -> None:
        page.driver.switch_to.active_element.send_keys(*keys)

    def focused() -> str:
        found = page.driver.switch_to.active_element
        return found.get_attribute("id") or found.get_attribute("class") or found.text

    press(Keys.TAB)
    assert focused() == "skip"
    press(Keys.ENTER)
    assert focused() == "playground"
    seen = []
    for _ in range(8):
        press(Keys.TAB)
        seen.append(focused())
    assert seen == ["task-chat", "model-0", "compare", "log", "field-text", "Settings", "send", "clear"]
    for _ in range(3):
        press(Keys.SHIFT, Keys.TAB)
    assert focused() == "field-text"
    press("hello")
    press(Keys.CONTROL, Keys.ENTER)
    page.until(lambda: len(page.text(".answer .text")) > 3)
    press(Keys.ESCAPE)
    page.until(lambda: "stopped" in speeds(page)[0])
    assert focused() == "field-text"


def test_a_module_takes_tensors_as_json(page: Page) -> None:
    page.task("predict")
    page.ask('{"x": [[1.5, 2]')
    assert "The inputs are not JSON" in page.until_text(".error", "JSON")
    page.ask('{"x": [[1.5, 2]]}')
    shown = json.loads(page.until_text("pre", "1.5"))
    assert shown["outputs"]["y"]["data"] == [1.5, 2]


@pytest.mark.parametrize("script", [INLINE, HANDLER])
def test_the_policy_stops_scripts_that_stand_in_the_page(page: Page, script: str) -> None:
    page.run(script)
    assert page.run("return window.taken ?? null") is None
    assert any("Content Security Policy" in one for one in page.complaints())
