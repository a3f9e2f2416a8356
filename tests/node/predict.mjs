// Predicts masks with transformers.js: node predict.mjs FOLDER IMAGE CASES.json OUT DTYPE
// CASES.json maps names to the processor's arguments. OUT gets NAME.bin with the masks, and result.json.

import { AutoProcessor, RawImage, Sam2Model, env } from "@huggingface/transformers";
import fs from "node:fs";
import path from "node:path";

const [folder, imagePath, casesPath, out, dtype] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder) + "/";
const name = path.basename(folder);

const model = await Sam2Model.from_pretrained(name, { dtype });
const processor = await AutoProcessor.from_pretrained(name);
const image = await RawImage.read(imagePath);
const results = {};
for (const [label, prompts] of Object.entries(JSON.parse(fs.readFileSync(casesPath, "utf8")))) {
  const inputs = await processor(image, prompts);
  const outputs = await model(inputs);
  const [masks] = await processor.post_process_masks(
    outputs.pred_masks, inputs.original_sizes, inputs.reshaped_input_sizes,
  );
  fs.writeFileSync(path.join(out, `${label}.bin`), Buffer.from(masks.data));
  results[label] = { shape: masks.dims, iou_scores: [...outputs.iou_scores.data] };
}
fs.writeFileSync(path.join(out, "result.json"), JSON.stringify(results));
