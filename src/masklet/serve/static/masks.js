// COCO's run lengths: column by column, outside and inside in turn, as differences in base 32.

export function counts(text) {
  const runs = [];
  for (let at = 0; at < text.length;) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << shift;
      more = (code & 32) !== 0;
      shift += 5;
      if (!more && code & 16) value |= -1 << shift;
    }
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

export function encode(inside, width, height) { // inside: Uint8Array, row by row
  const runs = [];
  let last = 0, length = 0;
  for (let x = 0; x < width; x++) {
    for (let y = 0; y < height; y++) {
      const value = inside[y * width + x];
      if (value !== last) { runs.push(length); length = 0; last = value; }
      length++;
    }
  }
  runs.push(length);
  let text = "";
  runs.forEach((run, index) => {
    let value = index > 2 ? run - runs[index - 2] : run;
    for (let more = true; more;) {
      let code = value & 31;
      value >>= 5;
      more = code & 16 ? value !== -1 : value !== 0;
      text += String.fromCharCode((more ? code | 32 : code) + 48);
    }
  });
  return { size: [height, width], counts: text };
}

export function decode(rle) {
  const [height, width] = rle.size;
  const inside = new Uint8Array(width * height);
  let at = 0, value = 0;
  for (const run of counts(rle.counts)) {
    if (value) for (let i = at; i < at + run; i++) inside[(i % height) * width + Math.floor(i / height)] = 1;
    at += run;
    value = 1 - value;
  }
  return inside;
}

export function contains(rle, x, y) {
  let left = x * rle.size[0] + y, value = false;
  for (const run of counts(rle.counts)) {
    if (left < run) return value;
    left -= run;
    value = !value;
  }
  return false;
}

const drawn = new Map(); // the last masks that were drawn
const KEPT = 60;

// A canvas of the image's size with the mask in a colour: a light fill, and an opaque border inside it.
export function paint(rle, colour, alpha = 0.42) {
  const key = `${colour} ${alpha} ${rle.size} ${rle.counts}`;
  let canvas = drawn.get(key);
  if (canvas) { drawn.delete(key); drawn.set(key, canvas); return canvas; }
  const [height, width] = rle.size, inside = decode(rle);
  canvas = document.createElement("canvas");
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const [red, green, blue] = [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
  const solid = (255 << 24) | (blue << 16) | (green << 8) | red;
  const fill = (Math.round(255 * alpha) << 24) | (blue << 16) | (green << 8) | red;
  const edge = Math.max(1, Math.round(Math.max(width, height) / 700));
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (!inside[i]) continue;
      const isWithin = x >= edge && y >= edge && x < width - edge && y < height - edge
        && inside[i - edge] && inside[i + edge] && inside[i - edge * width] && inside[i + edge * width];
      pixels[i] = isWithin ? fill : solid;
    }
  }
  context.putImageData(image, 0, 0);
  drawn.set(key, canvas);
  if (drawn.size > KEPT) drawn.delete(drawn.keys().next().value);
  return canvas;
}
