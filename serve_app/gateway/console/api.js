// Calls of this server: its address, the visitor's key, errors as the server words them, streams of events.

const BASE = new URL("../", import.meta.url); // of the Gateway, wherever it is mounted
const KEY = "rayshard.key";
const MAX_SHOWN_CHARS = 4000;

/** What the server answered, or why it did not. */
export class CallError extends Error {
  constructor(message, { status = 0, kind = "", field = "" } = {}) {
    super(message);
    this.status = status;
    this.kind = kind;
    this.field = field;
  }

  /** One line above the message: "400 invalid_request_error, max_tokens". */
  get title() {
    const what = [this.status || "", this.kind].filter(Boolean).join(" ") || "No answer";
    return this.field ? `${what}, ${this.field}` : what;
  }
}

let heldKey = ""; // where the browser keeps nothing

/** The key of this tab; "": none. */
export function getKey() {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return heldKey;
  }
}

/** Keep a key as long as the tab lives; "": forget it. */
export function setKey(key) {
  heldKey = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {
    // it is held above
  }
}

/** GET a path's JSON. Throws CallError. */
export async function getJson(path, signal) {
  return (await call(path, { signal })).json();
}

/** POST a body; gives the Response. Throws CallError. */
export function post(path, body, signal) {
  const headers = { "content-type": "application/json" };
  return call(path, { method: "POST", headers, body: JSON.stringify(body), signal });
}

/** The JSON of each event of a streamed answer, up to its end. Throws CallError. */
export async function* events(response) {
  for await (const data of lines(response)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw errorOf(0, event);
    yield event;
  }
  throw new CallError("The stream broke off before its end.");
}

async function call(path, { headers = {}, signal, ...options }) {
  const key = getKey();
  if (key) headers.authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(new URL(path, BASE), { ...options, headers, signal, credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new CallError(`The server could not be reached (${error.message}).`);
  }
  if (!response.ok) throw errorOf(response.status, await bodyOf(response));
  return response;
}

async function bodyOf(response) {
  const text = await response.text();
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Errors are in OpenAI's shape, or in the Open Inference Protocol's; a proxy's may be any text. */
function errorOf(status, body) {
  const error = body?.error;
  if (error?.message) {
    return new CallError(error.message, { status, kind: error.type ?? "", field: error.param ?? "" });
  }
  const text = typeof error === "string" ? error : typeof body === "string" ? body : JSON.stringify(body);
  return new CallError(text.slice(0, MAX_SHOWN_CHARS) || "The answer is empty.", { status });
}

/** What stands behind `data:` in each event (https://html.spec.whatwg.org/multipage/server-sent-events.html). */
async function* lines(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const found = (rest + value).split("\n");
      rest = found.pop();
      for (const line of found) {
        if (line.startsWith("data:")) yield line.slice(5).trim();
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // the reader may have failed already
  }
}
