// The job page, live: the job itself, then what happened after each cursor, until it is final.

import { ConnectionLost, RequestFailed, poll, refreshSections, request } from "./api.js";
import { JobCharts } from "./charts.js";
import { duration, fill, localizeTimes, number, setText, showTime, span } from "./format.js";
import { clearErrors, showErrors } from "./errors.js";
import { Log } from "./log.js";

const POLL_MS = 1000;
const FINAL = ["succeeded", "failed", "cancelled"];
const MAX_EVENTS = 500;
const FROM_THE_SERVER = ["head", "outcome", "attempts", "safety", "adapter", "facts", "verification"];
const NOT_DONE = {
  cancel: "The service did not answer, so the job is not cancelled. Try again.",
  pause: "The service did not answer, so the job is not paused. Try again.",
  resume: "The service did not answer, so the job is not resumed. Try again.",
  retry: "The service did not answer; look at the newest jobs before you try again.",
};

const page = document.getElementById("job");
const path = `/jobs/${page.dataset.id}`;
const cursors = {
  events: page.dataset.eventsAfter,
  logs: page.dataset.logsAfter,
  metrics: page.dataset.metricsAfter,
};
const log = new Log(document.getElementById("log"));
const charts = new JobCharts(page.dataset.plotly);
let shownState = page.dataset.state;

localizeTimes();
enableActions();
addActions();
addDecisions();
poll(() => update().catch(giveUp), POLL_MS);

/** Returns whether there is more to come. */
async function update() {
  const job = await request(path);
  // The job is read before its news, so that what follows a final status is complete.
  const [metrics] = await Promise.all([
    readNew("metrics", 1000, (found) => charts.add(found)),
    readNew("logs", 100, (chunks) => chunks.forEach((chunk) => log.append(chunk.text))),
    readNew("events", 100, (events) => events.forEach(addEvent)),
  ]);
  const isFinal = FINAL.includes(job.status);
  if (metrics > 0) drawCharts();
  await showState(job);
  showProgress(job, isFinal);
  return !isFinal;
}

/** When the job is gone there is nothing to wait for. */
function giveUp(error) {
  if (!(error instanceof RequestFailed)) throw error;
  showError(error.message);
  return false;
}

/** Everything after the cursor, page by page. Returns how many. */
async function readNew(kind, limit, take) {
  for (let count = 0; ; ) {
    const found = await request(`${path}/${kind}?after=${cursors[kind]}&limit=${limit}`);
    cursors[kind] = found.cursor;
    take(found.data);
    count += found.data.length;
    if (!found.has_more) return count;
  }
}

function drawCharts() {
  charts.draw().catch((error) => setText(document.getElementById("chart-note"), error.message));
}

/** A new status changes whole sections: the server renders them. */
async function showState(job) {
  const state = `${job.status}/${job.attempt}/${job.cancel_requested_at ? "True" : "False"}`;
  if (state === shownState) return;
  await refresh();
  shownState = state;
  setText(document.getElementById("announcement"), `The job is ${job.status}.`);
}

async function refresh() {
  await refreshSections(location.href, FROM_THE_SERVER);
  localizeTimes(page);
  enableActions();
}

function showProgress({ status, progress, queue, metrics, started_at: start, finished_at: end }, isFinal) {
  fill(page, {
    steps: progress ? `Step ${progress.step} of ${progress.max_steps}` : isFinal ? "It never started to train" : "Not training yet",
    now: describeNow(status, progress, queue, isFinal),
    eta: describeRest(status, progress),
    epoch: number(progress?.epoch, 3),
    tokens: progress ? progress.tokens.toLocaleString("en") : "–",
    duration: span(start, end),
  });
  page.querySelector("[data-field=bar]").value = progress?.percent ?? 0;
  for (const cell of page.querySelectorAll("[data-metric]")) setText(cell, number(metrics?.[cell.dataset.metric]));
}

function describeNow(status, progress, queue, isFinal) {
  if (queue) return (queue.position ? `number ${queue.position} in the queue: ` : "") + queue.reason;
  if (status === "paused") return "waits to be resumed";
  if (status === "held") return "waits for a decision";
  return progress && !isFinal ? progress.phase : "";
}

function describeRest(status, progress) {
  if (!progress) return "";
  const percent = `${number(progress.percent, 3)} %`;
  const hasRest = status === "running" && progress.eta_seconds > 0 && progress.phase === "training";
  return hasRest ? `${percent} · about ${duration(progress.eta_seconds)} left` : percent;
}

function addEvent(event) {
  if (event.type === "safety") shownState = ""; // The next poll shows what was found.
  const events = document.getElementById("events");
  const row = document.getElementById("event-row").content.firstElementChild.cloneNode(true);
  row.className = event.type;
  showTime(row.querySelector("time"), event.created_at);
  setText(row.querySelector(".kind"), event.type.replaceAll("_", " "));
  setText(row.querySelector(".message"), event.message);
  events.prepend(row);
  if (events.childElementCount > MAX_EVENTS) events.lastElementChild.remove();
}

function enableActions() {
  for (const button of page.querySelectorAll("[data-action]")) button.disabled = !("enabled" in button.dataset);
}

function addActions() {
  const dialog = document.getElementById("cancel-dialog");
  page.addEventListener("click", (event) => {
    const action = event.target.closest("[data-action]")?.dataset.action;
    if (action === "cancel") dialog.showModal();
    else if (action) act(action);
  });
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "yes") act("cancel");
    dialog.returnValue = "";
  });
}

/** Forms by which people decide about findings and releases; the button says which way. */
function addDecisions() {
  page.addEventListener("submit", async (event) => {
    const form = event.target.closest("[data-decide]");
    if (!form) return;
    event.preventDefault();
    const elsewhere = form.querySelector("[data-field=elsewhere]");
    clearErrors(form, elsewhere);
    const body = JSON.stringify(Object.fromEntries(new FormData(form)));
    const headers = { "Content-Type": "application/json" };
    try {
      await request(`${form.dataset.decide}/${event.submitter.value}`, { method: "POST", headers, body });
      await refresh();
    } catch (error) {
      if (error instanceof RequestFailed) showErrors(form, error.error, elsewhere);
      else if (error instanceof ConnectionLost) showErrors(form, { message: "The service did not answer. Try again." }, elsewhere);
      else throw error;
    }
  });
}

/** What it changes is rendered with the next poll; a retry is a new job, with a page of its own. */
async function act(action) {
  const button = page.querySelector(`[data-action=${action}]`);
  if (button) button.disabled = true; // A second click must not ask for the same again.
  document.getElementById("action-error").hidden = true;
  try {
    const job = await request(`${path}/${action}`, { method: "POST" });
    if (action === "retry") location.assign(`/dashboard/jobs/${job.id}`);
    shownState = "";
  } catch (error) {
    if (error instanceof ConnectionLost) showError(NOT_DONE[action]);
    else if (error instanceof RequestFailed) showError(error.message);
    else throw error;
    if (button) button.disabled = !("enabled" in button.dataset);
  }
}

function showError(message) {
  const note = document.getElementById("action-error");
  note.textContent = message;
  note.hidden = false;
}
