// The page: asks for the state once a second while it is seen, and hands it to its two halves.

import { CallError, getJson, getKey, setKey } from "./api.js";
import { byId, setText } from "./dom.js";
import { Figures } from "./figures.js";
import { Live, setChip } from "./live.js";
import { Playground } from "./playground.js";
import { explainTask } from "./tasks.js";

const POLL_MS = 1000;
const PLAN_MS = 30_000;
const OVERALL = { ok: "All models answer", unavailable: "Not all models answer", draining: "Draining" };

const figures = new Figures();
const live = new Live();
const playground = new Playground(() => askForKey("This call was refused: the key is not known any more."));
let timer = 0;
let answered_ms = null;
let plan = { at_ms: -Infinity, copies: "" }; // when it was asked for, and of which copies
let isPolling = false;
let isKeyWanted = false; // nothing is asked for until there is one

async function poll() {
  clearTimeout(timer);
  if (document.hidden || isKeyWanted || isPolling) return;
  isPolling = true;
  try {
    const state = await getJson("console/state", AbortSignal.timeout(10_000));
    answered_ms = performance.now();
    await takePlan(state);
    show(state);
  } catch (error) {
    showProblem(error);
  }
  isPolling = false;
  timer = setTimeout(poll, POLL_MS);
}

function show(state) {
  setText(byId("version"), state.version);
  setChip(byId("overall"), state.health.status, OVERALL[state.health.status] ?? state.health.status);
  byId("key-toggle").hidden = !state.has_keys;
  byId("live-problem").hidden = true;
  setText(byId("live-age"), "");
  byId("live").classList.remove("stale");
  live.show(figures.take(state, state.told_s), state.health.newcomers);
  playground.update(state.models);
}

/** Ranks and memory: asked of every copy, so seldom, and at once when copies come or go. */
async function takePlan(state) {
  const copies = JSON.stringify(
    Object.values(state.health.models ?? {}).flat().map((copy) => [copy.replica_id, copy.state === "ready"]),
  );
  const isDue = copies !== plan.copies || performance.now() - plan.at_ms > PLAN_MS;
  if (!state.is_admin || !isDue) return;
  plan = { at_ms: performance.now(), copies };
  try {
    figures.takePlan(await getJson("v1/admin/plan", AbortSignal.timeout(5_000)));
  } catch (error) {
    if (!(error instanceof CallError) && error.name !== "TimeoutError") throw error;
    figures.takePlan(null); // the picture has stages then, without ranks and memory
  }
}

function showProblem(error) {
  if (error.status === 401) {
    askForKey(getKey() ? error.message : "");
    return;
  }
  setChip(byId("overall"), "unavailable", "No answer");
  const since = answered_ms === null ? "" : `, as it was ${Math.round((performance.now() - answered_ms) / 1000)} s ago`;
  setText(byId("live-age"), since && `stale${since}`);
  byId("live").classList.add("stale");
  byId("live-problem").hidden = false;
  setText(byId("live-problem"), error.message);
}

function askForKey(message) {
  isKeyWanted = true;
  setChip(byId("overall"), "unknown", "API key needed");
  byId("key-toggle").hidden = false;
  openKeyPanel(true);
  setText(byId("key-error"), message);
  byId("key").focus();
}

function openKeyPanel(isOpen) {
  byId("key-panel").hidden = !isOpen;
  byId("key-toggle").setAttribute("aria-expanded", String(isOpen));
  byId("key-forget").hidden = !getKey();
}

function useKey(key) {
  setKey(key);
  byId("key").value = "";
  setText(byId("key-error"), "");
  isKeyWanted = false;
  plan = { at_ms: -Infinity, copies: "" };
  figures.takePlan(null);
  poll();
}

byId("key-toggle").addEventListener("click", () => openKeyPanel(byId("key-panel").hidden));
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  openKeyPanel(false);
  useKey(byId("key").value.trim());
});
byId("key-forget").addEventListener("click", () => useKey(""));
document.addEventListener("visibilitychange", poll);
poll();
getJson("openapi.json")
  .then(explainTask)
  .then((task) => task && playground.add(task))
  .catch(() => {}); // without the description there is nothing more to offer
