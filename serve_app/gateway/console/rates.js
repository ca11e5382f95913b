// How fast counters rise. Each Gateway replica counts for itself, and any of them may answer.

const KEPT_S = 70;

export class Rates {
  #samples = new Map(); // by counter: [[at_s, value], ...], the newest last

  /** A counter stood at a value. */
  add(counter, value, at_s) {
    let samples = this.#samples.get(counter) ?? [];
    if (samples.length && value < samples.at(-1)[1]) samples = []; // its process has begun anew
    samples.push([at_s, value]);
    while (samples[0][0] < at_s - KEPT_S) samples.shift();
    this.#samples.set(counter, samples);
  }

  /** What the counter rose by in the last seconds, and over how long; null: nobody has told it lately. */
  rise(counter, now_s, window_s) {
    const samples = (this.#samples.get(counter) ?? []).filter(([at_s]) => at_s >= now_s - window_s);
    const [first, last] = [samples[0], samples.at(-1)];
    if (samples.length < 2 || last[0] <= first[0]) return null;
    return { by: last[1] - first[1], over_s: last[0] - first[0] };
  }

  /** A second's rise; null: not known. */
  perSecond(counter, now_s, window_s) {
    const found = this.rise(counter, now_s, window_s);
    return found === null ? null : found.by / found.over_s;
  }

  /** Forget counters that nobody tells any more. */
  prune(now_s) {
    for (const [counter, samples] of this.#samples) {
      if (samples.at(-1)[0] < now_s - KEPT_S) this.#samples.delete(counter);
    }
  }
}
