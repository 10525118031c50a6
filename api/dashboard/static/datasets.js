// Datasets: upload, and what the checks say while they run.

import { poll, refreshSections } from "./api.js";
import { localizeTimes } from "./format.js";
import { addUpload } from "./upload.js";

const POLL_MS = 1500;
const id = document.getElementById("datasets") ? "datasets" : "dataset";

localizeTimes();
if (document.getElementById("upload")) addUpload(refresh);
if (isChecking()) poll(refresh, POLL_MS);

async function refresh() {
  await refreshSections(location.href, [id]);
  localizeTimes();
  return isChecking();
}

function isChecking() {
  return document.querySelector("[data-status=validating]") !== null;
}
