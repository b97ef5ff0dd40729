// The server's API: JSON, streamed answers, errors in OpenAI's form, the key of this tab.

const KEY = "vtr-api-key";

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
  }
}

export const useKey = (key) => sessionStorage.setItem(KEY, key);

function headers(more = {}) {
  const key = sessionStorage.getItem(KEY);
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

/** The error of an answer that is no success, from its body where it has OpenAI's form. */
async function refusal(response) {
  const text = await response.text();
  let error = null;
  try {
    error = JSON.parse(text).error;
  } catch {
    // not JSON: a proxy's page, for instance
  }
  const wait = response.headers.get("Retry-After");
  const later = wait ? ` Try again in ${wait} s.` : "";
  if (error?.message) {
    return new ApiError(error.message + later, response.status, String(error.code ?? ""));
  }
  const said = text.trim().slice(0, 300) || response.statusText || "no explanation";
  return new ApiError(`The server answered ${response.status}: ${said}${later}`, response.status);
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it running?");
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

export async function getJson(path) {
  return (await request(path, { headers: headers() })).json();
}

export async function getText(path) {
  return (await request(path, { headers: headers() })).text();
}

export async function getBlob(path) {
  return (await request(path, { headers: headers() })).blob();
}

export async function postJson(path, body = {}) {
  const sent = { "Content-Type": "application/json" };
  const options = { method: "POST", headers: headers(sent), body: JSON.stringify(body) };
  return (await request(path, options)).json();
}

/** Server-sent events of a response: {event, data, id} each. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  for (;;) {
    const { value, done } = await reader.read();
    waiting += value ?? "";
    const blocks = waiting.split(/\r?\n\r?\n/);
    waiting = blocks.pop();
    yield* blocks.map(parseEvent).filter(Boolean);
    if (done) return;
  }
}

function parseEvent(block) {
  const event = { event: "message", data: "", id: null };
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    if (colon <= 0) continue; // a comment
    const value = line.slice(colon + 1).replace(/^ /, "");
    const field = line.slice(0, colon);
    if (field === "data") data.push(value);
    else if (field === "event" || field === "id") event[field] = value;
  }
  event.data = data.join("\n");
  return data.length ? event : null;
}

export async function follow(path, lastId, signal) {
  const sent = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
  return events(await request(path, { headers: headers(sent), signal }));
}

/** A conversation about `images` that shares vLLM's prefix cache and image cache with no other. */
export function newTalk(images) {
  return { salt: unique(), parts: images.map(imagePart), said: [] };
}

const imagePart = (url) => ({ type: "image_url", image_url: { url }, uuid: unique() });

/**
 * The next question of `talk`, streamed; an answer that came to its end is then part of it. `ask` is
 * the request's vtr object; `onText` gets the answer so far. Returns {text, facts, usage, first, total},
 * both times in seconds; first is null where no text came.
 */
export async function complete({ model, talk, question, length, ask, onText, signal }) {
  const content = { type: "text", text: question };
  const asked = { role: "user", content: talk.said.length ? [content] : [...talk.parts, content] };
  const body = {
    model,
    messages: [...talk.said, asked],
    max_tokens: length,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
    cache_salt: talk.salt,
    vtr: ask,
  };
  const sent = headers({ "Content-Type": "application/json" });
  const options = { method: "POST", headers: sent, body: JSON.stringify(body), signal };
  const began = performance.now();
  const since = () => (performance.now() - began) / 1000;
  const answer = { text: "", facts: null, usage: null, first: null, total: null };
  for await (const { data } of events(await request("v1/chat/completions", options))) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 0, String(chunk.error.code ?? ""));
    const piece = chunk.choices?.[0]?.delta?.content;
    if (piece) {
      answer.first ??= since();
      answer.text += piece;
      onText(answer.text);
    }
    answer.facts = chunk.vtr ?? answer.facts;
    answer.usage = chunk.usage ?? answer.usage;
    answer.total = since();
  }
  if (!answer.facts) throw new ApiError("The answer broke off before its end.");
  talk.said.push(asked, { role: "assistant", content: answer.text.trim() });
  return answer;
}

/** Random and long enough; crypto.randomUUID is missing where the page is served without TLS. */
function unique() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
