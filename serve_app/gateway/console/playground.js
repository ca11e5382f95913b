// Asks models: the task, one model or two side by side, an answer as it comes.

import { events, post } from "./api.js";
import { byId, el, keepParts, setText } from "./dom.js";
import { Fields } from "./fields.js";
import { Pane } from "./pane.js";
import { TASKS } from "./tasks.js";

export class Playground {
  #tasks = [...TASKS];
  #task = null;
  #models = []; // as /console/state names them
  #shown = ""; // the models and tasks that the page stands for
  #choices = new Map(); // of tasks, by id
  #panes = [new Pane(), new Pane()];
  #shownPanes = new Map();
  #fields = new Fields(byId("fields"));
  #settings = new Fields(byId("setting-fields"));
  #selects = [byId("model-0"), byId("model-1")];
  #options = [new Map(), new Map()]; // of the selects, by model
  #running = null; // an AbortController
  #onRefused;

  /** onRefused: told of a 401. */
  constructor(onRefused) {
    this.#onRefused = onRefused;
    byId("ask").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("stop").addEventListener("click", () => this.#running?.abort());
    byId("clear").addEventListener("click", () => this.#clear());
    byId("compare").addEventListener("change", () => this.#lay());
    for (const select of this.#selects) select.addEventListener("change", () => this.#lay());
    document.addEventListener("keydown", (event) => this.#onKey(event));
  }

  /** Offer another task. */
  add(task) {
    this.#tasks.push(task);
    this.update(this.#models);
  }

  /** The models that there are now. Whoever types or chooses meanwhile is not disturbed. */
  update(models) {
    this.#models = models;
    const tasks = this.#tasks.filter((task) => models.some(task.fits));
    const shown = JSON.stringify([models.map(({ name, task }) => [name, task]), tasks.map((task) => task.id)]);
    if (shown === this.#shown) return;
    this.#shown = shown;
    byId("ask").hidden = tasks.length === 0;
    byId("no-models").hidden = tasks.length > 0;
    if (tasks.length === 0) return;
    const byTask = new Map(tasks.map((task) => [task.id, task]));
    keepParts(byId("tasks"), this.#choices, [...byTask.keys()], (id) => this.#choiceOf(byTask.get(id)));
    this.#choose(tasks.find((task) => task.id === this.#task?.id) ?? tasks[0]);
  }

  #choiceOf(task) {
    const input = el("input", { type: "radio", name: "task", id: `task-${task.id}`, value: task.id });
    input.addEventListener("change", () => this.#choose(task));
    return { root: el("span", {}, input, el("label", { for: input.id, text: task.label })) };
  }

  #choose(task) {
    if (this.#task !== null && this.#task.id !== task.id) this.#clear();
    byId(`task-${task.id}`).checked = true;
    this.#task = task;
    const names = this.#models.filter(task.fits).map((model) => model.name);
    this.#selects.forEach((select, index) => {
      const before = select.value;
      keepParts(select, this.#options[index], names, (name) => ({ root: el("option", { value: name, text: name }) }));
      select.value = names.includes(before) ? before : names[Math.min(index, names.length - 1)];
    });
    byId("compare-label").hidden = names.length < 2;
    if (names.length < 2) byId("compare").checked = false;
    this.#fields.show(task.fields, names);
    this.#settings.show(task.settings ?? [], names);
    byId("settings").hidden = !task.settings;
    this.#lay();
  }

  /** One column, or two. */
  #lay() {
    const panes = this.#active();
    byId("second-model").hidden = panes.length < 2;
    keepParts(byId("panes"), this.#shownPanes, panes, (pane) => pane);
    panes.forEach((pane, index) => pane.setModel(this.#selects[index].value));
  }

  #active() {
    return byId("compare").checked ? this.#panes : this.#panes.slice(0, 1);
  }

  #clear() {
    this.#running?.abort();
    for (const pane of this.#panes) pane.clear();
    this.#compare("");
    setText(byId("announcer"), "");
  }

  #onKey(event) {
    if (event.key === "Escape") this.#running?.abort();
    const isInForm = byId("ask").contains(event.target);
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && isInForm) byId("ask").requestSubmit();
  }

  async #send() {
    if (this.#running !== null) return;
    const task = this.#task;
    const values = { ...this.#fields.values(), ...(task.settings ? this.#settings.values() : {}) };
    this.#setRunning(new AbortController());
    setText(byId("announcer"), "Waiting for the answer");
    if (task.isConversation) this.#fields.clear("text");
    const { signal } = this.#running;
    const runs = this.#active().map((pane, index) => this.#run(pane, this.#selects[index].value, task, values, signal));
    this.#compare("");
    const ended = await Promise.all(runs);
    this.#setRunning(null);
    if (ended.length === 2 && ended.every((one) => one.answer)) this.#compare(compared(...ended));
    setText(byId("announcer"), ended.map((one) => one.told).join(". "));
    if (ended.some((one) => one.status === 401)) this.#onRefused();
    else this.#returnFocus();
  }

  #compare(text) {
    byId("comparison").hidden = text === "";
    setText(byId("comparison"), text);
  }

  /** To the text, for the next one; not from where somebody has gone meanwhile, nor to open a phone's keyboard. */
  #returnFocus() {
    const isLeft = [document.body, byId("send")].includes(document.activeElement);
    if (isLeft && !matchMedia("(pointer: coarse)").matches) this.#fields.focus("text");
    else if (isLeft) byId("send").focus();
  }

  #setRunning(controller) {
    this.#running = controller;
    const stop = byId("stop");
    if (controller === null && document.activeElement === stop) byId("send").focus();
    byId("send").disabled = controller !== null;
    stop.hidden = controller === null;
  }

  /** Ask one model; gives what to say of it aloud, and the status of an error. */
  async #run(pane, name, task, values, signal) {
    const model = this.#models.find((one) => one.name === name);
    const history = task.isConversation ? pane.history() : [];
    const answer = pane.begin(values.text, task.isConversation);
    try {
      const response = await post(task.path, { model: name, ...task.body(values, history, model) }, signal);
      const told = `${name} has answered`;
      if (task.piece) {
        answer.end(await follow(response, task, answer));
        return { told, name, answer };
      }
      answer.show(task.shows, await response.json());
      return { told };
    } catch (error) {
      if (error.name === "AbortError") {
        if (answer.text) answer.end(null, "stopped");
        else answer.drop();
        return { told: `${name} was stopped` };
      }
      answer.fail(error);
      return { told: `${name} failed: ${error.message}`, status: error.status };
    }
  }
}

/** How two models' streamed answers differ: in what they say, and how fast. */
function compared(one, other) {
  const [first, second] = [Array.from(one.answer.text), Array.from(other.answer.text)];
  const end = Math.max(first.length, second.length);
  let at = 0;
  while (at < end && first[at] === second[at]) at += 1;
  const said = at === end ? "Both answers are the same." : `The answers part at character ${at + 1}.`;
  const rates = [one, other].map(({ name, answer }) => ({ name, perS: answer.tokensPerS }));
  if (rates.some(({ perS }) => perS === null)) return said;
  const [slow, fast] = rates.toSorted((a, b) => a.perS - b.perS);
  const times = fast.perS / slow.perS;
  if (times < 1.05) return `${said} Both write about as fast.`;
  return `${said} ${fast.name} writes ${times.toFixed(1)} times as many tokens a second as ${slow.name}.`;
}

/** Let an answer grow with its events; gives how many tokens the server counted. */
async function follow(response, task, answer) {
  let numTokens = null;
  for await (const event of events(response)) {
    for (const choice of event.choices) answer.grow(task.piece(choice));
    numTokens = event.usage?.completion_tokens ?? numTokens;
  }
  return numTokens;
}
