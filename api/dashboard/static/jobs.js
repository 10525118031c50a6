// The job table, kept up to date by GET /jobs.

import { poll, request } from "./api.js";
import { fill, localizeTimes, number, setBadge, showTime, span } from "./format.js";

const POLL_MS = 2000;

const list = document.getElementById("jobs");
const body = list.querySelector("tbody");
const template = document.getElementById("job-row").content.firstElementChild;
const here = new URLSearchParams(location.search);

const filter = document.getElementById("status");
filter.disabled = false;
filter.addEventListener("change", () => location.assign(`/dashboard/jobs${filter.value && `?status=${filter.value}`}`));

localizeTimes();
poll(update, POLL_MS);

async function update() {
  const query = new URLSearchParams({ limit: list.dataset.limit });
  for (const name of ["status", "after"]) if (here.get(name)) query.set(name, here.get(name));
  const page = await request(`/jobs?${query}`);
  showRows(page.data);
  list.hidden = page.data.length === 0;
  document.getElementById("no-jobs").hidden = page.data.length > 0;
  showOlder(page);
}

function showRows(jobs) {
  const old = new Map([...body.children].map((row) => [row.dataset.id, row]));
  const rows = jobs.map((job) => fillRow(old.get(job.id) ?? template.cloneNode(true), job));
  const isSame = rows.length === body.children.length && rows.every((row, index) => row === body.children[index]);
  if (!isSame) body.replaceChildren(...rows); // A row that stays in place keeps its focus.
}

function fillRow(row, job) {
  row.dataset.id = job.id;
  fill(row, {
    link: job.name ?? job.id,
    id: job.id,
    model: job.model,
    progress: describeProgress(job),
    loss: number(job.metrics?.loss),
    duration: span(job.started_at, job.finished_at),
  });
  row.querySelector("a").href = `/dashboard/jobs/${job.id}`;
  row.querySelector("progress").value = job.progress?.percent ?? 0;
  setBadge(row.querySelector(".badge"), job.status);
  showTime(row.querySelector("time"), job.created_at);
  return row;
}

function describeProgress({ queue, progress }) {
  if (queue) return queue.reason;
  return progress ? `${progress.step}/${progress.max_steps} · ${number(progress.percent, 3)} %` : "–";
}

function showOlder(page) {
  const older = document.getElementById("older");
  older.hidden = !page.has_more;
  const query = new URLSearchParams({ after: page.data.at(-1)?.id ?? "" });
  if (here.get("status")) query.set("status", here.get("status"));
  older.href = `/dashboard/jobs?${query}`;
}
