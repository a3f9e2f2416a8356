// An exported model: encodes an image, decodes clicks. Coordinates are pixels of the image, x right and y down.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more need a page that is isolated by HTTP headers

export async function loadModel(folder) {
  const answer = await fetch(`${folder}/manifest.json`);
  if (!answer.ok) throw new Error(`There is no model in ${folder}/: run masklet export nano --out ${folder}`);
  const manifest = await answer.json();
  const open = (name) => ort.InferenceSession.create(`${folder}/${manifest.graphs[name].file}`);
  return new Model(manifest, await open("image_encoder"), await open("prompt_decoder"));
}

class Model {
  constructor(manifest, encoder, decoder) {
    Object.assign(this, { manifest, encoder, decoder });
  }

  /** Encodes a canvas, image or bitmap, which is stretched to the network's input. */
  async encode(source) {
    const [height, width] = this.manifest.input_hw;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.imageSmoothingQuality = "high";
    context.drawImage(source, 0, 0, width, height);
    const { data } = context.getImageData(0, 0, width, height);
    const { image_mean: mean, image_std: std, rescale_factor: factor } = this.manifest;
    const pixels = new Float32Array(3 * height * width);
    for (let channel = 0; channel < 3; channel++)
      for (let i = 0; i < height * width; i++)
        pixels[channel * height * width + i] = (data[4 * i + channel] * factor - mean[channel]) / std[channel];
    const maps = await this.encoder.run({ pixel_values: new ort.Tensor("float32", pixels, [1, 3, height, width]) });
    return { maps, width: source.width, height: source.height };
  }

  /** The best mask for points [{x, y, label}]: {logits, width, height, iou}; logits above 0 are inside. */
  async predict(encoded, points) {
    const [height, width] = this.manifest.input_hw;
    const xy = points.flatMap(({ x, y }) => [(x * width) / encoded.width, (y * height) / encoded.height]);
    const [h, w] = [height / 4, width / 4];
    const output = await this.decoder.run({
      stride4: encoded.maps.stride4,
      stride8: encoded.maps.stride8,
      image_embedding: encoded.maps.image_embedding,
      points: new ort.Tensor("float32", Float32Array.from(xy), [1, 1, points.length, 2]),
      labels: new ort.Tensor("int64", BigInt64Array.from(points, ({ label }) => BigInt(label)), [1, 1, points.length]),
      mask_input: new ort.Tensor("float32", new Float32Array(h * w), [1, 1, h, w]),
      has_mask: new ort.Tensor("float32", [0], [1]),
    });
    // Of the four masks the first is for unambiguous prompts; the others are the candidates for a single click.
    const mask = (index) => output.logits.data.subarray(index * h * w, (index + 1) * h * w);
    const scores = [...output.iou_scores.data];
    const isSingle = points.length > 1 && (!this.manifest.replaces_unstable || isStable(mask(0)));
    const best = isSingle ? 0 : scores.indexOf(Math.max(...scores.slice(1)), 1);
    return { logits: mask(best), width: w, height: h, iou: scores[best] };
  }
}

/** Whether a mask hardly changes when its threshold moves, as SAM 2.1 decides whether to replace it by a candidate. */
function isStable(logits) {
  const above = (threshold) => logits.reduce((count, logit) => count + (logit > threshold), 0);
  const loose = above(-0.05);
  return !loose || above(0.05) / loose >= 0.98;
}
