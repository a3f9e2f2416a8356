// Objects, prompts and masks of the open image or video.

import { get, patch, post, remove } from "./api.js";
import { askDelete, byId, changed, doing, element, masksHere, object, say, state } from "./state.js";

const path = (rest) => `/v1/media/${state.open.id}/${rest}`;
let last = Promise.resolve(); // prompts are sent one after another, in the order in which they were made

const inTurn = (work) => (last = last.then(work, work));

export async function loadObjects() {
  state.objects = await get(path("objects"));
  if (!object(state.selected)) state.selected = state.objects.at(-1)?.number ?? null;
  changed("objects");
}

export async function loadMasks(frame = state.frame) {
  const id = state.open.id, masks = await get(path(`masks?frame=${frame}`));
  if (state.open?.id !== id) return;
  state.masks.set(frame, masks);
  changed("masks");
}

export async function loadHistory() {
  state.history = await get(path("history"));
  changed("history");
}

export async function loadLanes() {
  if (state.open.kind !== "video") return;
  state.lanes = await get(path("lanes"));
  changed("lanes");
}

export async function addObject(select = true) {
  const made = await post(path("objects"));
  state.objects.push(made);
  if (select) state.selected = made.number;
  changed("objects", "masks");
  await loadHistory();
  return made;
}

export const prompt = (body, text) => inTurn(() => doing(text, async () => {
  if (!state.open) return "Open an image first.";
  const { id } = state.open, { frame } = state;
  if (state.selected === null) await addObject();
  const number = state.selected;
  const mask = await post(path(`objects/${number}/prompts`), { ...body, frame });
  if (state.open?.id !== id) return "";
  const others = (state.masks.get(frame) || []).filter((one) => one.object !== number);
  state.masks.set(frame, [...others, mask].sort((a, b) => a.object - b.object));
  changed("masks");
  await Promise.all([loadHistory(), loadLanes()]);
  return `${object(number)?.name}: ${mask.area.toLocaleString()} pixels, ${body.refine === false ? "as drawn" : `predicted IoU ${mask.iou_score.toFixed(2)}`}.${advice(number, mask)}`;
}));

function advice(number, mask) {
  if (object(number)?.visible === false) return " It is hidden: H shows it.";
  if (mask.iou_score < 0.5) return " The model is not sure: add points, or draw a box.";
  const isTracked = state.lanes.some((lane) => lane.number === number && lane.tracked.length);
  return isTracked ? " Track from here to correct other frames, too." : "";
}

export const promptedHere = () => masksHere().some((one) => one.object === state.selected && one.prompts);

export const clearPrompts = () => inTurn(() => doing("Clearing", async () => {
  if (!promptedHere()) return "The object has no prompts here.";
  await remove(path(`objects/${state.selected}/prompts?frame=${state.frame}`));
  await Promise.all([loadMasks(), loadHistory(), loadLanes()]);
  return `The prompts and the mask of ${object(state.selected)?.name} were removed here. You can undo this.`;
}));

export const goBack = (redo) => inTurn(() => doing(redo ? "Redo" : "Undo", async () => {
  const title = redo ? state.history.redo : state.history.undo;
  const reply = await post(path(redo ? "redo" : "undo"));
  state.masks.clear();
  await Promise.all([loadObjects(), loadLanes()]);
  if (reply.frame !== null && reply.frame !== state.frame) { state.frame = reply.frame; changed("frame"); }
  await loadMasks();
  state.history = reply;
  changed("history");
  return `${redo ? "Done again" : "Undone"}: ${title}.`;
}));

export const change = (number, values) => doing("Saving", async () => {
  Object.assign(object(number), await patch(path(`objects/${number}`), values));
  changed("objects", "masks", "lanes");
  await loadHistory();
  return "Saved.";
});

export async function deleteObject(number) {
  const one = object(number);
  if (!one || !(await askDelete(`Delete ${one.name} with all its masks? You can undo this.`))) return;
  await doing(`Deleting ${one.name}`, async () => {
    await remove(path(`objects/${number}`));
    state.masks.clear();
    if (state.selected === number) state.selected = null;
    await Promise.all([loadObjects(), loadMasks(), loadHistory(), loadLanes()]);
    return `${one.name} was deleted.`;
  });
}

function eyeIcon(isOpen) {
  const icon = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  icon.setAttribute("viewBox", "0 0 24 24");
  icon.setAttribute("aria-hidden", "true");
  icon.setAttribute("class", "icon");
  shape.setAttribute("d", `M2 12s4-7 10-7 10 7 10 7-4 7-10 7S2 12 2 12z M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6z${isOpen ? "" : " M3 3l18 18"}`);
  icon.append(shape);
  return icon;
}

export function choose(number) {
  if (state.selected === number) return;
  state.selected = number;
  for (const item of byId("objects").children) item.setAttribute("aria-current", String(item.dataset.number === String(number)));
  changed("masks");
  say(`${object(number).name} is chosen: clicks change its mask.`);
}

export function showObjects() {
  const list = byId("objects");
  byId("objects-hint").hidden = state.objects.length > 0 || !state.open;
  byId("new-object").disabled = !state.open;
  list.replaceChildren(...state.objects.map((one) => {
    const select = () => choose(one.number);
    const colour = element("input", { type: "color", value: one.colour, "aria-label": `Colour of ${one.name}`,
      onchange: (event) => change(one.number, { colour: event.target.value }) });
    const name = element("input", { type: "text", value: one.name, maxlength: "200", "aria-label": `Name of object ${one.number}`,
      onfocus: select, onkeydown: (event) => { if (event.key === "Enter") byId("canvas").focus(); },
      onchange: (event) => (event.target.value.trim() ? change(one.number, { name: event.target.value.trim() })
        : (event.target.value = one.name)) });
    const eye = element("button", { type: "button", class: "plain", "aria-pressed": String(one.visible),
      "aria-label": `${one.visible ? "Hide" : "Show"} ${one.name}`, title: one.visible ? "Hide (H)" : "Show (H)",
      onclick: () => change(one.number, { visible: !one.visible }) }, eyeIcon(one.visible));
    const drop = element("button", { type: "button", class: "plain", "aria-label": `Delete ${one.name}`, title: "Delete",
      onclick: () => deleteObject(one.number) }, "✕");
    return element("li", { class: one.visible ? "" : "is-hidden", "data-number": String(one.number),
      "aria-current": String(one.number === state.selected), onclick: select }, colour, name, eye, drop);
  }));
}

export function showHistory() {
  for (const [id, title] of [["undo", state.history.undo], ["redo", state.history.redo]]) {
    byId(id).disabled = !title;
    byId(id).title = title ? `${id === "undo" ? "Undo" : "Redo"}: ${title}` : "";
  }
}
