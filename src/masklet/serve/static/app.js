// The page: projects, the list of images and videos, everything mode, exports and keys.

import * as api from "./api.js";
import { addObject, change, choose, clearPrompts, deleteObject, goBack, loadHistory, loadLanes, loadMasks, loadObjects, promptedHere, showHistory, showObjects } from "./annotate.js";
import { chosenFound, draw, fit, setTool, showFrame, zoom } from "./canvas.js";
import { ask, askDelete, askName, byId, changed, doing, element, fail, object, on, say, state } from "./state.js";
import { cancel, goTo, goToPointer, play, resumeShown, showLanes, showStrip, track } from "./video.js";

const FORMATS = {
  image: { coco: "COCO (run lengths)", "coco-polygons": "COCO (polygons)", png: "PNG of labels", overlay: "PNG with masks painted", cutout: "Cutout (PNG)",
    npz: "NumPy (.npz)", svg: "SVG", geojson: "GeoJSON", labelme: "labelme", labelstudio: "Label Studio", cvat: "CVAT", yolo: "YOLO" },
  video: { mp4: "Masked video (.mp4)", gif: "Animation (.gif)", jsonl: "JSON lines (COCO run lengths)", png: "PNGs as in DAVIS (.zip)", cvat: "CVAT", mot: "MOT", mots: "MOTS" },
};
const COLOURS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46c8f0", "#f032e6", "#9acd32", "#008080", "#9a6324"];

// Projects

async function loadProjects(wanted) {
  state.projects = await api.get("/v1/projects");
  if (!state.projects.length) state.projects = [await api.post("/v1/projects", { name: "My project" })];
  state.project = state.projects.find((one) => one.id === wanted) || state.projects[0];
  byId("project").replaceChildren(...state.projects.map((one) => element("option", { value: one.id, selected: one === state.project }, one.name)));
  await loadMedia();
}

async function loadMedia() {
  state.media = await api.get(`/v1/projects/${state.project.id}/media`);
  showMedia();
}

function showMedia() {
  byId("media").replaceChildren(...state.media.map((one) => {
    const picture = element("img", { alt: "" });
    api.blob(`/v1/media/${one.id}/frames/0.jpg?side=120`).then((loaded) => { picture.src = URL.createObjectURL(loaded); }, () => {});
    const about = one.kind === "video" ? `${one.frames} frames` : `${one.width} × ${one.height}`;
    return element("li", {},
      element("button", { type: "button", class: "open", title: one.name, "aria-current": String(one.id === state.open?.id), onclick: () => openMedia(one) },
        picture, element("span", { class: "name" }, one.name, element("small", {}, about))),
      element("button", { type: "button", class: "plain", "aria-label": `Delete ${one.name}`, title: "Delete", onclick: () => deleteMedia(one) }, "✕"));
  }));
}

async function openMedia(one, frame = 0) {
  await doing(`Opening ${one.name}`, async () => {
    Object.assign(state, { open: one, frame: Math.min(frame, one.frames - 1), objects: [], selected: null, masks: new Map(), lanes: [], found: null });
    showMedia();
    showFormats();
    changed("open", "objects", "frame", "found");
    await Promise.all([loadObjects(), loadHistory(), loadLanes(), loadMasks(), resumeShown()]);
    return `${one.name}: ${one.width} × ${one.height} pixels. Click on an object.`;
  });
}

async function deleteMedia(one) {
  if (!(await askDelete(`Delete ${one.name} with all its masks? This cannot be undone.`))) return;
  await doing(`Deleting ${one.name}`, async () => {
    await api.remove(`/v1/media/${one.id}`);
    if (state.open?.id === one.id) { Object.assign(state, { open: null, objects: [], masks: new Map(), lanes: [], found: null, history: {} }); changed("open", "objects", "frame", "found", "history"); }
    await loadMedia();
  });
}

async function upload(files) {
  const failed = [];
  for (const file of files) {
    const isDone = await doing(`Uploading ${file.name}`, async () => {
      const limit = state.me.limits.upload_bytes;
      if (file.size > limit) throw new Error(`${file.name} is too large: expected at most ${Math.floor(limit / 2 ** 20)} MB.`);
      const form = new FormData();
      form.append("file", file);
      const made = await api.post(`/v1/projects/${state.project.id}/media`, form);
      await loadMedia();
      await openMedia(made);
      return `${made.name} was added.`;
    });
    if (!isDone) failed.push(`${file.name}: ${byId("alert-text").textContent}`);
  }
  if (failed.length && files.length > 1) fail(new Error(failed.join(" ")));
}

async function loadFolder() {
  if (!state.me.folder) return;
  const files = await api.get("/v1/folder");
  byId("folder-box").hidden = !files.length;
  byId("folder-box").open = !state.media.length;
  byId("folder").replaceChildren(...files.map((path) => element("li", {}, element("button", { type: "button", class: "plain", title: path,
    onclick: () => doing(`Opening ${path}`, async () => {
      const made = await api.post(`/v1/projects/${state.project.id}/folder-media`, { path });
      await loadMedia();
      await openMedia(made);
    }) }, element("span", { class: "name" }, path)))));
}

// Everything

let search = null; // what is running of everything mode

async function findAll() {
  if (!state.open || search) return;
  const { open, frame } = state, points = Number(byId("points").value);
  search = new AbortController();
  showSearch();
  await doing("Finding everything. This takes some seconds; you can go on working", async () => {
    const masks = await api.post(`/v1/media/${open.id}/everything`, { frame, points_per_side: points, iou_threshold: 0.3, stability_threshold: 0.5 }, { signal: search.signal });
    if (state.open?.id !== open.id) return "";
    state.found = { frame, threshold: Number(byId("threshold").value), masks: masks.map((one, i) => ({ ...one, colour: COLOURS[i % COLOURS.length] })) };
    changed("found");
    return `Found ${masks.length} masks. The slider chooses the confident ones; click on a mask to leave it out.`;
  });
  search = null;
  showSearch();
}

function showSearch() {
  byId("find").disabled = !state.open || search !== null;
  byId("find-cancel").hidden = search === null;
}

function showFound() {
  const count = state.found ? chosenFound().length : 0;
  byId("found").hidden = !state.found;
  byId("threshold-text").textContent = Number(byId("threshold").value).toFixed(2);
  byId("found-text").textContent = state.found ? `${count} of ${state.found.masks.length} masks` : "";
  byId("keep").disabled = !count;
  draw();
}

async function keepFound() {
  const { frame } = state.found, chosen = chosenFound().reverse();
  const masks = chosen.map(({ segmentation, iou_score }) => ({ segmentation, iou_score }));
  await doing("Keeping masks", async () => {
    const made = await api.post(`/v1/media/${state.open.id}/objects-from-masks`, { frame, masks });
    state.found = null;
    changed("found");
    await Promise.all([loadObjects(), loadMasks(), loadHistory(), loadLanes()]);
    return `${made.length} objects were added.`;
  });
}

// Exports

function showFormats() {
  const formats = FORMATS[state.open?.kind] || {};
  byId("format").replaceChildren(...Object.entries(formats).map(([value, text]) => element("option", { value }, text)));
  byId("export").disabled = byId("format").disabled = !state.open;
}

const exportOpen = () => doing("Exporting", async () =>
  `Saved ${await api.download(`/v1/media/${state.open.id}/export?format=${byId("format").value}`, "masks")}.`);
const exportProject = () => doing("Exporting the project", async () =>
  `Saved ${await api.download(`/v1/projects/${state.project.id}/export`, "project.zip")}.`);

// Controls

function remember() {
  if (state.project) history.replaceState(null, "", `#${[state.project.id, state.open?.id, state.open && state.frame].filter((one) => one !== undefined && one !== null).join("/")}`);
}

on("frame", () => {
  showStrip();
  remember();
  showFrame().catch(fail);
  if (state.found && state.found.frame !== state.frame) { state.found = null; showFound(); }
  if (state.open && !state.masks.has(state.frame)) loadMasks().catch(fail);
  draw();
});
on("open", () => { showStrip(); remember(); showSearch(); });
on("objects", () => { showObjects(); showLanes(); showClear(); draw(); });
on("masks", () => { showClear(); draw(); });
on("lanes", showLanes);
on("history", showHistory);
on("found", showFound);

const showClear = () => { byId("clear").disabled = !state.open || !promptedHere(); };

const click = (id, call) => byId(id).addEventListener("click", call);
click("new-project", async () => {
  const name = await askName("Name of the new project", "");
  if (name) await doing("Making the project", async () => { await loadProjects((await api.post("/v1/projects", { name })).id); closeMedia(); });
});
click("rename-project", async () => {
  const name = await askName("New name of the project", state.project.name);
  if (name) await doing("Renaming", async () => { await api.patch(`/v1/projects/${state.project.id}`, { name }); await loadProjects(state.project.id); });
});
click("delete-project", async () => {
  if (!(await askDelete(`Delete the project ${state.project.name} with its ${state.media.length} images and videos, and all masks?`))) return;
  await doing("Deleting the project", async () => { await api.remove(`/v1/projects/${state.project.id}`); closeMedia(); await loadProjects(); });
});
function closeMedia() {
  Object.assign(state, { open: null, objects: [], masks: new Map(), lanes: [], found: null, history: {} });
  changed("open", "objects", "frame", "found", "history");
}
byId("project").addEventListener("change", (event) => { closeMedia(); loadProjects(event.target.value).catch(fail); });
byId("upload").addEventListener("change", (event) => { upload([...event.target.files]); event.target.value = ""; });
click("new-object", () => doing("Adding an object", async () => `${(await addObject()).name} was added. Click on it.`));
click("undo", () => goBack(false));
click("redo", () => goBack(true));
click("clear", clearPrompts);
click("zoom-in", () => zoom(1.3));
click("zoom-out", () => zoom(1 / 1.3));
click("zoom-fit", fit);
click("find", findAll);
click("find-cancel", () => search?.abort());
click("keep", keepFound);
click("discard", () => { state.found = null; changed("found"); say("Discarded."); });
click("export", exportOpen);
click("export-project", exportProject);
click("first", () => goTo(0));
click("back", () => goTo(state.frame - 1));
click("forward", () => goTo(state.frame + 1));
click("last", () => goTo(state.open.frames - 1));
click("play", play);
click("track-forward", () => track("forward"));
click("track-backward", () => track("backward"));
click("track-both", () => track("both"));
click("track-resume", () => track(null, true));
click("track-cancel", cancel);
click("help", () => byId("help-dialog").showModal());
click("alert-close", () => { byId("alert").hidden = true; });
click("theme", () => {
  const root = document.documentElement, isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  localStorage.setItem("masklet-theme", root.dataset.theme);
  showLanes();
});
byId("thumbs").addEventListener("click", goToPointer);
byId("frame").addEventListener("input", (event) => goTo(Number(event.target.value)));
byId("threshold").addEventListener("input", (event) => { if (state.found) state.found.threshold = Number(event.target.value); showFound(); });
for (const button of byId("tools").children) button.addEventListener("click", () => setTool(button.dataset.tool));
const box = byId("canvas-box");
box.addEventListener("dragover", (event) => { event.preventDefault(); box.classList.add("drop"); });
box.addEventListener("dragleave", () => box.classList.remove("drop"));
box.addEventListener("drop", (event) => { event.preventDefault(); box.classList.remove("drop"); if (state.project) upload([...event.dataTransfer.files]); });

const KEYS = {
  a: () => setTool("add"), r: () => setTool("remove"), b: () => setTool("box"), p: () => setTool("brush"), v: () => setTool("pan"),
  n: () => byId("new-object").click(), "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: fit,
  ",": () => goTo(state.frame - 1), ".": () => goTo(state.frame + 1), "<": () => goTo(state.frame - 10), ">": () => goTo(state.frame + 10),
  c: clearPrompts, e: findAll, "?": () => byId("help-dialog").showModal(),
  h: () => object(state.selected) && change(state.selected, { visible: !object(state.selected).visible }),
  t: () => state.open?.kind === "video" && !state.job && track("forward"),
  T: () => state.open?.kind === "video" && !state.job && track("backward"),
  Escape: () => { search?.abort(); cancel(); }, Delete: () => state.selected !== null && deleteObject(state.selected),
};
addEventListener("keydown", (event) => {
  const isTyping = event.target.matches("input:not([type=range], [type=checkbox]), select, textarea") || document.querySelector("dialog[open]");
  if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z" && !isTyping) {
    event.preventDefault();
    goBack(event.shiftKey);
  } else if (!isTyping && !event.ctrlKey && !event.metaKey && !event.altKey) {
    if (/^[1-9]$/.test(event.key)) {
      const one = state.objects[Number(event.key) - 1];
      if (one) choose(one.number);
    } else if (KEYS[event.key]) { event.preventDefault(); KEYS[event.key](); }
  }
});

async function start() {
  const theme = localStorage.getItem("masklet-theme");
  if (theme) document.documentElement.dataset.theme = theme;
  const [project, media, frame] = location.hash.slice(1).split("/");
  for (;;) {
    try { state.me = await api.get("/v1/me"); break; } catch (error) {
      if (error.status !== 401) throw error;
      byId("token-wrong").hidden = !byId("token").value;
      await ask("token-dialog");
      api.setToken(byId("token").value.trim());
    }
  }
  byId("threshold").value = state.me.iou_threshold; // where the model keeps masks by default
  await loadProjects(project);
  await loadFolder();
  showFormats();
  showHistory();
  showObjects();
  byId("upload").disabled = false;
  const one = state.media.find((other) => other.id === media);
  if (one) await openMedia(one, Number(frame) || 0);
  else { remember(); say(state.media.length ? "Open an image or a video from the list." : "Upload an image or a video to begin."); }
}
start().catch(fail);
