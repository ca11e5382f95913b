// What answers of models that are done after one step look like.

import { bars, measured, share } from "./drawing.js";
import { el } from "./dom.js";
import { explained } from "./explanations.js";

const MAX_SHOWN = 20; // of labels, values of a vector, texts that are compared
const MAX_JSON_CHARS = 20_000;

/** An element for an answer's body. shows: labels, vectors, ranks, explanation or json. */
export function answerOf(shows, body) {
  return { labels, vectors, ranks, explanation: explained, json }[shows](body);
}

function labels(body) {
  const [entry] = body.data;
  const rows = entry.labels.slice(0, MAX_SHOWN).map((one) => measured(one.label, one.score, share(one.score)));
  const others = entry.labels.length - rows.length;
  return el(
    "div",
    {},
    el("p", { class: "verdict", text: entry.label ?? "No label holds." }),
    el("ul", { class: "measured" }, ...rows),
    others > 0 ? el("p", { class: "note", text: `and ${others} more` }) : null,
  );
}

function ranks(body) {
  const best = Math.max(...body.results.map((one) => Math.abs(one.relevance_score)), 1e-9);
  const rows = body.results.map((one) => {
    const text = one.document?.text ?? `document ${one.index + 1}`;
    return measured(text, Math.max(0, one.relevance_score) / best, one.relevance_score.toFixed(3));
  });
  return el("ol", { class: "measured" }, ...rows);
}

function vectors(body) {
  const found = body.data.map((one) => one.embedding);
  const rows = found.map((vector, index) => {
    const head = vector.slice(0, 6).map((value) => value.toFixed(3));
    const rest = vector.length > head.length ? ", …" : "";
    return el(
      "li",
      {},
      el("p", { class: "note", text: `Text ${index + 1}: ${vector.length} numbers, length ${lengthOf(vector).toFixed(3)}` }),
      bars(vector.slice(0, 96), `The first ${Math.min(96, vector.length)} numbers of text ${index + 1}`),
      el("code", { text: `[${head.join(", ")}${rest}]` }),
    );
  });
  return el("div", {}, el("ul", { class: "vectors" }, ...rows), found.length > 1 ? cosines(found) : null);
}

function cosines(found) {
  const shown = found.slice(0, MAX_SHOWN);
  const numbers = shown.map((_, index) => index + 1);
  const cell = (one, other) => dot(one, other) / (lengthOf(one) * lengthOf(other) || 1);
  const head = el("tr", {}, el("td", {}), ...numbers.map((one) => el("th", { scope: "col", text: one })));
  const rows = shown.map((one, index) =>
    el(
      "tr",
      {},
      el("th", { scope: "row", text: index + 1 }),
      ...shown.map((other) => el("td", { text: cell(one, other).toFixed(2) })),
    ),
  );
  const table = el("table", {}, el("caption", { text: "Cosine of each two texts" }), el("tbody", {}, head, ...rows));
  return el("div", { class: "scrolls", tabindex: 0, role: "region", "aria-label": "Cosines" }, table);
}

function json(body) {
  const text = JSON.stringify(body, null, 2);
  const cut = text.length > MAX_JSON_CHARS;
  return el(
    "div",
    {},
    el("pre", { text: cut ? text.slice(0, MAX_JSON_CHARS) : text }),
    cut ? el("p", { class: "note", text: `The first ${MAX_JSON_CHARS} of ${text.length} characters` }) : null,
  );
}

const dot = (one, other) => one.reduce((sum, value, index) => sum + value * other[index], 0);
const lengthOf = (vector) => Math.sqrt(dot(vector, vector));
