// What the live state shows of each model, made of one /console/state after another.

import { bytes } from "./drawing.js";
import { Rates } from "./rates.js";

const RATE_S = 4; // copies tell their state twice a second, so a shorter window would tremble
const FIRST_TOKEN_S = 60;
const GAP_S = 5;
const GATEWAY_S = 15; // several replicas answer in turn
export const NUM_PLACES = 60; // of the sparkline

export class Figures {
  #rates = new Rates();
  #gateways = new Map(); // by name: when it answered last
  #history = new Map(); // by model: tokens a second, once a poll
  #taken_s = 0; // when the state before was told
  #shards = new Map(); // by model and copy: as /v1/admin/plan tells them

  /** What /v1/admin/plan told; null: nothing. */
  takePlan(plan) {
    this.#shards.clear();
    for (const account of Object.values(plan?.models ?? {}).flat()) {
      this.#shards.set(`${account.model} ${account.replica_id}`, account.shards);
    }
  }

  /** Take a state in; gives each model's figures. now_s: by the server's clock, as ours would count its delay too. */
  take(state, now_s) {
    if (now_s - this.#taken_s > GAP_S) this.#history.clear(); // the page was hidden: there is no line to go on
    this.#taken_s = now_s;
    this.#gateways.set(state.gateway, now_s);
    for (const model of state.models) {
      for (const counter of ["num_prompt_tokens", "num_output_tokens", "num_first_tokens", "first_token_sum_s"]) {
        this.#rates.add(`${state.gateway} ${counter} ${model.name}`, model[counter], now_s);
      }
    }
    for (const copies of Object.values(state.health.models ?? {})) {
      for (const copy of copies) {
        copy.counts.stages.forEach((one, stage) => this.#rates.add(`${copy.replica_id} ${stage}`, one.busy_s, now_s));
      }
    }
    this.#rates.prune(now_s);
    for (const [gateway, at_s] of this.#gateways) {
      if (at_s < now_s - GATEWAY_S) this.#gateways.delete(gateway);
    }
    return state.models.map((model) => this.#modelFigures(model, state.health, now_s));
  }

  #modelFigures(model, health, now_s) {
    const copies = health.models?.[model.name] ?? [];
    const isGenerator = model.task === "generate";
    const tokensPerS = this.#overGateways(isGenerator ? "num_output_tokens" : "num_prompt_tokens", model.name, now_s);
    const history = [...(this.#history.get(model.name) ?? []), tokensPerS].slice(-NUM_PLACES);
    this.#history.set(model.name, history);
    return {
      name: model.name,
      task: model.task,
      isGenerator,
      isAsleep: (health.asleep ?? []).includes(model.name),
      tokensPerS,
      history,
      firstToken_s: isGenerator ? this.#firstToken(model.name, now_s) : null,
      numRunning: sum(copies.map((copy) => copy.num_running)),
      numWaiting: sum(copies.map((copy) => copy.num_waiting)),
      copies: copies.map((copy, index) => this.#copyFigures(copy, index, model.name, now_s)),
    };
  }

  #copyFigures(copy, index, model, now_s) {
    const shards = this.#shards.get(`${model} ${copy.replica_id}`) ?? [];
    const numStages = Math.max(copy.counts.stages.length, ...shards.map((shard) => shard.stage + 1));
    return {
      id: copy.replica_id,
      number: index + 1,
      state: copy.state,
      detail: copy.detail,
      numRunning: copy.num_running,
      numWaiting: copy.num_waiting,
      waitsFor: copy.waits_for,
      numBlocks: copy.num_blocks,
      numHeldBlocks: copy.num_blocks - copy.num_free_blocks,
      numRebuilds: copy.counts.num_rebuilds,
      bubble: copy.bubble,
      stages: Array.from({ length: numStages }, (_, stage) => ({
        busy: this.#rates.perSecond(`${copy.replica_id} ${stage}`, now_s, RATE_S),
        ...placeOf(shards.filter((shard) => shard.stage === stage)),
      })),
    };
  }

  #overGateways(counter, model, now_s) {
    const window_s = Math.max(RATE_S, 3 * this.#gateways.size);
    const found = [...this.#gateways.keys()].map((one) =>
      this.#rates.perSecond(`${one} ${counter} ${model}`, now_s, window_s),
    );
    return sum(found.map((one) => one ?? 0));
  }

  /** The mean over a minute's prompts, in seconds; null: there was none. */
  #firstToken(model, now_s) {
    const risen = (counter) =>
      sum([...this.#gateways.keys()].map((one) => this.#rates.rise(`${one} ${counter} ${model}`, now_s, FIRST_TOKEN_S)?.by ?? 0));
    const count = risen("num_first_tokens");
    return count > 0 ? risen("first_token_sum_s") / count : null;
  }
}

/** Layers of a stage, and what each of its ranks takes. No shards: the plan is not for this visitor. */
function placeOf(shards) {
  if (shards.length === 0) return { layers: "", ranks: [""] };
  const [first, end] = shards[0].layers;
  const ranks = shards.toSorted((one, other) => one.rank - other.rank);
  return {
    layers: end > first ? `${first}–${end - 1}` : "",
    ranks: ranks.map(({ measured }) => (measured?.total_bytes ? bytes(measured.total_bytes) : "")),
  };
}

const sum = (values) => values.reduce((total, value) => total + value, 0);
