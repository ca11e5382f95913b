// What may be asked of which model: one entry a task, with its fields, its body and what its answer looks like.

const text = (label, more = {}) => ({ name: "text", label, kind: "area", isNeeded: true, ...more });
const SAMPLING = [
  { name: "max_tokens", label: "Max tokens", kind: "number", min: 1, step: 1, hint: "as many as fit" },
  { name: "temperature", label: "Temperature", kind: "number", min: 0, max: 2, step: 0.1, hint: "the model's" },
  { name: "top_p", label: "Top p", kind: "number", min: 0, max: 1, step: 0.05, hint: "the model's" },
  { name: "seed", label: "Seed", kind: "number", step: 1, hint: "random" },
];
const SYSTEM = { name: "system", label: "System prompt", kind: "area", isWide: true };

export const TASKS = [
  {
    id: "chat",
    label: "Chat",
    path: "v1/chat/completions",
    fits: (model) => model.task === "generate",
    fields: [text("Message", { placeholder: "Ask something" })],
    settings: [...SAMPLING, SYSTEM],
    isConversation: true,
    body: (values, history) => ({
      ...streamed(values),
      messages: [
        ...(values.system ? [{ role: "system", content: values.system }] : []),
        ...history,
        { role: "user", content: values.text },
      ],
    }),
    piece: (choice) => ({ text: choice.delta?.content ?? "", reasoning: choice.delta?.reasoning_content ?? "" }),
  },
  {
    id: "completion",
    label: "Completion",
    path: "v1/completions",
    fits: (model) => model.task === "generate",
    fields: [text("Prompt", { placeholder: "A text to go on with" })],
    settings: SAMPLING.map((one) => (one.name === "max_tokens" ? { ...one, hint: "16" } : one)),
    body: (values) => ({ ...streamed(values), prompt: values.text }),
    piece: (choice) => ({ text: choice.text ?? "", reasoning: "" }),
  },
  {
    id: "classify",
    label: "Classify",
    path: "v1/classify",
    fits: (model) => model.task === "classify",
    fields: [text("Text")],
    body: (values) => ({ input: values.text }),
    shows: "labels",
  },
  {
    id: "embeddings",
    label: "Embeddings",
    path: "v1/embeddings",
    fits: (model) => model.task === "embed",
    fields: [text("Texts, one a line")],
    body: (values) => ({ input: linesOf(values.text) }),
    shows: "vectors",
  },
  {
    id: "rerank",
    label: "Rerank",
    path: "v1/rerank",
    fits: (model) => model.task === "score" || model.task === "embed",
    fields: [
      { name: "query", label: "Query", kind: "line", isNeeded: true },
      text("Documents, one a line"),
    ],
    body: (values) => ({ query: values.query, documents: linesOf(values.text), return_documents: true }),
    shows: "ranks",
  },
  {
    id: "predict",
    label: "Predict",
    path: "predict",
    fits: (model) => (model.task === "predict" && !model.takes_text) || model.task === "graph",
    fields: [text("Text, or for a model of tensors its inputs as JSON")],
    body: (values, _history, model) => (model.takes_text ? { text: values.text } : { inputs: inputsOf(values.text) }),
    shows: "json",
  },
];

/** The task that explains answers, where the server's description of itself has its route; null: it has none. */
export function explainTask(document) {
  const route = document.paths?.["/v1/explain"]?.post;
  if (!route) return null;
  const body = resolved(document, route.requestBody?.content?.["application/json"]?.schema);
  const methods = choicesOf(resolved(document, body?.properties?.method)).filter((one) => one !== "auto");
  const fields = [
    { name: "text_pair", label: "Second text, for a model of pairs", kind: "area" },
    { name: "method", label: "Method", kind: "choice", choices: () => methods, hint: "the server's choice" },
    { name: "target", label: "Label, or the answer, to explain", kind: "line", hint: "the model's own" },
    { name: "against", label: "Compared with", kind: "choice", choices: (names) => names, hint: "no other model" },
  ];
  return {
    id: "explain",
    label: "Explain",
    path: "v1/explain",
    fits: (model) => model.takes_text && ["generate", "classify", "score"].includes(model.task),
    fields: [text("Text"), ...fields.filter((one) => body?.properties?.[one.name])],
    body: ({ text: input, ...others }) => {
      const given = Object.entries(others).filter(([, value]) => value !== "");
      return { input, ...Object.fromEntries(given) };
    },
    shows: "explanation",
  };
}

const linesOf = (value) => value.split("\n").map((line) => line.trim()).filter(Boolean);

function inputsOf(value) {
  try {
    return JSON.parse(value);
  } catch (error) {
    throw new SyntaxError(`The inputs are not JSON: ${error.message}`);
  }
}

function streamed({ max_tokens, temperature, top_p, seed }) {
  const given = Object.entries({ max_tokens, temperature, top_p, seed }).filter(([, value]) => value !== "");
  const numbers = Object.fromEntries(given.map(([name, value]) => [name, Number(value)]));
  return { ...numbers, stream: true, stream_options: { include_usage: true } };
}

/** A schema behind its `$ref`, or the one of an optional field that is not null. */
function resolved(document, schema) {
  if (schema?.$ref) return resolved(document, document.components?.schemas?.[schema.$ref.split("/").pop()]);
  const inner = schema?.anyOf?.find((one) => one.type !== "null");
  return inner ? resolved(document, inner) : schema;
}

const choicesOf = (schema) => (schema?.enum ?? []).filter((one) => one !== null);
