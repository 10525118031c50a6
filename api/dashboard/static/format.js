// How values look. `rendering.py` says the same for what the server renders.

export function number(value, digits = 4) {
  return value === null || value === undefined ? "–" : String(Number(value.toPrecision(digits)));
}

/** The two largest units, such as `3 min 05 s`. */
export function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  const pad = (value) => String(value).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${pad(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${pad(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/** In the largest unit, such as `3 min ago`. */
export function age(time) {
  const seconds = Math.max(0, (Date.now() - time) / 1000);
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
    if (seconds >= size) return `${Math.floor(seconds / size)} ${unit} ago`;
  }
  return `${Math.round(seconds)} s ago`;
}

export function span(start, end) {
  return start ? duration(((end ? Date.parse(end) : Date.now()) - Date.parse(start)) / 1000) : "–";
}

/** `data-field` elements inside `root` by name take these texts. Only what differs is touched. */
export function fill(root, texts) {
  for (const [name, text] of Object.entries(texts)) {
    for (const element of root.querySelectorAll(`[data-field="${name}"]`)) setText(element, text);
  }
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setBadge(element, status) {
  setText(element, status);
  element.className = `badge ${status}`;
}

/** Times of the page in the reader's own zone; the full time is the title. */
export function localizeTimes(root = document) {
  for (const element of root.querySelectorAll("time[datetime]")) showTime(element, element.dateTime);
}

export function showTime(element, iso) {
  const time = new Date(iso);
  element.dateTime = iso;
  element.title = `${time.toLocaleString(undefined, { dateStyle: "full", timeStyle: "long" })} (${time.toISOString()})`;
  const isToday = time.toDateString() === new Date().toDateString();
  if (element.classList.contains("age")) setText(element, age(time));
  else setText(element, isToday ? time.toLocaleTimeString() : time.toLocaleString());
}
