// The page: what is asked, and what is shown of the answers.

import * as answers from "./answers.js";
import { ApiError, complete, getJson, newTalk, useKey } from "./api.js";
import { nameOf, stopsOf } from "./budgets.js";
import { byId, element } from "./dom.js";
import { loadImage } from "./images.js";
import * as jobs from "./jobs.js";
import * as patches from "./patches.js";

const state = { model: null, facts: null, stops: [], most: 1, images: [], running: null, asked: null };

function problem(error) {
  byId("problem").textContent = error ? error.message : "";
  byId("problem").hidden = !error;
  if (error instanceof ApiError && error.status === 401) {
    byId("key-form").hidden = false;
    byId("key").focus();
  }
}

/** What the server serves and offers; again after a key was given. */
async function connect() {
  try {
    state.facts = await getJson("page/config.json");
    const [models, offer] = await Promise.all([getJson("v1/models"), getJson("v1/schedules")]);
    state.model = models.data[0].id;
    state.stops = stopsOf(offer);
    state.most = offer.budget?.maximum ?? 1;
    const layers = offer.geometry.layers;
    byId("served").textContent = `${state.model} · ${layers} layers`;
    showStops();
    problem(null);
    byId("key-form").hidden = true;
  } catch (error) {
    byId("served").textContent = "Not connected";
    return problem(error);
  }
  if (state.facts.jobs) await jobs.open(problem);
  return undefined;
}

function showStops() {
  const slider = byId("budget");
  slider.max = String(state.stops.length - 1);
  slider.disabled = state.stops.length === 0;
  const economy = state.stops.findIndex((stop) => stop.tier === "economy");
  slider.value = String(Math.max(economy, 0));
  byId("ticks").replaceChildren(...state.stops.map(() => element("span")));
  byId("tiers").replaceChildren(
    ...state.stops.flatMap((stop, index) => (stop.tier ? [tierButton(stop, index)] : [])),
  );
  showBudget();
}

function tierButton({ tier }, index) {
  const button = element("button", { type: "button", textContent: tier });
  button.dataset.stop = String(index);
  button.addEventListener("click", () => {
    byId("budget").value = String(index);
    showBudget();
  });
  return button;
}

const chosen = () => state.stops[Number(byId("budget").value)];

function showBudget() {
  const stop = chosen();
  if (!stop) return;
  byId("budget-value").textContent = nameOf(stop);
  byId("budget").setAttribute("aria-valuetext", nameOf(stop));
  for (const button of byId("tiers").children) {
    button.setAttribute("aria-pressed", String(button.dataset.stop === byId("budget").value));
  }
}

async function addFiles(files, wanted = () => true) {
  const most = state.facts?.images ?? 16;
  const notes = [];
  for (const file of files) {
    if (state.images.length >= most) {
      notes.push(`This server takes at most ${most} images a question; ${file.name} was left out.`);
      continue;
    }
    try {
      const image = await loadImage(file, state.facts?.image_pixels ?? Infinity);
      if (!wanted()) return;
      state.images.push(image);
      if (image.note) notes.push(image.note);
    } catch (error) {
      notes.push(error.message);
    }
  }
  byId("image-note").textContent = notes.join(" ");
  showThumbs();
}

function showThumbs() {
  const list = byId("thumbs");
  list.hidden = state.images.length === 0;
  list.replaceChildren(
    ...state.images.map((image, index) => {
      const remove = element("button", { type: "button", textContent: "Remove" });
      remove.setAttribute("aria-label", `Remove ${image.name}`);
      remove.addEventListener("click", () => {
        state.images.splice(index, 1);
        showThumbs();
        (list.querySelector("button") ?? byId("files")).focus();
      });
      const preview = element("img", { src: image.url, alt: image.name });
      return element("li", {}, preview, remove);
    }),
  );
}

async function showSamples() {
  const { data } = await getJson("page/samples.json");
  byId("samples").hidden = data.length === 0;
  byId("sample-list").replaceChildren(
    ...data.map(({ image, question }) => {
      const preview = element("img", { src: image, alt: "", width: 72, height: 72 });
      const label = element("span", { textContent: question });
      const button = element("button", { type: "button", className: "sample" }, preview, label);
      button.addEventListener("click", () => useSample(image, question).catch(problem));
      return button;
    }),
  );
}

/** The image and the question of a sample; of two clicks the last counts, whichever comes first. */
async function useSample(path, question) {
  const mine = (state.sample = Symbol(path));
  const isLast = () => state.sample === mine;
  const blob = await (await fetch(path)).blob();
  if (!isLast()) return;
  state.images = [];
  await addFiles([new File([blob], "sample.png", { type: blob.type })], isLast);
  if (isLast()) byId("question").value = question;
}

/** The answer of one side to the question; null where it failed, which its card then says. */
async function answer(side, question, more, signal) {
  const { card, talk, ask } = side;
  try {
    const given = await complete({
      model: state.model,
      talk,
      question,
      length: Number(byId("length").value),
      ask: { ...ask, ...more },
      onText: (text) => answers.showText(card, text.trimStart()),
      signal,
    });
    if (!given.text) answers.showText(card, "(an empty answer)");
    card.dataset.state = "done";
    return given;
  } catch (error) {
    if (error.name === "AbortError") answers.showEnd(card, "Stopped.", "stopped");
    else answers.showEnd(card, error.message, "error");
    if (error.status === 401) problem(error);
    return null;
  }
}

/** Begin with the question of the form: at full budget, or the most that may be asked for, and at the chosen. */
function begin(stop) {
  const urls = state.images.map((image) => image.url);
  const side = (name, id, ask) => ({ name, card: byId(id), talk: newTalk(urls), ask });
  const reuse = byId("reuse").checked ? { reuse: true } : {};
  const most = state.most === 1 ? "at full budget" : `at budget ${state.most}, the most here`;
  state.asked = {
    pictures: state.images.map((image) => image.picture),
    turn: 0,
    full: side(most, "answer-full", { budget: state.most }),
    chosen: side(`at budget ${nameOf(stop)}`, "answer-chosen", { ...stop.ask, ...reuse }),
  };
  byId("full-heading").textContent = state.most === 1 ? "Full budget" : `Budget ${state.most}, the most here`;
  byId("full-column").textContent = state.most === 1 ? "Full" : `Budget ${state.most}`;
  byId("chosen-heading").textContent = `Budget ${nameOf(stop)}${reuse.reuse ? ", with reuse" : ""}`;
  byId("answers").hidden = false;
  patches.hide();
}

async function askFirst() {
  const stop = chosen();
  const question = byId("question").value.trim();
  if (!question || !stop || !state.model || state.running) return;
  begin(stop);
  await askBoth(question);
}

async function askNext() {
  const question = byId("next").value.trim();
  if (!question || !state.asked || state.running) return;
  await askBoth(question);
}

/** Ask both sides, one after the other; what the first turn kept is shown on its patches. */
async function askBoth(question) {
  state.running = new AbortController();
  const { signal } = state.running;
  const { full, chosen: reduced, pictures } = state.asked;
  const turn = (state.asked.turn += 1);
  [full.card, reduced.card].forEach(answers.clear);
  answers.showNumbers(turn, null, null);
  byId("next-form").hidden = true;
  byId("asked").textContent = turn === 1 ? "" : `Question ${turn}: ${question}`;
  busy(true);
  byId("answers").querySelector(".pair").scrollIntoView({ block: "nearest" });
  const say = (text) => (byId("progress").textContent = text);
  try {
    say(`Asking ${full.name}.`);
    const left = await answer(full, question, {}, signal);
    answers.showNumbers(turn, left, null);
    say(`Asking ${reduced.name}.`);
    // A trace wants its images computed, and a later turn shows what it costs not to.
    const right = await answer(reduced, question, turn === 1 ? { trace: true } : {}, signal);
    answers.showNumbers(turn, left, right);
    if (right && turn === 1) patches.show(pictures, right.facts, state.facts);
    say(signal.aborted ? "Stopped." : outcome(left, right));
    byId("next-form").hidden = !(left && right);
    byId("next").value = "";
  } finally {
    state.running = null;
    busy(false);
  }
}

function outcome(full, reduced) {
  if (!full || !reduced) return "One of the two could not be answered; its box says why.";
  const same = full.text.trim() === reduced.text.trim();
  return same ? "Done: both gave the same answer." : "Done: the answers differ.";
}

/** Ask and Stop take turns, and hand the focus to each other. */
function busy(on) {
  const [ask, stop] = [byId("ask"), byId("stop")];
  const mine = [document.body, ask, stop].includes(document.activeElement);
  byId("answers").setAttribute("aria-busy", String(on));
  ask.disabled = on;
  stop.hidden = false;
  if (mine) (on ? stop : ask).focus({ preventScroll: true });
  stop.hidden = !on;
}

function wireImages() {
  byId("files").addEventListener("change", async (event) => {
    await addFiles([...event.target.files]);
    event.target.value = "";
  });
  const drop = byId("drop");
  for (const kind of ["dragenter", "dragover"]) {
    document.addEventListener(kind, (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return; // text goes where it is dropped
      event.preventDefault();
      drop.classList.add("over");
    });
  }
  document.addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) drop.classList.remove("over");
  });
  document.addEventListener("drop", (event) => {
    drop.classList.remove("over");
    const files = [...(event.dataTransfer?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    addFiles(files);
  });
  document.addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files];
    if (!files.length) return;
    event.preventDefault();
    addFiles(files);
  });
}

function wire() {
  wireImages();
  patches.wire();
  byId("budget").addEventListener("input", showBudget);
  byId("ask-form").addEventListener("submit", (event) => {
    event.preventDefault();
    askFirst().catch(problem);
  });
  byId("next-form").addEventListener("submit", (event) => {
    event.preventDefault();
    askNext().catch(problem);
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask-form").requestSubmit();
  });
  byId("stop").addEventListener("click", () => state.running?.abort());
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key").value.trim());
    byId("key").value = "";
    connect();
  });
}

wire();
await connect();
await showSamples().catch(problem);
