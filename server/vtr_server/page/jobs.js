// Search jobs, where this server has them: list, start, watch, cancel, resume.

import { ApiError, follow, getJson, postJson } from "./api.js";
import { byId, element } from "./dom.js";

const MOST_EVENTS = 500; // lines kept of a long search
const MOST_FAILURES = 5; // of connections in a row
const RETRY_MS = 2000;
let watching = null;
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
    report(start);
  });
}

/** Runs an action and says in the section how it failed. */
async function report(action) {
  byId("job-note").textContent = "";
  try {
    await action();
  } catch (error) {
    byId("job-note").textContent = error.message;
  }
}

async function list() {
  const { data } = await getJson("v1/jobs?limit=20");
  byId("job-scroll").hidden = data.length === 0;
  byId("job-rows").replaceChildren(...data.map(row));
}

function row(job) {
  const { id, spec, state, reason } = job;
  const search = `${spec.kind} · ${spec.data} · ${spec.budgets.join(", ")}`;
  const actions = element("td", { className: "job-actions" }, button("Watch", id, () => watch(id)));
  if (state === "queued" || state === "running") {
    actions.append(button("Cancel", id, () => change(id, "cancel")));
  } else if (state !== "done") {
    actions.append(button("Resume", id, () => change(id, "resume")));
  }
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
  made.addEventListener("click", () => report(action));
  return made;
}

async function start() {
  const budgets = byId("job-budgets").value.split(/[\s,;]+/).filter(Boolean).map(Number);
  if (budgets.some(Number.isNaN)) throw new Error("Budgets are numbers between 0 and 1, with commas between them.");
  const spec = {
    kind: byId("job-kind").value,
    model: byId("job-model").value.trim(),
    data: byId("job-data").value.trim(),
    budgets,
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

/** Follows a job's events until it ends, another one is watched, or the connection breaks. */
async function watch(id) {
  watching?.abort();
  const mine = new AbortController();
  watching = mine;
  byId("job-watch").hidden = false;
  byId("job-watch-heading").textContent = `Events of job ${id}`;
  byId("job-events").replaceChildren();
  const seen = { last: null, failures: 0 };
  while (seen.failures <= MOST_FAILURES) {
    try {
      for await (const event of await follow(`v1/jobs/${id}/events`, seen.last, mine.signal)) {
        seen.last = event.id ?? seen.last;
        seen.failures = 0;
        add(event);
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

function add({ event, data }) {
  const log = byId("job-events");
  const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
  const fields = JSON.parse(data);
  const text = event === "state" ? fields.state : (fields.message ?? JSON.stringify(fields));
  log.append(element("li", {}, element("b", { textContent: event }), ` ${text}`));
  while (log.children.length > MOST_EVENTS) log.firstChild.remove();
  if (atEnd) log.scrollTop = log.scrollHeight;
}
