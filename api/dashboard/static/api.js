// Requests to the public API by the session cookie, and polling that outlives a lost network.

const TIMEOUT_MS = 15_000;
const MAX_PAUSE_MS = 10_000;

/** The service answered with an error; `error` is its body: message, param, code, details. */
export class RequestFailed extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.error = error;
  }
}

/** No answer, or none that the service itself gave: worth trying again. */
export class ConnectionLost extends Error {}

/** The JSON of an answer. Throws RequestFailed or ConnectionLost; without a session it leaves for the sign-in page. */
export async function request(path, options = {}) {
  const response = await send(path, { signal: AbortSignal.timeout(TIMEOUT_MS), ...options });
  if (response.status === 401) return leaveForSignIn();
  const body = await readJson(response);
  if (!response.ok) throw new RequestFailed(response.status, body.error);
  return body;
}

/** The elements with these ids of a page of the dashboard, as the server renders it now, take the place of ours. */
export async function refreshSections(url, ids) {
  const response = await send(url, { signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (response.redirected) return leaveForSignIn();
  if (!response.ok) throw new ConnectionLost();
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  for (const id of ids) {
    const fresh = page.getElementById(id);
    if (fresh) document.getElementById(id)?.replaceWith(document.adoptNode(fresh));
  }
}

/** Calls `step` again and again until it returns false. A lost connection shows a note and is tried again. */
export async function poll(step, pauseMs) {
  let pause = pauseMs;
  for (;;) {
    try {
      const goesOn = await step();
      showConnection(true);
      if (goesOn === false) return;
      pause = pauseMs;
    } catch (error) {
      if (!(error instanceof ConnectionLost)) throw error;
      showConnection(false);
      pause = Math.min(pause * 2, MAX_PAUSE_MS);
    }
    await wait(pause);
    await untilVisible();
  }
}

async function send(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new ConnectionLost();
  }
  if (response.status >= 500) throw new ConnectionLost();
  return response;
}

async function readJson(response) {
  try {
    return await response.json();
  } catch {
    throw new ConnectionLost();
  }
}

function leaveForSignIn() {
  const here = location.pathname + location.search;
  location.assign(`/dashboard/sign-in?next=${encodeURIComponent(here)}`);
  return new Promise(() => {}); // Nothing goes on while the browser leaves.
}

function showConnection(isThere) {
  const note = document.getElementById("connection");
  if (note.hidden === isThere) return;
  note.hidden = isThere;
  note.textContent = isThere ? "" : "No connection to the service. Trying again…";
}

/** Sooner when the network comes back. */
function wait(ms) {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    window.addEventListener("online", done);
  });
}

function untilVisible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", () => resolve(), { once: true }));
}
