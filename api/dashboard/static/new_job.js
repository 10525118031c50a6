// The new-job form: its fields are paths of the request, POST /jobs is what checks them.

import { ConnectionLost, RequestFailed, request } from "./api.js";
import { clearErrors, showErrors } from "./errors.js";
import { localizeTimes } from "./format.js";
import { addUpload } from "./upload.js";

const form = document.getElementById("job-form");
const button = document.querySelector("button[form=job-form]");
const formError = document.getElementById("form-error");
// One key for one wish: pressed twice, or sent again after a lost answer, it is one job.
let wish = { body: null, key: null };

localizeTimes();
addUpload(offerDataset);
button.disabled = false;
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  try {
    await submit();
  } catch (error) {
    showFailure(error);
  } finally {
    button.disabled = false;
  }
});

async function submit() {
  clearErrors(form, formError);
  if (!form.elements["dataset.id"].value) {
    return showErrors(form, { param: "dataset.id", message: "Choose a dataset, or upload a file below." }, formError);
  }
  const body = JSON.stringify(readForm());
  if (wish.body !== body) wish = { body, key: makeKey() };
  const headers = { "Content-Type": "application/json", "Idempotency-Key": wish.key };
  const job = await request("/jobs", { method: "POST", body, headers });
  return location.assign(`/dashboard/jobs/${job.id}`);
}

/** What is filled in; the service has a default for everything else. */
function readForm() {
  const spec = {};
  for (const field of form.elements) {
    const value = field.name && field.value.trim();
    if (value) put(spec, field.name.split("."), parse(field.dataset.kind, value));
  }
  return spec;
}

function put(target, [name, ...rest], value) {
  if (rest.length === 0) target[name] = value;
  else put((target[name] ??= {}), rest, value);
}

/** What is no number goes as it was typed, so that the service says what is wrong with it. */
function parse(kind, value) {
  if (kind === "json") return JSON.parse(value);
  return kind === "number" && Number.isFinite(Number(value)) ? Number(value) : value;
}

function offerDataset({ id, name, rows, status }) {
  if (status !== "ready") return;
  const select = form.elements["dataset.id"];
  select.add(new Option(`${name} (${rows} rows)`, id), 1);
  select.value = id;
}

function showFailure(error) {
  if (error instanceof ConnectionLost) error = new RequestFailed(0, { message: "The service did not answer. Try again." });
  if (!(error instanceof RequestFailed)) throw error;
  showErrors(form, error.error, formError);
}

/** Not randomUUID, which browsers have over https only. */
function makeKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
