// The live state: a card for each model, with its copies and their shards.

import { meter, rate, seconds, shardGrid, share, sparkline } from "./drawing.js";
import { byId, el, keepParts, setText } from "./dom.js";
import { NUM_PLACES } from "./figures.js";

const WAITS = {
  kv_cache: "for KV cache",
  sequences: "for a place in the batch",
  trial: "for a trial",
  step: "for the next step",
  grammar: "for a grammar",
};
const ILL = ["failed", "gone"];

export class Live {
  #cards = new Map(); // by model

  /** Draw what each model does. */
  show(models, newcomers) {
    keepParts(byId("cards"), this.#cards, models.map((model) => model.name), (name) => new Card(name));
    for (const model of models) this.#cards.get(model.name).show(model);
    byId("live-legend").hidden = !models.some((model) => model.copies.some((copy) => copy.stages.length));
    const rows = Object.entries(newcomers ?? {}).map(([name, one]) =>
      el("p", { class: "newcomer" }, stateChip(one.state), el("strong", { text: ` ${name} ` }), one.detail),
    );
    byId("newcomers").replaceChildren(...rows);
  }
}

/** One model. */
class Card {
  #state = el("p", { class: "chip" });
  #task = el("p", { class: "task" });
  #figures = new Map();
  #trend = el("div", { class: "trend" });
  #list = el("ul", { class: "copies" });
  #copies = new Map(); // by replica

  constructor(name) {
    const head = el("header", {}, el("h3", { text: name }), this.#task, this.#state);
    const list = el("dl", { class: "figures" }, ...["rate", "first", "running", "waiting"].map((one) => this.#figure(one)));
    const now = el("div", { class: "now" }, list, this.#trend);
    this.root = el("article", { class: "card", "data-model": name }, head, now, this.#list);
  }

  show(model) {
    setText(this.#task, model.task);
    setChip(this.#state, ...stateOf(model));
    this.#set("rate", model.isGenerator ? "tokens/s" : "tokens read/s", rate(model.tokensPerS));
    this.#set("first", "first token", model.firstToken_s === null ? "–" : seconds(model.firstToken_s));
    this.#set("running", "running", String(model.numRunning));
    this.#set("waiting", "waiting", String(model.numWaiting));
    this.#figures.get("first").root.hidden = !model.isGenerator;
    const most = rate(Math.max(...model.history));
    this.#trend.replaceChildren(sparkline(model.history, NUM_PLACES, `Tokens a second over the last minute, at most ${most}`));
    this.#trend.hidden = model.history.every((value) => value === 0);
    const ids = model.copies.map((copy) => copy.id);
    keepParts(this.#list, this.#copies, ids, () => new CopyRow());
    for (const copy of model.copies) this.#copies.get(copy.id).show(copy);
  }

  #figure(key) {
    const [name, value] = [el("dt"), el("dd")];
    const root = el("div", {}, name, value);
    this.#figures.set(key, { root, name, value });
    return root;
  }

  #set(key, name, value) {
    setText(this.#figures.get(key).name, name);
    setText(this.#figures.get(key).value, value);
  }
}

/** One copy of a model. */
class CopyRow {
  #name = el("h4");
  #id = el("code", { class: "replica" });
  #state = el("p", { class: "chip" });
  #detail = el("p", { class: "detail" });
  #load = el("p", { class: "load" });
  #shards = el("div", { class: "picture" });
  #cache = el("div", { class: "cache" });
  #drawn = "";

  constructor() {
    const head = el("div", { class: "copy-head" }, this.#name, this.#id, this.#state);
    const facts = el("div", { class: "facts" }, this.#cache, this.#load);
    this.root = el("li", { class: "copy" }, head, this.#detail, el("div", { class: "copy-body" }, this.#shards, facts));
  }

  show(copy) {
    this.root.dataset.state = copy.state;
    setText(this.#name, `Copy ${copy.number}`);
    setText(this.#id, copy.id.length > 12 ? `…${copy.id.slice(-8)}` : copy.id);
    this.#id.title = copy.id;
    setChip(this.#state, copy.state);
    setText(this.#detail, copy.detail);
    setText(this.#load, loadOf(copy));
    const drawn = JSON.stringify([copy.state, copy.stages, copy.numHeldBlocks, copy.numBlocks]);
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    const isUp = copy.state === "ready" || copy.state === "draining";
    this.#shards.replaceChildren(...(copy.stages.length ? [shardGrid(copy.stages, isUp, toldOf(copy, isUp))] : []));
    this.#cache.replaceChildren(...(copy.numBlocks ? cacheOf(copy) : []));
  }
}

function cacheOf({ numHeldBlocks, numBlocks }) {
  const text = `KV cache ${share(numHeldBlocks / numBlocks)}, ${numHeldBlocks} of ${numBlocks} blocks`;
  return [el("p", { text }), meter(numHeldBlocks / numBlocks, { label: text, hasEnd: true })];
}

function loadOf(copy) {
  const waits = copy.numWaiting && WAITS[copy.waitsFor] ? ` ${WAITS[copy.waitsFor]}` : "";
  return [
    `${copy.numRunning} running`,
    `${copy.numWaiting} waiting${waits}`,
    copy.bubble === null || copy.bubble === undefined ? "" : `pipeline idle ${share(copy.bubble)}`,
    copy.numRebuilds ? `shards lost ${copy.numRebuilds === 1 ? "once" : `${copy.numRebuilds} times`}` : "",
  ].filter(Boolean).join(" · ");
}

function toldOf(copy, isUp) {
  if (!isUp) return `Shards of copy ${copy.number}: ${copy.state}`;
  const told = copy.stages.map(({ busy, ranks }, index) => {
    const known = busy === null ? "not known" : `${share(Math.min(1, busy))} busy`;
    return `stage ${index}, ${ranks.length} ${ranks.length === 1 ? "rank" : "ranks"}: ${known}`;
  });
  return `Shards of copy ${copy.number}. ${told.join("; ")}`;
}

/** The worst that is to be said of a model, and in what words. */
function stateOf(model) {
  if (model.isAsleep) return ["asleep"];
  const states = model.copies.map((copy) => copy.state);
  if (states.length === 0) return ["no copy"];
  const bad = states.filter((state) => state !== "ready");
  const worst = bad.find((state) => ILL.includes(state)) ?? bad[0];
  if (bad.length === 0) return ["ready"];
  return bad.length === states.length ? [worst] : [worst, `${states.length - bad.length} of ${states.length} ready`];
}

function stateChip(state) {
  const chip = el("span", { class: "chip" });
  setChip(chip, state);
  return chip;
}

/** Show a state as a word, coloured. */
export function setChip(chip, state, text = state) {
  chip.dataset.state = state;
  setText(chip, text);
}
