// The two answers and the table of what they took.

import { byId, element, percent, seconds } from "./dom.js";

const ROWS = [
  ["Time to first token", (a) => a.first, seconds],
  ["Total time", (a) => a.total, seconds],
  ["Vision tokens", (a) => a.facts.vision_tokens, String],
  ["Of them from the cache", (a) => a.facts.vision_tokens_cached, String],
  ["Mean keep", (a) => a.facts.mean_keep, percent],
  ["Prefill compute", (a) => a.facts.flops_fraction, percent],
  ["Prompt KV saved", kvSaved, percent],
];
const WORDS = [
  ["Schedule", (a) => a.facts.schedule],
  ["Source", (a) => a.facts.source],
];
const RATIOS = new Set(["Time to first token", "Total time", "Prefill compute"]);

/** Share of the prompt's KV entries, over all layers, that were never made. */
export function kvSaved({ facts, usage }) {
  const all = (usage?.prompt_tokens ?? 0) * facts.kept_per_layer.length;
  const dropped = facts.kept_per_layer.reduce((sum, kept) => sum + facts.vision_tokens - kept, 0);
  return all ? dropped / all : null;
}

export function clear(card) {
  delete card.dataset.state;
  card.querySelector(".said").replaceChildren(element("p", { className: "quiet", textContent: "Waiting" }));
}

export function showText(card, text) {
  card.dataset.state = "text";
  card.querySelector(".said").replaceChildren(element("p", { textContent: text }));
}

/** Ends a card without an answer: what went wrong, or that it was stopped. */
export function showEnd(card, message, state) {
  card.dataset.state = state;
  const said = card.querySelector(".said");
  said.querySelector(".quiet")?.remove();
  said.append(element("p", { className: state === "error" ? "notice error" : "quiet", textContent: message }));
}

/** Fills the table with what the answers of a turn, from 1, took; either may be null. */
export function showNumbers(turn, full, chosen) {
  const which = turn === 1 ? "What each answer took" : `What each answer to question ${turn} took`;
  byId("numbers").caption.textContent = which;
  const rows = [];
  for (const [name, value, shown] of ROWS) {
    const [a, b] = [full, chosen].map((answer) => (answer ? value(answer) : null));
    const ratio = RATIOS.has(name) && a && b !== null ? (b / a).toFixed(2) : "";
    rows.push(row(name, [a, b].map((number) => (number === null ? "–" : shown(number))), ratio));
  }
  for (const [name, value] of WORDS) {
    rows.push(row(name, [full, chosen].map((answer) => (answer ? value(answer) : "–")), ""));
  }
  byId("numbers").tBodies[0].replaceChildren(...rows);
}

function row(name, cells, ratio) {
  const made = element("tr", {}, element("th", { scope: "row", textContent: name }));
  for (const text of cells) made.append(element("td", { textContent: text }));
  made.append(element("td", { className: "wide-only", textContent: ratio }));
  return made;
}
