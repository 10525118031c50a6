// Uploading a dataset: the file, then its check; a rejected one shows its report.

import { ConnectionLost, RequestFailed, poll, refreshSections, request } from "./api.js";
import { clearErrors, showErrors } from "./errors.js";
import { fill } from "./format.js";

const POLL_MS = 500;

/** Makes the form work. `onChange` hears of every state of the dataset. */
export function addUpload(onChange) {
  const form = document.getElementById("upload");
  const button = form.querySelector("button");
  button.disabled = false;
  const { phi_policy: policy } = form.elements;
  const replacement = form.querySelector("[data-field=replacement]");
  const showReplacement = () => (replacement.hidden = policy.value !== "replace");
  policy.addEventListener("change", showReplacement);
  form.addEventListener("reset", () => setTimeout(showReplacement));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await upload(form, onChange);
    } catch (error) {
      showFailure(form, error);
    } finally {
      button.disabled = false;
    }
  });
}

async function upload(form, onChange) {
  clearErrors(form);
  document.getElementById("upload-report").replaceChildren();
  const file = form.elements.file.files[0];
  if (!file) return showErrors(form, { param: "file", message: "Choose a file first." }, null);
  fill(form, { upload_status: `Uploading ${file.name}…` });
  const body = new FormData();
  body.append("file", file);
  for (const { name, value } of form.querySelectorAll("[name]:not([type=file], [hidden] *)")) if (value) body.append(name, value);
  let dataset = await request("/datasets", { method: "POST", body, signal: null });
  await poll(async () => {
    fill(form, { upload_status: describe(dataset) });
    await onChange(dataset);
    if (dataset.status !== "validating") return false;
    dataset = await request(`/datasets/${dataset.id}`);
    return true;
  }, POLL_MS);
  if (dataset.status === "ready") form.reset();
  else await showReport(dataset);
}

function describe({ name, status, rows, phi, overlap }) {
  if (status === "validating") return `${name}: every row is being checked…`;
  const found = phi.findings ? ` ${phi.findings.toLocaleString("en")} identifiers of patients were found: see its page.` : "";
  const twice = overlap.rows ? ` ${overlap.rows.toLocaleString("en")} rows are there twice or also judge the model.` : "";
  if (status === "ready") return `${name}: ready, ${rows.toLocaleString("en")} rows.${found}${twice}`;
  return `${name}: rejected. Its problems are listed below.`;
}

async function showReport(dataset) {
  const place = document.getElementById("upload-report");
  const report = document.createElement("div");
  report.id = "report";
  place.replaceChildren(report);
  await refreshSections(`/dashboard/datasets/${dataset.id}`, ["report"]);
  place.querySelector("#report").classList.remove("card");
  place.focus();
}

function showFailure(form, error) {
  fill(form, { upload_status: "" });
  if (error instanceof ConnectionLost) error = new RequestFailed(0, { message: "The service did not answer. Try again." });
  if (!(error instanceof RequestFailed)) throw error;
  showErrors(form, error.error, document.getElementById("file-error"));
}
