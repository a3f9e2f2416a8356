// The canvas: draws the image and its masks, and turns the pointer and the keyboard into prompts.

import { blob, post } from "./api.js";
import { prompt } from "./annotate.js";
import { drawRing, drawStroke, forget, paintStroke, takePrompt } from "./brush.js";
import { contains, paint } from "./masks.js";
import { byId, changed, masksHere, object, say, state } from "./state.js";

const canvas = byId("canvas"), context = canvas.getContext("2d");
const view = { scale: 1, x: 0, y: 0, isFitted: true };
const HOVER_MS = 140, DRAG_PX = 5;
let image = null, imageKey = "", box = null, pointer = null, hover = null, cross = null, corner = null;
let drag = null, hoverTimer = 0, hoverRequest = null, hasSpace = false, scheduled = false;
const pointers = new Map();

export function draw() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => { scheduled = false; drawNow(); });
}

function drawNow() {
  const ratio = devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio); canvas.height = Math.round(height * ratio);
    if (view.isFitted) fit();
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  if (!image || !state.open) return;
  context.setTransform(view.scale * ratio, 0, 0, view.scale * ratio, view.x * ratio, view.y * ratio);
  context.imageSmoothingEnabled = view.scale < 4;
  const { width: w, height: h } = state.open;
  context.drawImage(image, 0, 0, w, h);
  drawMasks(w, h);
  drawPrompts();
}

function drawMasks(w, h) {
  if (state.found) {
    for (const one of confident()) context.drawImage(paint(one.segmentation, one.colour, one.isLeftOut ? 0 : 0.4), 0, 0, w, h);
    return;
  }
  const masks = masksHere();
  for (const mask of masks) {
    const one = object(mask.object);
    if (one?.visible) context.drawImage(paint(mask.segmentation, one.colour, mask.object === state.selected ? 0.5 : 0.32), 0, 0, w, h);
  }
  if (hover && hover.frame === state.frame) {
    context.drawImage(paint(hover.segmentation, hover.colour, 0.3), 0, 0, w, h);
  }
}

// What everything mode has found: above the threshold, the best on top; and without what was left out by a click.
const confident = () => state.found.masks.filter((one) => one.iou_score >= state.found.threshold).reverse();
export const chosenFound = () => confident().filter((one) => !one.isLeftOut);

function drawPrompts() {
  const unit = 1 / view.scale;
  if (!state.found) {
    for (const mask of masksHere()) {
      if (!mask.prompts || !object(mask.object)?.visible || mask.object !== state.selected) continue;
      if (mask.prompts.box) drawBox(mask.prompts.box, object(mask.object).colour, unit);
      for (const [x, y, label = 1] of mask.prompts.points) drawPoint(x, y, label, unit);
    }
  }
  if (box) drawBox(box, "#ffffff", unit);
  drawStroke(context);
  if (pointer && state.tool === "brush") drawRing(context, pointer, view.scale);
  if (cross) {
    context.strokeStyle = "#ffffff"; context.lineWidth = 3 * unit; drawCross(unit);
    context.strokeStyle = "#000000"; context.lineWidth = unit; drawCross(unit);
    if (corner) drawBox([...corner, ...cross], "#ffffff", unit);
  }
}

function drawCross(unit) {
  context.beginPath();
  context.moveTo(cross[0] - 12 * unit, cross[1]); context.lineTo(cross[0] + 12 * unit, cross[1]);
  context.moveTo(cross[0], cross[1] - 12 * unit); context.lineTo(cross[0], cross[1] + 12 * unit);
  context.stroke();
}

function drawPoint(x, y, label, unit) {
  context.beginPath();
  context.arc(x, y, 6 * unit, 0, 7);
  context.fillStyle = label ? "#0a7d32" : "#c4221a";
  context.fill();
  context.lineWidth = 2 * unit; context.strokeStyle = "#ffffff"; context.stroke();
  context.beginPath();
  context.moveTo(x - 3 * unit, y); context.lineTo(x + 3 * unit, y);
  if (label) { context.moveTo(x, y - 3 * unit); context.lineTo(x, y + 3 * unit); }
  context.stroke();
}

function drawBox([x0, y0, x1, y1], colour, unit) {
  context.setLineDash([6 * unit, 4 * unit]);
  for (const [width, style] of [[4, "#000000"], [2, colour]]) {
    context.lineWidth = width * unit; context.strokeStyle = style;
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
}

// The image

export async function showFrame() {
  const { open, frame } = state, key = open ? `${open.id}/${frame}` : "";
  byId("empty").hidden = Boolean(open);
  if (!open) { image = null; imageKey = ""; draw(); return; }
  if (key === imageKey) return;
  const isNew = !imageKey.startsWith(`${open.id}/`);
  imageKey = key;
  hover = null;
  const loaded = await createImageBitmap(await blob(`/v1/media/${open.id}/frames/${frame}.jpg`));
  if (imageKey !== key) return; // another frame was asked for meanwhile
  image = loaded;
  if (isNew) { cross = corner = box = null; forget(); fit(); }
  canvas.setAttribute("aria-label", `${open.name}, frame ${frame}. Arrow keys move the cross, Enter adds a point.`);
  draw();
}

export function fit() {
  if (!state.open) return;
  const { clientWidth: width, clientHeight: height } = canvas, margin = 12;
  view.scale = Math.min((width - 2 * margin) / state.open.width, (height - 2 * margin) / state.open.height);
  view.x = (width - state.open.width * view.scale) / 2;
  view.y = (height - state.open.height * view.scale) / 2;
  view.isFitted = true;
  draw();
}

export function zoom(factor, x = cross ? toScreen(cross)[0] : canvas.clientWidth / 2, y = cross ? toScreen(cross)[1] : canvas.clientHeight / 2) {
  const scale = Math.min(40, Math.max(0.02, view.scale * factor)), by = scale / view.scale;
  view.x = x - (x - view.x) * by; view.y = y - (y - view.y) * by;
  view.scale = scale; view.isFitted = false;
  draw();
}

const toScreen = ([x, y]) => [x * view.scale + view.x, y * view.scale + view.y];
function pan(dx, dy) { view.x += dx; view.y += dy; view.isFitted = false; draw(); }

function toImage(event) {
  const place = canvas.getBoundingClientRect();
  return [(event.clientX - place.left - view.x) / view.scale, (event.clientY - place.top - view.y) / view.scale];
}
const clamp = ([x, y]) => [Math.min(Math.max(x, 0), state.open.width), Math.min(Math.max(y, 0), state.open.height)];
const isInside = ([x, y]) => x >= 0 && y >= 0 && x < state.open.width && y < state.open.height;
const rounded = (values) => values.map((value) => Math.round(value * 100) / 100);

// Prompts

function click(point, label) {
  if (!isInside(point)) { say("That is outside the image."); return; }
  stopHover();
  if (state.found) { leaveOut(point); return; }
  prompt({ points: [[...rounded(point), label]] }, label ? "Adding a point" : "Adding a background point");
}

function promptBox([x0, y0, x1, y1]) {
  const values = rounded([Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)]);
  if (values[2] - values[0] < 1 || values[3] - values[1] < 1) { say("The box is empty. Drag over the object."); return; }
  stopHover();
  if (isBlocked()) return;
  prompt({ box: values }, "Adding a box");
}

function promptStroke() {
  const body = takePrompt();
  if (body) prompt(body, body.refine ? "Adding a rough mask" : "Correcting the mask");
}

// Masks that were found are kept or discarded before the next prompt, whose mask they would hide.
function isBlocked() {
  if (state.found) say("Keep or discard the masks that were found, then go on.");
  return Boolean(state.found);
}

function leaveOut([x, y]) {
  const under = confident().filter((one) => contains(one.segmentation, Math.floor(x), Math.floor(y)));
  if (!under.length) { say("No mask was found here."); return; }
  const one = under.reduce((best, other) => (other.area < best.area ? other : best));
  one.isLeftOut = !one.isLeftOut;
  say(one.isLeftOut ? "The mask is left out. Click again to keep it." : "The mask is kept.");
  changed("found");
}

// Hover preview

function stopHover() {
  clearTimeout(hoverTimer);
  hoverRequest?.abort();
  hoverRequest = null;
  if (hover) { hover = null; draw(); }
}

function startHover(point, label) {
  clearTimeout(hoverTimer);
  hoverRequest?.abort();
  const isWanted = byId("hover").checked && ["add", "remove"].includes(state.tool) && !state.found && !state.job;
  if (!isWanted || !isInside(point)) { stopHover(); return; }
  hoverTimer = setTimeout(async () => {
    const { open, frame, selected } = state;
    const known = masksHere().some((one) => one.object === selected && one.prompts);
    hoverRequest = new AbortController();
    try {
      const body = { frame, points: [[...rounded(point), label]], object: known ? selected : null };
      const found = await post(`/v1/media/${open.id}/preview`, body, { signal: hoverRequest.signal, once: true });
      if (state.open?.id === open.id) hover = { ...found, frame, colour: label ? object(selected)?.colour || "#46c8f0" : "#ff8f85" };
      draw();
    } catch { /* the pointer has moved on, or the server is busy: a preview is not needed */ }
  }, HOVER_MS);
}

// Pointer

canvas.addEventListener("pointerdown", (event) => {
  if (!state.open) return;
  canvas.focus({ preventScroll: true });
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
  cross = corner = null;
  if (pointers.size === 2) { drag = { kind: "pinch" }; box = null; forget(); return; }
  const point = toImage(event);
  const isPan = event.button === 1 || hasSpace || state.tool === "pan";
  const label = event.button === 2 || event.altKey || state.tool === "remove" ? 0 : 1;
  drag = { kind: isPan ? "pan" : state.tool === "brush" ? "brush" : "click", from: point, label, x: event.clientX, y: event.clientY };
  if (drag.kind === "brush" && isBlocked()) drag.kind = "none";
  if (drag.kind === "brush") { stopHover(); paintStroke(clamp(point), clamp(point), view.scale, !label); draw(); }
});

canvas.addEventListener("pointermove", (event) => {
  if (!state.open) return;
  const before = pointers.get(event.pointerId), point = toImage(event);
  pointer = point;
  if (state.tool === "brush") draw();
  byId("where").textContent = isInside(point) ? `x ${Math.floor(point[0])}, y ${Math.floor(point[1])}` : "";
  if (!drag || !before) { startHover(point, state.tool === "remove" || event.altKey ? 0 : 1); return; }
  if (drag.kind === "pinch") pinch(event);
  else if (drag.kind === "pan") pan(event.clientX - before[0], event.clientY - before[1]);
  else if (drag.kind === "brush") { paintStroke(clamp(drag.last || drag.from), clamp(point), view.scale, !drag.label); drag.last = point; draw(); }
  else if (Math.hypot(event.clientX - drag.x, event.clientY - drag.y) > DRAG_PX) {
    stopHover();
    drag.kind = "box";
  }
  if (drag.kind === "box") { box = [...clamp(drag.from), ...clamp(point)]; draw(); }
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});

function pinch(event) {
  const [first, second] = [...pointers.keys()], other = event.pointerId === first ? second : first;
  const [ox, oy] = pointers.get(other), [bx, by] = pointers.get(event.pointerId);
  const place = canvas.getBoundingClientRect();
  pan((event.clientX - bx) / 2, (event.clientY - by) / 2);
  const factor = Math.hypot(event.clientX - ox, event.clientY - oy) / Math.max(1, Math.hypot(bx - ox, by - oy));
  zoom(factor, (event.clientX + ox) / 2 - place.left, (event.clientY + oy) / 2 - place.top);
}

function release(event) {
  pointers.delete(event.pointerId);
  if (!drag) return;
  const ended = drag;
  drag = pointers.size ? { kind: "none" } : null;
  if (event.type === "pointercancel" || !state.open) { box = null; forget(); draw(); return; }
  if (ended.kind === "click" && state.tool === "box") say("Drag a box around the object.");
  else if (ended.kind === "click") click(ended.from, ended.label);
  else if (ended.kind === "box" && box) { promptBox(box); box = null; }
  else if (ended.kind === "brush") promptStroke();
  draw();
}
canvas.addEventListener("pointerup", release);
canvas.addEventListener("pointercancel", release);
canvas.addEventListener("pointerleave", () => { if (!drag) { stopHover(); pointer = null; draw(); byId("where").textContent = ""; } });
canvas.addEventListener("contextmenu", (event) => event.preventDefault());
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const place = canvas.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - place.left, event.clientY - place.top);
}, { passive: false });

// Keyboard: arrow keys move a cross, Enter prompts there.

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (!state.open || event.ctrlKey || event.metaKey) return;
  if (ARROWS[event.key]) {
    const step = (event.shiftKey ? 50 : 8) / view.scale;
    const [x, y] = cross || [state.open.width / 2, state.open.height / 2];
    cross = clamp([x + ARROWS[event.key][0] * step, y + ARROWS[event.key][1] * step]).map(
      (value, axis) => Math.min(value, (axis ? state.open.height : state.open.width) - 1));
    keepInView(cross);
    say(`Cross at x ${Math.round(cross[0])}, y ${Math.round(cross[1])}.`);
    draw();
  } else if (event.key === "Enter" && cross) {
    click(cross, event.shiftKey || state.tool === "remove" ? 0 : 1);
  } else if (event.key.toLowerCase() === "x" && cross) {
    if (corner) { promptBox([...corner, ...cross]); corner = null; } else { corner = cross; say("First corner of the box is set. Move the cross and press X again."); }
    draw();
  } else if (event.key === "Escape" && (cross || corner)) {
    if (corner) corner = null; else cross = null;
    draw();
    return; // Escape also cancels what is running
  } else return;
  event.preventDefault();
  event.stopPropagation();
});
function keepInView(point) {
  const shifts = toScreen(point).map((at, axis) => {
    const room = (axis ? canvas.clientHeight : canvas.clientWidth) - 20;
    return Math.min(Math.max(at, 20), room) - at;
  });
  if (shifts.some(Boolean)) pan(...shifts);
}
addEventListener("keydown", (event) => { if (event.key === " " && document.activeElement === canvas) { hasSpace = true; event.preventDefault(); } });
addEventListener("keyup", (event) => { if (event.key === " ") hasSpace = false; });

export function setTool(tool) {
  state.tool = tool;
  stopHover();
  canvas.classList.toggle("pan", tool === "pan");
  byId("brush-field").hidden = tool !== "brush";
  byId("hover-field").hidden = tool === "brush"; // in its place, so that the canvas does not move
  draw();
  for (const button of byId("tools").children) button.setAttribute("aria-pressed", String(button.dataset.tool === tool));
  changed("tool");
}

new ResizeObserver(() => { if (view.isFitted) fit(); else draw(); }).observe(canvas);
