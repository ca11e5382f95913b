// Pictures of numbers, as inline SVG whose colours are the style sheet's, and numbers as people read them.

import { el, svg } from "./dom.js";

const CELL = { width: 76, height: 52, gap: 20, top: 18, left: 46 };
const UNITS = ["B", "KB", "MB", "GB", "TB"];

/** A number and its unit, which no line parts. */
const withUnit = (figure, unit) => `${figure}\u00a0${unit}`;

/** 0.273 as "27 %". */
export const share = (value) => withUnit(Math.round(value * 100), "%");

/** 0.0421 as "42 ms", 12.3 as "12.3 s". */
export const seconds = (value) => (value < 1 ? withUnit(Math.round(value * 1000), "ms") : withUnit(value.toFixed(1), "s"));

/** 1234567 as "1.2 MB". */
export function bytes(value) {
  let index = 0;
  for (; value >= 1000 && index < UNITS.length - 1; index += 1) value /= 1000;
  return withUnit(index > 0 && value < 10 ? value.toFixed(1) : Math.round(value), UNITS[index]);
}

/** A rate with as many digits as tell something. */
export const rate = (value) => (value > 0 && value < 10 ? value.toFixed(1) : Math.round(value).toLocaleString("en"));

/** A bar of which so much is used, 0 to 1. No label: what it shows stands beside it as text. hasEnd: a full one is bad. */
export function meter(part, { label = "", hasEnd = false } = {}) {
  const width = Math.min(1, Math.max(0, part)) * 100;
  const name = label ? { role: "img", "aria-label": label } : { "aria-hidden": "true" };
  return svg(
    "svg",
    { class: "meter", viewBox: "0 0 100 6", preserveAspectRatio: "none", ...name },
    svg("rect", { class: "track", width: 100, height: 6 }),
    svg("rect", { class: hasEnd && part > 0.9 ? "used full" : "used", width, height: 6 }),
  );
}

/** A row of a list of numbers: what it is, the number, and a bar. */
export function measured(text, part, figure) {
  return el("li", {}, el("span", { class: "what", text }), el("span", { class: "figure", text: figure }), meter(part));
}

/** The last minute of a rate, the newest at the right. */
export function sparkline(values, numPlaces, label) {
  const top = Math.max(...values, 1e-9);
  const x = (index) => 120 * ((numPlaces - values.length + index) / (numPlaces - 1));
  const points = values.map((value, index) => `${x(index).toFixed(1)},${(29 - 27 * (value / top)).toFixed(1)}`);
  const isDrawn = points.length > 1;
  return svg(
    "svg",
    { class: "sparkline", viewBox: "0 0 120 30", preserveAspectRatio: "none", role: "img", "aria-label": label },
    svg("path", { class: "base", d: "M0 29.5H120" }),
    isDrawn ? svg("path", { class: "area", d: `M${x(0)},29 L${points.join(" L")} L120,29 Z` }) : null,
    isDrawn ? svg("path", { class: "line", d: `M${points.join(" L")}` }) : null,
  );
}

/** The numbers of a vector, up and down from the middle. */
export function bars(values, label) {
  const top = Math.max(...values.map(Math.abs), 1e-9);
  const width = 100 / values.length;
  const parts = values.map((value, index) => {
    const height = 14 * (Math.abs(value) / top);
    const y = value >= 0 ? 15 - height : 15;
    return svg("rect", { class: value >= 0 ? "plus" : "minus", x: index * width, y, width: width * 0.8, height });
  });
  const box = { class: "bars", viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label };
  return svg("svg", box, ...parts);
}

/**
 * Shards as a grid: a column for each stage, a row for each rank.
 * stages: [{ busy: 0 to 1 or null, layers: "0–11" or "", ranks: [text, ...] }]; isUp: whether the copy can compute.
 */
export function shardGrid(stages, isUp, label) {
  const numRanks = Math.max(...stages.map((stage) => stage.ranks.length));
  const left = numRanks > 1 ? CELL.left : 1;
  const width = left + stages.length * (CELL.width + CELL.gap) - CELL.gap + 1;
  const height = CELL.top + numRanks * (CELL.height + 6) - 5;
  const parts = stages.flatMap((stage, index) => stageParts(stage, index, left, isUp, index + 1 < stages.length));
  const names = numRanks > 1 ? Array.from({ length: numRanks }, (_, rank) => rankName(rank)) : [];
  const picture = svg("svg", { class: "shards", width, height, role: "img", "aria-label": label }, ...names, ...parts);
  return el("div", { class: "scrolls", tabindex: width > 300 ? 0 : null }, picture);
}

function stageParts(stage, index, left, isUp, hasNext) {
  const x = left + index * (CELL.width + CELL.gap);
  const y = (rank) => CELL.top + rank * (CELL.height + 6);
  const title = stage.layers ? `layers ${stage.layers}` : `stage ${index}`;
  const middle = CELL.top + (stage.ranks.length * (CELL.height + 6) - 6) / 2;
  return [
    svg("text", { class: "stage-name", x: x + CELL.width / 2, y: 11, text: title }),
    ...stage.ranks.flatMap((note, rank) => cell(x, y(rank), stage.busy, note, isUp)),
    hasNext ? svg("path", { class: "arrow", d: `M${x + CELL.width + 4} ${middle}h11m-4 -4l4 4l-4 4` }) : null,
  ].filter(Boolean);
}

function cell(x, y, busy, note, isUp) {
  const { width, height } = CELL;
  const filled = isUp && busy !== null ? Math.min(1, busy) * (height - 2) : 0;
  const figure = !isUp ? "down" : busy === null ? "–" : share(Math.min(1, busy));
  const centre = x + width / 2;
  return [
    svg("rect", { class: isUp ? "track" : "track down", x, y, width, height, rx: 4 }),
    svg("rect", { class: "busy", x: x + 1, y: y + 1 + (height - 2 - filled), width: width - 2, height: filled, rx: 3 }),
    svg("text", { class: "share", x: centre, y: y + (note ? 24 : 31), text: figure }),
    note ? svg("text", { class: "memory", x: centre, y: y + 41, text: note }) : null,
  ].filter(Boolean);
}

function rankName(rank) {
  const y = CELL.top + rank * (CELL.height + 6) + CELL.height / 2 + 4;
  return svg("text", { class: "rank-name", x: 0, y, text: `rank ${rank}` });
}
