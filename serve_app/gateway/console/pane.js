// The column of one model: what was asked, what it answered, how fast.

import { answerOf } from "./answers.js";
import { seconds } from "./drawing.js";
import { el, setText } from "./dom.js";

const FOLLOW_PX = 40; // as near to its end a column goes along with what is written

export class Pane {
  #log = el("div", { class: "log", tabindex: 0, role: "region" });
  #name = el("p", { class: "pane-model" });
  #speed = el("p", { class: "speed" });
  #turns = []; // of this conversation: { question, answer }

  constructor() {
    this.root = el("section", { class: "pane" }, this.#name, this.#log, this.#speed);
    this.clear();
  }

  /** The model it is for. */
  setModel(name) {
    setText(this.#name, name);
    this.#log.setAttribute("aria-label", `Answers of ${name}`);
  }

  /** Forget what was said. */
  clear() {
    this.#turns = [];
    this.#log.replaceChildren(el("p", { class: "empty", text: "The answer appears here." }));
    setText(this.#speed, "");
  }

  /** What was said so far, as messages. Failed turns are left out. */
  history() {
    return this.#turns.flatMap(({ question, answer }) => [
      { role: "user", content: question },
      { role: "assistant", content: answer },
    ]);
  }

  /** Begin to answer; an answer that is no conversation's takes the place of the one before. */
  begin(question, isConversation) {
    if (!isConversation || this.#turns.length === 0) this.#log.replaceChildren();
    if (!isConversation) this.#turns = [];
    if (isConversation) this.#log.append(el("p", { class: "question", text: question }));
    this.#log.setAttribute("aria-busy", "true");
    return new Answer(this.#log, this.#speed, (answer) => this.#turns.push({ question, answer }));
  }
}

/** One answer while it comes. */
class Answer {
  #log;
  #speed;
  #keep;
  #root = el("div", { class: "answer" });
  #parts = new Map(); // by class: the text node that grows
  #begun_ms = performance.now();
  #first_ms = null;
  #last_ms = null;
  #numPieces = 0;
  text = "";
  tokensPerS = null; // of a streamed answer that has ended

  constructor(log, speed, keep) {
    this.#log = log;
    this.#speed = speed;
    this.#keep = keep;
    this.#log.append(this.#root);
    setText(speed, "Waiting for the first token");
    this.#follow(true);
  }

  /** More of a streamed answer. */
  grow({ text, reasoning }) {
    if (!text && !reasoning) return;
    this.#last_ms = performance.now();
    this.#first_ms ??= this.#last_ms;
    this.#numPieces += 1;
    const follows = this.#isAtEnd();
    if (reasoning) this.#part("reasoning").appendData(reasoning);
    if (text) this.#part("text").appendData(text);
    this.text += text;
    this.#follow(follows);
    setText(this.#speed, this.#told(this.#numPieces, "about "));
  }

  /** A streamed answer is over. numTokens: as the server counts them; null: it has not said. */
  end(numTokens, why = "") {
    const isCounted = numTokens !== null;
    const count = numTokens ?? this.#numPieces;
    this.tokensPerS = this.#rate(count);
    setText(this.#speed, [why, this.#told(count, isCounted ? "" : "about ")].filter(Boolean).join(" · "));
    if (!this.text && this.#parts.size === 0) this.#root.append(el("p", { class: "empty", text: "The answer is empty." }));
    this.#close();
    this.#keep(this.text);
  }

  /** A whole answer. */
  show(shows, body) {
    const took_s = (performance.now() - this.#begun_ms) / 1000;
    const numTokens = body.usage?.prompt_tokens;
    this.#root.append(answerOf(shows, body));
    setText(this.#speed, `answered in ${seconds(took_s)}${numTokens ? ` · ${numTokens} tokens read` : ""}`);
    this.#close();
  }

  /** It failed: the error stands as the server words it, below what had come. */
  fail(error) {
    const box = el("div", { class: "error" }, el("strong", { text: error.title ?? error.name }));
    box.append(el("p", { text: error.message }));
    this.#root.append(box);
    setText(this.#speed, this.#first_ms === null ? "" : this.#told(this.#numPieces, "about "));
    this.#close();
    this.#follow(true);
  }

  /** It was stopped before anything could be kept. */
  drop() {
    setText(this.#speed, "stopped");
    this.#root.append(el("p", { class: "empty", text: "Stopped." }));
    this.#close();
  }

  #part(name) {
    if (!this.#parts.has(name)) {
      const node = document.createTextNode("");
      this.#root.append(el("p", { class: name }, node));
      this.#parts.set(name, node);
    }
    return this.#parts.get(name);
  }

  #close() {
    this.#log.setAttribute("aria-busy", "false");
  }

  #isAtEnd() {
    return this.#log.scrollHeight - this.#log.scrollTop - this.#log.clientHeight < FOLLOW_PX;
  }

  #follow(follows) {
    if (follows) this.#log.scrollTop = this.#log.scrollHeight;
  }

  /** Tokens a second behind the first one; null: too few to tell. */
  #rate(numTokens) {
    const took_s = (this.#last_ms - this.#first_ms) / 1000;
    return numTokens > 1 && took_s > 0 ? (numTokens - 1) / took_s : null;
  }

  #told(numTokens, about) {
    if (this.#first_ms === null) return "no token came";
    const rate = this.#rate(numTokens);
    return [
      `first token ${seconds((this.#first_ms - this.#begun_ms) / 1000)}`,
      rate === null ? "" : `${rate.toFixed(rate < 10 ? 1 : 0)}\u00a0tokens/s`,
      `${about}${numTokens}\u00a0${numTokens === 1 ? "token" : "tokens"}`,
      seconds((this.#last_ms - this.#begun_ms) / 1000),
    ].filter(Boolean).join(" · ");
  }
}
