// The frames of a video: the strip, the lanes, playing and tracking.

import { blob, events, get, post, remove } from "./api.js";
import { choose, loadHistory, loadLanes, loadMasks } from "./annotate.js";
import { byId, changed, doing, element, fail, object, say, state } from "./state.js";

const THUMBS = 12;
let playing = 0, thumbsOf = "", follow = null;

export function goTo(frame) {
  if (!state.open) return;
  const next = Math.min(Math.max(0, frame), state.open.frames - 1);
  if (next === state.frame) return;
  state.frame = next;
  changed("frame");
}

export function showStrip() {
  const isVideo = state.open?.kind === "video";
  byId("strip").hidden = !isVideo;
  if (!isVideo) { thumbsOf = ""; return; }
  const { frames, fps, id } = state.open, slider = byId("frame");
  slider.max = String(frames - 1);
  slider.value = String(state.frame);
  byId("frame-text").textContent = `Frame ${state.frame} of ${frames - 1}, ${(state.frame / (fps || 25)).toFixed(2)} s`;
  slider.setAttribute("aria-valuetext", byId("frame-text").textContent);
  if (thumbsOf !== id) { thumbsOf = id; showThumbs(id, frames).catch(fail); }
  showLanes();
}

async function showThumbs(id, frames) {
  const strip = byId("thumbs");
  strip.replaceChildren();
  const count = Math.min(THUMBS, frames);
  for (let i = 0; i < count; i++) {
    const frame = Math.round((i + 0.5) * (frames / count) - 0.5);
    const loaded = await blob(`/v1/media/${id}/frames/${frame}.jpg?side=120`);
    if (thumbsOf !== id) return;
    strip.append(element("img", { src: URL.createObjectURL(loaded), alt: "" }));
  }
}

export function goToPointer(event) { // the frame where a lane or the thumbnails are clicked
  const { left, width } = event.currentTarget.getBoundingClientRect();
  goTo(Math.floor(((event.clientX - left) / width) * state.open.frames));
}

export function showLanes() {
  if (state.open?.kind !== "video") return;
  byId("lanes").replaceChildren(...state.lanes.map((lane) => {
    const one = object(lane.number), frames = state.open.frames;
    const canvas = element("canvas", { width: "1600", height: "16", "aria-hidden": "true", onclick: goToPointer });
    const context = canvas.getContext("2d"), unit = canvas.width / frames;
    context.fillStyle = one?.colour || "#888888";
    for (const [from, to] of lane.tracked) context.fillRect(from * unit, 4, (to - from + 1) * unit, 8);
    for (const [from, to] of lane.absent) context.clearRect(from * unit, 7, (to - from + 1) * unit, 5);
    for (const frame of lane.prompted) context.fillRect(frame * unit, 0, Math.max(unit, 6), 16);
    context.fillStyle = getComputedStyle(document.body).color;
    context.fillRect((state.frame + 0.5) * unit - 2, 0, 4, 16);
    const tracked = lane.tracked.reduce((sum, [from, to]) => sum + to - from + 1, 0);
    const text = `${one?.name}: prompted in ${lane.prompted.length} frames, tracked in ${tracked}`;
    return element("div", { class: "lane", role: "listitem", "aria-label": text, title: text }, 
      element("button", { type: "button", class: "plain", title: `Choose ${one?.name}`, onclick: () => choose(lane.number) }, one?.name || ""), canvas);
  }));
}

export function play() {
  if (playing) { clearTimeout(playing); playing = 0; byId("play").textContent = "Play"; return; }
  byId("play").textContent = "Pause";
  const step = () => {
    if (!state.open || state.frame >= state.open.frames - 1) { play(); return; }
    goTo(state.frame + 1);
    playing = setTimeout(step, Math.max(40, 1000 / (state.open.fps || 25)));
  };
  if (state.frame >= state.open.frames - 1) goTo(0);
  playing = setTimeout(step, 0);
}

export async function track(direction, resume = false) {
  await doing("Starting to track", async () => {
    const start = resume ? {} : { start: state.frame };
    const job = await post(`/v1/media/${state.open.id}/tracking`, resume ? { resume } : { direction, ...start });
    watch(job);
    return "Tracking …";
  });
}

export async function watch(job) { // live results of a job, until it has ended
  const media = job.media;
  follow?.abort();
  const control = (follow = new AbortController());
  let shown = state.frame;
  state.job = job;
  showJob();
  try {
    for await (const { event, data } of events(`/v1/jobs/${job.id}/events`, control.signal)) {
      if (state.open?.id !== media) return;
      if (event === "frame") {
        state.masks.set(data.frame, data.masks);
        if (state.frame === shown) { goTo(data.frame); shown = state.frame; } // not once another frame was chosen
        changed("masks");
      } else {
        state.job = data;
        showJob();
        if (event === "end") break;
        if (data.done % 5 === 0) loadLanes().catch(fail);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") fail(error);
    if (state.open?.id === media) state.job = await get(`/v1/jobs/${job.id}`).catch(() => null);
  }
  if (state.open?.id !== media) return;
  ended();
}

async function ended() {
  const job = state.job;
  if (job?.status === "failed") fail(new Error(`Tracking has stopped: ${job.error}`));
  else if (job) say({ done: "Tracking is finished.", cancelled: "Tracking was cancelled. What was tracked is kept; Continue goes on.",
    interrupted: "Tracking was interrupted. What was tracked is kept; Continue goes on.", running: "Tracking goes on." }[job.status]);
  if (job?.status !== "running") state.job = null;
  showJob(job);
  await Promise.all([loadLanes(), loadMasks(), loadHistory()]).catch(fail);
}

export function showJob(last = null) {
  const job = state.job, isRunning = job?.status === "running", shown = job || last;
  byId("progress-row").hidden = !isRunning;
  byId("track-cancel").hidden = !isRunning;
  byId("track-resume").hidden = isRunning || !["cancelled", "interrupted"].includes(shown?.status);
  for (const id of ["track-backward", "track-both", "track-forward"]) byId(id).disabled = isRunning;
  if (isRunning) {
    byId("progress").max = Math.max(job.total, 1);
    byId("progress").value = job.done;
    byId("progress-text").textContent = `${job.done} of ${job.total} frames`;
  }
}

export async function cancel() {
  if (state.job) await doing("Cancelling", async () => { await remove(`/v1/jobs/${state.job.id}`); return "Cancelling after this frame …"; });
}

export async function resumeShown() { // after a reload: a job that runs is watched, an interrupted one can go on
  follow?.abort();
  state.job = null;
  showJob();
  if (!state.open?.job) return;
  const job = await get(`/v1/jobs/${state.open.job}`);
  if (job.status === "running") watch(job);
  else showJob(job);
}
