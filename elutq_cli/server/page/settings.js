/** The dialogs: settings, and the API key where the server wants one. */

/** What of the settings goes to the server with every request. */
const SAMPLING = ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed", "max_tokens"];

export function samplingOf(settings) {
  return Object.fromEntries(SAMPLING.filter((name) => name in settings).map((name) => [name, settings[name]]));
}

export function applyTheme(settings) {
  document.documentElement.dataset.theme = settings.theme ?? "";
}

/** Return the settings that a person chose, or null; those that are left empty are not there. */
export async function askSettings(settings) {
  const dialog = document.getElementById("settings");
  const fields = [...dialog.querySelectorAll("[name]")];
  for (const field of fields) field.value = settings[field.name] ?? "";
  if (!(await answered(dialog))) return null;
  const filled = fields.filter((field) => field.value !== "");
  return Object.fromEntries(filled.map((field) => [field.name, field.type === "number" ? field.valueAsNumber : field.value]));
}

/** Return an API key, or null where a person has none. */
export async function askKey(wasWrong) {
  const dialog = document.getElementById("ask-key");
  const field = dialog.querySelector("input");
  field.value = "";
  document.getElementById("key-reason").textContent = wasWrong
    ? "The server does not take this key. Which is the right one?"
    : "This server wants its API key, which it was started with:";
  return (await answered(dialog)) ? field.value : null;
}

/** Return whether a person saved what a dialog asks for. */
async function answered(dialog) {
  dialog.returnValue = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  return dialog.returnValue === "save";
}
