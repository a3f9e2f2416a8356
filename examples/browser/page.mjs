import { loadModel } from "./model.mjs";

const [file, clear, status, image, mask] = ["file", "clear", "status", "image", "mask"].map((id) =>
  document.getElementById(id),
);
const COLOUR = [30, 144, 255, 140];
let encoded = null;
let points = [];

function say(text) {
  status.textContent = text;
}

function paint({ logits, width, height }) {
  const small = new OffscreenCanvas(width, height);
  const pixels = new ImageData(width, height);
  logits.forEach((logit, i) => logit > 0 && pixels.data.set(COLOUR, 4 * i));
  small.getContext("2d").putImageData(pixels, 0, 0);
  mask.getContext("2d").drawImage(small, 0, 0, mask.width, mask.height);
}

async function show() {
  const context = mask.getContext("2d");
  context.clearRect(0, 0, mask.width, mask.height);
  if (!points.length) return say("Click on an object.");
  const result = await model.predict(encoded, points);
  context.clearRect(0, 0, mask.width, mask.height);
  paint(result);
  for (const { x, y, label } of points) {
    context.fillStyle = label ? "lime" : "red";
    context.beginPath();
    context.arc(x, y, Math.max(4, mask.width / 150), 0, 7);
    context.fill();
  }
  const inside = result.logits.reduce((sum, logit) => sum + (logit > 0), 0) / result.logits.length;
  say(`Predicted IoU ${result.iou.toFixed(2)}, ${(100 * inside).toFixed(1)} % of the image`);
}

async function click(event, label) {
  event.preventDefault();
  if (!encoded) return;
  const box = image.getBoundingClientRect();
  const x = ((event.clientX - box.left) * image.width) / box.width;
  const y = ((event.clientY - box.top) * image.height) / box.height;
  points.push({ x, y, label });
  await show();
}

async function open(blob) {
  encoded = null;
  points = [];
  say("Encoding …");
  const bitmap = await createImageBitmap(blob);
  [image.width, image.height] = [mask.width, mask.height] = [bitmap.width, bitmap.height];
  mask.style.width = `${image.getBoundingClientRect().width}px`;
  image.getContext("2d").drawImage(bitmap, 0, 0);
  const start = performance.now();
  encoded = await model.encode(bitmap);
  say(`Encoded in ${((performance.now() - start) / 1000).toFixed(1)} s. Click on an object.`);
}

const guarded = (run) => (event) => run(event).catch((error) => say(String(error)));
let model = null;
try {
  model = await loadModel("model");
  say("Choose an image.");
  file.addEventListener("change", guarded(() => open(file.files[0])));
  image.addEventListener("click", guarded((event) => click(event, event.shiftKey ? 0 : 1)));
  image.addEventListener("contextmenu", guarded((event) => click(event, 0)));
  clear.addEventListener("click", guarded(async () => { points = []; await show(); }));
} catch (error) {
  say(String(error));
}
