// Datasets: upload, what the checks say while they run, and a person's word for what they found.

import { ConnectionLost, RequestFailed, poll, refreshSections, request } from "./api.js";
import { clearErrors, showErrors } from "./errors.js";
import { localizeTimes } from "./format.js";
import { addUpload } from "./upload.js";

const POLL_MS = 1500;
const id = document.getElementById("datasets") ? "datasets" : "dataset";

localizeTimes();
if (document.getElementById("upload")) addUpload(refresh);
if (isChecking()) poll(refresh, POLL_MS);

addAttest();

async function refresh() {
  await refreshSections(location.href, [id]);
  localizeTimes();
  addAttest();
  return isChecking();
}

function addAttest() {
  document.getElementById("attest")?.addEventListener("submit", async (event) => {
    event.preventDefault();
    const form = event.target;
    const elsewhere = document.getElementById("attest-error");
    clearErrors(form, elsewhere);
    const body = JSON.stringify(Object.fromEntries(new FormData(form)));
    const headers = { "Content-Type": "application/json" };
    try {
      await request(`/datasets/${location.pathname.split("/").pop()}/attest`, { method: "POST", headers, body });
      await refresh();
    } catch (error) {
      if (error instanceof RequestFailed) showErrors(form, error.error, elsewhere);
      else if (error instanceof ConnectionLost) showErrors(form, { message: "The service did not answer. Try again." }, elsewhere);
      else throw error;
    }
  });
}

function isChecking() {
  return document.querySelector("[data-status=validating]") !== null;
}
