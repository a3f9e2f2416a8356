// What the page shows. Modules listen to changes.

export const state = {
  me: null, projects: [], project: null, media: [], open: null, frame: 0,
  objects: [], selected: null, masks: new Map(), lanes: [], history: {}, job: null, found: null, tool: "add",
};
const listeners = new Map();
export const on = (name, call) => listeners.set(name, [...(listeners.get(name) || []), call]);
export const changed = (...names) => names.forEach((name) => (listeners.get(name) || []).forEach((call) => call()));

export const byId = (id) => document.getElementById(id);
export function element(tag, values = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(values)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made && typeof value !== "string") made[name] = value;
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export const say = (text) => { byId("status").textContent = text; };
export function fail(error) {
  if (error.name === "AbortError") { say("Cancelled."); return; }
  byId("alert-text").textContent = error.message;
  byId("alert").hidden = false;
  say("That did not work.");
}
// Runs what a button does: says what is going on, and what went wrong.
export async function doing(text, work) {
  say(`${text} …`);
  byId("alert").hidden = true;
  try {
    const done = await work();
    say(typeof done === "string" ? done : `${text}: done.`);
    return true;
  } catch (error) {
    fail(error);
    return false;
  }
}

export const object = (number) => state.objects.find((one) => one.number === number);
export const masksHere = () => state.masks.get(state.frame) || [];

export function ask(id, prepare) { // a dialog; resolves to whether it was confirmed
  const dialog = byId(id);
  prepare?.(dialog);
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok"), { once: true }));
}
export async function askName(title, value) {
  const input = byId("name");
  const isGiven = await ask("name-dialog", () => {
    byId("name-title").textContent = title;
    input.value = value;
  });
  return isGiven ? input.value.trim() : null;
}
export const askDelete = (text) => ask("confirm-dialog", () => { byId("confirm-text").textContent = text; });
