// Which words an answer hangs on: the text with its words marked, and the words that count most as numbers.

import { measured } from "./drawing.js";
import { el } from "./dom.js";

const NUM_LEVELS = 4; // of the marks, from weak to strong
const MAX_WORDS = 10; // in a list

/** The explanation of an answer, and of another model's beside it. */
export function explained(body) {
  const found = [body.explanation, body.against].filter(Boolean);
  return el("div", { class: "explanations" }, ...found.map(explanationOf), comparisonOf(body.comparison));
}

function explanationOf(given) {
  const most = Math.max(...given.tokens.map((one) => Math.abs(one.score)), 1e-9);
  const marked = (text, part) => markedText(text, given.tokens.filter((one) => one.part === part), most);
  const words = given.tokens.toSorted((one, other) => Math.abs(other.score) - Math.abs(one.score)).slice(0, MAX_WORDS);
  const rows = words.map((one) => measured(one.text, Math.abs(one.score) / most, signed(one.score)));
  return el(
    "section",
    {},
    el("p", { class: "verdict", text: given.target }),
    el("p", { class: "note", text: `${given.model}, ${given.method.replaceAll("_", " ")}: ${given.output} ${given.value.toFixed(3)}` }),
    marked(given.text, "input"),
    given.text_pair ? marked(given.text_pair, "text_pair") : null,
    el("p", { class: "note", text: "Words that count most: for the answer (+) or against it (-)" }),
    el("ul", { class: "measured" }, ...rows),
  );
}

/** The text; words are marked by how much they count. Their offsets count characters, not UTF-16 units. */
function markedText(text, words, most) {
  const characters = Array.from(text);
  const pieces = [];
  let at = 0;
  for (const { start, end, score } of words.toSorted((one, other) => one.start - other.start)) {
    if (start < at) continue;
    pieces.push(characters.slice(at, start).join(""));
    const level = Math.ceil((NUM_LEVELS * Math.abs(score)) / most);
    const word = characters.slice(start, end).join("");
    pieces.push(level ? el("mark", { class: `${score > 0 ? "plus" : "minus"} of-${level}`, text: word }) : word);
    at = end;
  }
  return el("p", { class: "text" }, ...pieces, characters.slice(at).join(""));
}

function comparisonOf(comparison) {
  if (!comparison) return null;
  const { rank_correlation: agreement, differences } = comparison;
  const told = agreement === null ? "No ranks to compare" : `Rank correlation of both models' words ${agreement.toFixed(2)}`;
  const most = Math.max(...differences.map((one) => Math.abs(one.difference)), 1e-9);
  const rows = differences
    .slice(0, MAX_WORDS)
    .map((one) => measured(one.text, Math.abs(one.difference) / most, `${signed(one.score)} to ${signed(one.against_score)}`));
  return el("section", {}, el("p", { class: "note", text: told }), el("ul", { class: "measured" }, ...rows));
}

const signed = (value) => `${value < 0 ? "-" : "+"}${Math.abs(value).toFixed(3)}`;
