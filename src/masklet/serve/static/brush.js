// The brush: the first stroke of an object is a rough mask, which the model refines in an image. Further strokes add to
// its mask, or erase from it, pixel by pixel.

import { decode, encode } from "./masks.js";
import { byId, masksHere, object, say, state } from "./state.js";

let stroke = null;

const widthOf = (scale) => Number(byId("brush").value) / scale; // the slider counts pixels of the screen

export function forget() { stroke = null; }

export function paintStroke(from, to, scale, isErasing) {
  if (!stroke) {
    const canvas = document.createElement("canvas");
    canvas.width = state.open.width; canvas.height = state.open.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.strokeStyle = isErasing ? "#000000" : object(state.selected)?.colour || "#46c8f0";
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = widthOf(scale);
    stroke = { canvas, context, isErasing };
  }
  stroke.context.beginPath();
  stroke.context.moveTo(...from); stroke.context.lineTo(to[0] + 0.01, to[1]); // a click makes a dot
  stroke.context.stroke();
}

export function drawStroke(context) {
  if (!stroke) return;
  context.globalAlpha = 0.7;
  context.drawImage(stroke.canvas, 0, 0);
  context.globalAlpha = 1;
}

export function drawRing(context, [x, y], scale) {
  for (const [width, style] of [[3, "#000000"], [1.5, "#ffffff"]]) {
    context.beginPath();
    context.arc(x, y, widthOf(scale) / 2, 0, 7);
    context.lineWidth = width / scale; context.strokeStyle = style;
    context.stroke();
  }
}

// The prompt that the stroke makes, which ends here; null if nothing would be left.
export function takePrompt() {
  const { canvas, context, isErasing } = stroke, { width, height } = canvas;
  stroke = null;
  const before = masksHere().find((one) => one.object === state.selected);
  if (isErasing && !before) { say("There is no mask to erase from."); return null; }
  const inside = before ? decode(before.segmentation) : new Uint8Array(width * height);
  const { data } = context.getImageData(0, 0, width, height);
  for (let i = 0; i < inside.length; i++) if (data[4 * i + 3] > 127) inside[i] = isErasing ? 0 : 1;
  if (!inside.includes(1)) { say("That would erase the whole mask. Clear removes it."); return null; }
  return { mask: encode(inside, width, height), refine: !before };
}
