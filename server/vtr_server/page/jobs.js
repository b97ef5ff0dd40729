// Search jobs, where this server has them: list, start, watch, cancel, resume, read, publish.

import { ApiError, follow, getJson, postJson } from "./api.js";
import { byId, element, percent } from "./dom.js";
import * as report from "./report.js";

const MOST_EVENTS = 500; // lines kept of a long search
const MOST_FAILURES = 5; // of connections in a row
const RETRY_MS = 2000;
const PROGRESS_OF = { done: 1 }; // of a state; of others what the search said last
let watching = null;
let shown = null; // what is drawn of the watched job: its id, and which plots are being fetched
let wired = false;

/** Shows the section if the jobs can be listed with the key in use. */
export async function open(problem) {
  try {
    await list();
  } catch (error) {
    if (!(error instanceof ApiError)) throw error;
    byId("jobs").hidden = true;
    if (![401, 403, 404].includes(error.status)) problem(error); // those: no jobs for this caller
    return;
  }
  byId("jobs").hidden = false;
  if (wired) return;
  wired = true;
  byId("job-form").addEventListener("submit", (event) => {
    event.preventDefault();
    attempt(start);
  });
}

/** Runs an action that somebody asked for, and says in the section how it failed. */
async function attempt(action) {
  byId("job-note").textContent = "";
  await tellFailure(action);
}

async function tellFailure(action) {
  try {
    await action();
  } catch (error) {
    byId("job-note").textContent = error.message;
  }
}

async function list() {
  const { data, broken } = await getJson("v1/jobs?limit=20");
  byId("job-scroll").hidden = data.length + broken.length === 0;
  const rows = byId("job-rows");
  const at = rows.contains(document.activeElement) ? document.activeElement : null;
  const [label, id] = [at?.getAttribute("aria-label"), at?.dataset.job];
  rows.replaceChildren(...data.map(row), ...broken.map(brokenRow));
  if (!at) return;
  const buttons = [...rows.querySelectorAll("button")]; // the same one, or where it is gone its row's first
  const again = buttons.find((made) => made.getAttribute("aria-label") === label);
  (again ?? buttons.find((made) => made.dataset.job === id))?.focus();
}

function brokenRow({ id, reason }) {
  return element(
    "tr",
    {},
    element("th", { scope: "row", textContent: id }),
    element("td"),
    element("td", { textContent: `broken: ${reason}` }),
    element("td"),
  );
}

function row(job) {
  const { id, spec, state, reason } = job;
  const search = `${spec.kind} · ${spec.data} · ${spec.budgets.join(", ")}`;
  const actions = element("td", { className: "job-actions" }, button("Watch", id, () => watch(id)));
  if (state === "queued" || state === "running") {
    actions.append(button("Cancel", id, () => change(id, "cancel")));
  } else if (state !== "done" || spec.max_minutes) {
    actions.append(button("Resume", id, () => change(id, "resume")));
  }
  if (state === "done") actions.append(button("Publish", id, () => publish(id)));
  const told = job.cancel_requested && state === "running" ? "stopping" : state;
  return element(
    "tr",
    {},
    element("th", { scope: "row", textContent: id }),
    element("td", { textContent: search }),
    element("td", { textContent: reason ? `${told}: ${reason}` : told }),
    actions,
  );
}

function button(label, id, action) {
  const made = element("button", { type: "button", textContent: label });
  made.setAttribute("aria-label", `${label} job ${id}`);
  made.dataset.job = id;
  made.addEventListener("click", () => attempt(action));
  return made;
}

async function start() {
  const budgets = byId("job-budgets").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  const minutes = byId("job-minutes").value;
  if (budgets.some(Number.isNaN)) throw new Error("Budgets are numbers between 0 and 1, with commas between them.");
  const spec = {
    kind: byId("job-kind").value,
    model: byId("job-model").value.trim(),
    data: byId("job-data").value.trim(),
    ...(budgets.length ? { budgets } : {}),
    ...(minutes ? { max_minutes: Number(minutes) } : {}),
  };
  const job = await postJson("v1/jobs", spec);
  byId("job-note").textContent = `Job ${job.id} is ${job.state}.`;
  await list();
  await watch(job.id);
}

async function change(id, action) {
  await postJson(`v1/jobs/${id}/${action}`);
  await list();
}

/** Writes what a job found into the folder of schedules that this server watches. */
async function publish(id) {
  const { data } = await postJson(`v1/jobs/${id}/publish`, { schedules: null });
  byId("job-note").textContent = `Published ${data.map(({ name }) => name).join(", ")}.`;
}

/** Opens the report in a tab of its own, which is asked for before the first wait: later it would
 * be a pop-up. */
async function openReport(id) {
  const tab = window.open("", "_blank");
  if (!tab) throw new Error("The browser opened no tab for the report: allow pop-ups of this page.");
  try {
    const { url } = await report.load(id); // stays until this page is left: the tab may be reloaded
    tab.location.replace(url);
  } catch (error) {
    tab.close();
    throw error;
  }
}

/** What the watched job has found so far: its schedules, and the plots of its report. */
async function drawFound(id) {
  if (shown.busy) {
    shown.again = true;
    return;
  }
  shown.busy = true;
  const mine = shown;
  try {
    const { data } = await getJson(`v1/jobs/${id}/schedules`);
    const found = data.length ? await report.load(id) : { figures: [], urls: [] };
    if (mine !== shown) {
      found.urls.forEach((url) => URL.revokeObjectURL(url));
      return;
    }
    byId("job-found").replaceChildren(
      ...data.map((s) => element("li", { textContent: `${s.name}: ${percent(s.mean_keep)} of the vision tokens, by ${s.method}` })),
    );
    byId("job-found-none").hidden = data.length > 0;
    byId("job-report").hidden = data.length === 0;
    byId("job-plots").replaceChildren(...found.figures.map(({ alt, url }) => element("img", { alt, src: url })));
    report.keep(found);
  } finally {
    mine.busy = false;
    if (mine.again && mine === shown) {
      mine.again = false;
      tellFailure(() => drawFound(id));
    }
  }
}

function drawProgress(share, text) {
  byId("job-progress").value = share;
  byId("job-progress-text").textContent = text;
}

/** Follows a job's events until it ends, another one is watched, or the connection breaks. */
async function watch(id) {
  watching?.abort();
  const mine = new AbortController();
  watching = mine;
  byId("job-watch").hidden = false;
  byId("job-watch-heading").textContent = `Events of job ${id}`;
  byId("job-events").replaceChildren();
  shown = { id, busy: false, again: false };
  drawProgress(0, "");
  byId("job-found").replaceChildren();
  byId("job-plots").replaceChildren();
  byId("job-found-none").hidden = false;
  const open = byId("job-report");
  open.hidden = true;
  open.onclick = () => attempt(() => openReport(id));
  const seen = { last: null, failures: 0 };
  while (seen.failures <= MOST_FAILURES) {
    try {
      for await (const event of await follow(`v1/jobs/${id}/events`, seen.last, mine.signal)) {
        seen.last = event.id ?? seen.last;
        seen.failures = 0;
        add(event);
        tell(id, event);
        if (event.event === "state") await list();
      }
      return;
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status >= 400) throw error;
      seen.failures += 1;
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
    }
  }
  throw new ApiError(`The events of job ${id} broke off. Watch it again to see them all.`);
}

/** What an event says of the job beside its line: how far it is, and that there is more to show. */
function tell(id, { event, data }) {
  const { state, requests, planned, seconds_left: left } = JSON.parse(data);
  if (event === "progress" && planned) {
    const ahead = left == null ? "" : `, about ${Math.ceil(left / 60)} min left`;
    drawProgress(requests / planned, `${requests} of about ${planned} requests${ahead}`);
  }
  if (event === "state" && state in PROGRESS_OF) drawProgress(PROGRESS_OF[state], state);
  if (event === "found") tellFailure(() => drawFound(id));
}

function add({ event, data }) {
  const log = byId("job-events");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const fields = JSON.parse(data);
  const text = event === "state" ? fields.state : (fields.message ?? JSON.stringify(fields));
  log.append(element("li", {}, element("b", { textContent: event }), ` ${text}`));
  while (log.children.length > MOST_EVENTS) log.firstChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}
