// Errors of a form, each at the field that it is about.

export function clearErrors(form, extra = null) {
  for (const error of errorsOf(form, extra)) {
    error.hidden = true;
    error.textContent = "";
    fieldOf(error)?.removeAttribute("aria-invalid");
  }
}

/** Shows the problems of an error body; what belongs to no field goes to `elsewhere`. The first one gets the focus. */
export function showErrors(form, { message, param, details }, elsewhere) {
  const problems = details?.problems ?? [{ param, message }];
  const places = problems.map((problem) => {
    const place = findPlace(form, problem.param) ?? elsewhere;
    const text = place === elsewhere && problem.param ? `${problem.param}: ${problem.message}` : problem.message;
    place.textContent = place.textContent ? `${place.textContent} ${text}` : text;
    place.hidden = false;
    fieldOf(place)?.setAttribute("aria-invalid", "true");
    return place;
  });
  (fieldOf(places[0]) ?? places[0]).focus();
}

/** The error element of `training.lora.r`, also for `training.lora.r.int`; never of a part of a word. */
function findPlace(form, param) {
  const parts = (param ?? "").split(".");
  for (; parts.length; parts.pop()) {
    const place = errorsOf(form).find((error) => error.dataset.error === parts.join("."));
    if (place) return place;
  }
  return null;
}

function errorsOf(form, extra = null) {
  const inside = [...form.elements].flatMap((field) => {
    const ids = (field.getAttribute("aria-describedby") ?? "").split(" ");
    return ids.map((id) => document.getElementById(id)).filter((element) => element?.dataset.error);
  });
  return extra ? [...inside, extra] : inside;
}

function fieldOf(error) {
  return error.id ? document.querySelector(`[aria-describedby~="${error.id}"]`) : null;
}
