// Inputs made from what a task names; what was typed stays when the task changes, and an input that stays is not touched.

import { el, keepParts } from "./dom.js";

export class Fields {
  #parent;
  #parts = new Map(); // those shown, by all that they are made from
  #inputs = new Map(); // the same by name
  #kept = new Map(); // by name: what was typed

  constructor(parent) {
    this.#parent = parent;
  }

  /** Show these and no others. names: the models that the task can be asked of. */
  show(specs, names) {
    this.#keep();
    const wanted = new Map(specs.map((spec) => [JSON.stringify([spec, spec.choices?.(names)]), spec]));
    keepParts(this.#parent, this.#parts, [...wanted.keys()], (key) => this.#made(wanted.get(key), names));
    this.#inputs = new Map([...this.#parts.values()].map(({ input }) => [input.name, input]));
  }

  /** What is typed, by name. */
  values() {
    this.#keep();
    return Object.fromEntries([...this.#inputs].map(([name, input]) => [name, input.value]));
  }

  /** Empty one, as after a message was sent. */
  clear(name) {
    this.#inputs.get(name).value = "";
  }

  /** Put the cursor in one. */
  focus(name) {
    this.#inputs.get(name)?.focus();
  }

  #keep() {
    for (const [name, input] of this.#inputs) this.#kept.set(name, input.value);
  }

  #made(spec, names) {
    const id = `field-${spec.name}`;
    const input = inputOf(spec, names, { id, name: spec.name, required: spec.isNeeded });
    input.value = this.#kept.get(spec.name) ?? "";
    const label = el("label", { for: id, text: spec.label });
    return { input, root: el("div", { class: spec.kind === "area" ? "field wide" : "field" }, label, input) };
  }
}

function inputOf(spec, names, attributes) {
  if (spec.kind === "area") {
    return el("textarea", { ...attributes, rows: 3, placeholder: spec.placeholder });
  }
  if (spec.kind === "choice") {
    const first = el("option", { value: "", text: spec.hint });
    const others = spec.choices(names).map((one) => el("option", { value: one, text: one }));
    return el("select", attributes, first, ...others);
  }
  if (spec.kind === "number") {
    const { min, max, step } = spec;
    const limits = { min, max, step: step === 1 ? 1 : "any" };
    return el("input", { ...attributes, type: "number", inputmode: "decimal", placeholder: spec.hint, ...limits });
  }
  return el("input", { ...attributes, type: "text", autocomplete: "off", placeholder: spec.hint });
}
