"""Measure the demo model's exact answers, through a served HTTP API or in this process."""

import argparse
import json
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from card import add_record
from tasks import COMPLETION_SUFFIX, TASKS, Example, heldout

MAX_ANSWER_TOKENS = 80
REQUEST_TIMEOUT_S = 120.0
Form = Literal["completions", "chat"]
Answerer = Callable[[Form, Sequence[str]], list[str]]


@dataclass(frozen=True)
class Score:
    """Exact answers of one task in one form."""

    task: str
    form: Form
    num_exact: int
    num_inputs: int
    first_miss: str | None

    @property
    def exact_percent(self) -> float:
        """Share of exact answers, in percent."""
        return 100 * self.num_exact / self.num_inputs


def main() -> None:
    """Measure every task in both forms; exit status 1 if one is below --min-percent."""
    arguments = parse_arguments()
    if arguments.local:
        answer = local_answerer(arguments.model_dir, arguments.dtype)
        source = f"transformers {arguments.dtype}"
    else:
        answer = served_answerer(arguments.url, arguments.model, arguments.concurrency)
        source = arguments.source
    scores = measure(answer, arguments.tasks, arguments.forms, arguments.count, arguments.seed)
    print_table(scores)
    if arguments.json is not None:
        add_record(arguments.json, source, {"seed": arguments.seed, "scores": [asdict(score) for score in scores]})
    if any(score.exact_percent < arguments.min_percent for score in scores):
        raise SystemExit(1)


def parse_arguments() -> argparse.Namespace:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="root of an OpenAI-compatible server")
    parser.add_argument("--model", default="demo", help="model name that the server knows")
    parser.add_argument("--concurrency", type=int, default=16, help="requests in flight at the server")
    parser.add_argument("--local", action="store_true", help="use transformers in this process, no server")
    parser.add_argument("--model-dir", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="for --local")
    parser.add_argument("--tasks", nargs="+", choices=tuple(TASKS), default=list(TASKS))
    parser.add_argument("--forms", nargs="+", choices=("completions", "chat"), default=["completions", "chat"])
    parser.add_argument("--count", type=int, default=500, help="held-out inputs per task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--min-percent", type=float, default=95.0)
    parser.add_argument("--json", type=Path, help="add the scores to this file")
    parser.add_argument("--source", default="served HTTP API", help="name of the server's column in the scores")
    return parser.parse_args()


def measure(answer: Answerer, tasks: Sequence[str], forms: Sequence[Form], count: int, seed: int) -> list[Score]:
    """Scores of the tasks' held-out inputs, task by task."""
    scores = []
    for task in tasks:
        examples = heldout(task, count, seed)
        for form in forms:
            scores.append(score_answers(task, form, examples, answer(form, [example.prompt for example in examples])))
    return scores


def score_answers(task: str, form: Form, examples: Sequence[Example], answers: Sequence[str]) -> Score:
    """Compare the answers with the right ones, character by character."""
    misses = [
        f"{example.prompt} -> {answer!r}, not {example.answer!r}"
        for example, answer in zip(examples, answers, strict=True)
        if answer != example.answer
    ]
    return Score(task, form, len(examples) - len(misses), len(examples), misses[0] if misses else None)


def print_table(scores: Sequence[Score]) -> None:
    """One line per task and form, with the first wrong answer."""
    print(f"{'task':<8} {'form':<12} {'exact':>9} {'percent':>8}  first miss")
    for score in scores:
        exact = f"{score.num_exact}/{score.num_inputs}"
        print(f"{score.task:<8} {score.form:<12} {exact:>9} {score.exact_percent:>8.1f}  {score.first_miss or '-'}")


def served_answerer(url: str, model: str, concurrency: int) -> Answerer:
    """Answers from an OpenAI-compatible server, greedily decoded."""

    def answer(form: Form, prompts: Sequence[str]) -> list[str]:
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(lambda prompt: ask_server(url, model, form, prompt), prompts))

    return answer


def ask_server(url: str, model: str, form: Form, prompt: str) -> str:
    """One greedy answer over HTTP."""
    body: dict[str, Any] = {"model": model, "max_tokens": MAX_ANSWER_TOKENS, "temperature": 0}
    if form == "completions":
        choice = post_json(f"{url}/v1/completions", body | {"prompt": prompt + COMPLETION_SUFFIX})
        return str(choice["text"])
    choice = post_json(f"{url}/v1/chat/completions", body | {"messages": [{"role": "user", "content": prompt}]})
    return str(choice["message"]["content"])


def post_json(url: str, body: dict[str, Any]) -> Any:
    """The first choice of the server's reply."""
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=REQUEST_TIMEOUT_S) as response:
        return json.load(response)["choices"][0]


def local_answerer(model_dir: Path, dtype: str) -> Answerer:
    """Answers from transformers in this process, greedily decoded; only this mode needs torch."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir, padding_side="left")
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=getattr(torch, dtype))
    model.eval()

    def answer(form: Form, prompts: Sequence[str], batch_size: int = 250) -> list[str]:
        answers: list[str] = []
        for start in range(0, len(prompts), batch_size):
            texts = [render(tokenizer, form, prompt) for prompt in prompts[start : start + batch_size]]
            inputs = tokenizer(texts, padding=True, add_special_tokens=form == "completions", return_tensors="pt")
            with torch.inference_mode():
                outputs = model.generate(**inputs, max_new_tokens=MAX_ANSWER_TOKENS)
            new_ids = outputs[:, inputs["input_ids"].shape[1] :]
            answers += tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        return answers

    return answer


def render(tokenizer: Any, form: Form, prompt: str) -> str:
    """The text that the model reads, without the bos token where the tokenizer adds it."""
    if form == "completions":
        return prompt + COMPLETION_SUFFIX
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


if __name__ == "__main__":
    main()
