// What a person sees and touches. The model runs in a worker; each picture ends in an event
// "detections" of the document, whose detail is what was found.
"use strict";

const MAX_PIXELS = 16e6; // of a canvas on a phone
const FINE = 1000; // pixels of the canvas along the longer side of a small picture
const element = (id) => document.getElementById(id);
const picture = document.createElement("canvas");
const layer = document.createElement("canvas");
const video = document.createElement("video");
const hiddenClasses = new Set();
let data, worker, shown = null, stream = null, turn = 0;
const waiting = new Map();

function say(text, fault = false) {
  element("status").textContent = text;
  element("status").classList.toggle("fault", fault);
}

// The content of a script element: base64 of gzip. The text is dropped, since it is large.
async function unpack(id) {
  try {
    const text = atob(element(id).textContent), bytes = new Uint8Array(text.length);
    element(id).remove();
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const unzipped = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(unzipped).arrayBuffer());
  } catch {
    throw new Error("The page is incomplete: export or download it again.");
  }
}

const address = (content) => URL.createObjectURL(new Blob([content], { type: "text/javascript" }));

function ask(question, moved = []) {
  return new Promise((resolve, reject) => {
    const id = waiting.size ? Math.max(...waiting.keys()) + 1 : 1;
    waiting.set(id, { resolve, reject });
    worker.postMessage({ id, ...question }, moved);
  });
}

async function start() {
  data = JSON.parse(element("data").textContent);
  const slider = element("threshold"), { score_threshold } = data.models[0].about;
  slider.min = Math.ceil(100 * score_threshold) / 100;
  slider.value = Math.max(0.5, slider.min);
  element("value").textContent = Number(slider.value).toFixed(2);
  element("view").classList.add("empty");
  listen();
  for (const name of ["DecompressionStream", "WebAssembly", "Worker", "createImageBitmap"]) {
    if (!(name in window)) throw new Error(`This browser is too old for this page: it lacks ${name}.`);
  }
  say("Loading the model.");
  worker = new Worker(address(element("code").textContent));
  worker.onmessage = ({ data: { id, answer, error } }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(answer);
    else reject(new Error(error));
  };
  worker.onerror = () => say("The model cannot be loaded: this browser runs no worker here.", true);
  const library = await unpack("library"), wasm = await unpack("wasm"), files = [];
  for (const { name, about } of data.models) files.push({ about, bytes: await unpack(name) });
  const moved = [wasm.buffer, ...files.map(({ bytes }) => bytes.buffer)];
  await ask({ start: { library, wasm: wasm.buffer, files, count: data.colors.length } }, moved);
  for (const id of ["choose", "camera"]) element(id).disabled = false;
  say("Ready.");
}

function listen() {
  const view = element("view"), input = element("file");
  element("choose").onclick = () => input.click();
  element("camera").onclick = () => (stream ? stopCamera() : startCamera());
  element("threshold").oninput = show;
  input.onchange = () => {
    if (input.files.length) openFile(input.files[0]);
    input.value = "";
  };
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      view.classList.toggle("over", name === "dragover");
    });
  }
  document.addEventListener("drop", ({ dataTransfer: { files } }) => {
    if (element("choose").disabled) say("The model is not loaded yet.", true);
    else if (files.length) openFile(files[0]);
    else say("This is not a file: drop a picture file.", true);
  });
  new ResizeObserver(() => shown && draw()).observe(element("canvas"));
}

async function openFile(file) {
  stopCamera();
  const own = ++turn;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none" });
  } catch {
    say(`${file.name} is not a picture that this browser can read: give a PNG, JPEG or WebP file.`, true);
    return;
  }
  const factor = Math.min(1, Math.sqrt(MAX_PIXELS / (bitmap.width * bitmap.height)));
  const width = Math.max(Math.floor(bitmap.width * factor), 1);
  const height = Math.max(Math.floor(bitmap.height * factor), 1);
  const note = factor < 1 ? ` It was ${bitmap.width} x ${bitmap.height} and is reduced.` : "";
  if (own === turn) await detect(bitmap, width, height, file.name, own, note);
  bitmap.close();
}

async function detect(source, width, height, name, own, note = "") {
  picture.width = width;
  picture.height = height;
  const context = picture.getContext("2d", { willReadFrequently: true, alpha: false });
  context.drawImage(source, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const copy = stream ? await createImageBitmap(picture) : picture;
  if (!stream) say(`Looking at ${name}.`);
  try {
    const answer = await ask({ detect: { rgba, height, width } }, [rgba.buffer]);
    if (own !== turn) return;
    shown = { ...answer, name, width, height, picture: copy };
    const { resize, model, masks } = answer.milliseconds;
    const [all, ...parts] = [resize + model + masks, resize, model, masks].map(Math.round);
    element("time").textContent =
      `${width} x ${height} pixels in ${all} ms: resize ${parts[0]}, model ${parts[1]}, masks ${parts[2]}.${note}`;
    show();
    document.dispatchEvent(new CustomEvent("detections", { detail: { name, ...answer } }));
  } catch (error) {
    if (own !== turn) return;
    stopCamera();
    say(error.message, true);
  }
}

async function startCamera() {
  const own = ++turn, refusals = {
    NotAllowedError: "The camera was not allowed: allow it for this page, or choose a picture.",
    NotFoundError: "There is no camera: choose a picture.",
  };
  try {
    if (!navigator.mediaDevices) throw new Error();
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say(refusals[error.name] || "This browser gives the page no camera: choose a picture.", true);
    return;
  }
  element("camera").textContent = "Stop camera";
  video.srcObject = stream;
  video.muted = video.playsInline = true;
  await video.play();
  while (stream && own === turn) {
    await detect(video, video.videoWidth, video.videoHeight, "the camera", own);
    await new Promise(requestAnimationFrame);
  }
}

function stopCamera() {
  if (!stream) return;
  stream.getTracks().forEach((track) => track.stop());
  stream = null;
  turn++;
  element("camera").textContent = "Use camera";
}

const nameOf = ({ label }) => data.models[0].about.classes[label - 1][1];
const chosen = () =>
  shown.found
    .map((detection, i) => ({ ...detection, color: data.colors[shown.colors[i]] }))
    .filter(({ score, label }) => score >= element("threshold").value && !hiddenClasses.has(label));

// All that depends on the detections, the threshold and the classes.
function show() {
  element("value").textContent = Number(element("threshold").value).toFixed(2);
  if (!shown) return;
  const rows = chosen(), count = rows.length;
  listClasses();
  element("list").hidden = !count;
  element("list").replaceChildren(
    ...rows.map((detection) => {
      const row = document.createElement("li");
      row.style.setProperty("--color", detection.color);
      for (const [kind, text] of [["name", nameOf(detection)], ["score", detection.score.toFixed(2)]]) {
        const part = document.createElement("span");
        part.className = kind;
        part.textContent = text;
        row.append(part);
      }
      return row;
    })
  );
  const objects = count === 1 ? "1 object" : `${count} objects`;
  say(`${objects} in ${shown.name}.`);
  element("canvas").setAttribute("aria-label", `${shown.name} with ${objects} marked`);
  draw();
}

// A switch for each class that was found at any score of the slider.
function listClasses() {
  const counts = new Map();
  for (const found of shown.found) {
    if (found.score >= element("threshold").value) {
      counts.set(found.label, (counts.get(found.label) || 0) + 1);
    }
  }
  const labels = [...new Set([...counts.keys(), ...hiddenClasses])].sort((a, b) => a - b);
  const focused = document.activeElement?.dataset?.label;
  element("classes").hidden = !labels.length;
  element("classes").replaceChildren(
    element("classes").firstElementChild,
    ...labels.map((label) => {
      const row = document.createElement("label"), box = document.createElement("input");
      box.type = "checkbox";
      box.checked = !hiddenClasses.has(label);
      box.dataset.label = label;
      box.onchange = () => {
        if (box.checked) hiddenClasses.delete(label);
        else hiddenClasses.add(label);
        show();
      };
      row.append(box, `${nameOf({ label })} (${counts.get(label) || 0})`);
      return row;
    })
  );
  if (focused) element("classes").querySelector(`[data-label="${focused}"]`)?.focus();
}

function draw() {
  const canvas = element("canvas"), { width, height } = shown;
  const factor = Math.max(1, Math.ceil(FINE / Math.max(width, height)));
  element("view").classList.remove("empty");
  if (canvas.width !== width * factor || canvas.height !== height * factor) {
    canvas.width = width * factor;
    canvas.height = height * factor;
  }
  const context = canvas.getContext("2d"), rows = chosen();
  const unit = canvas.width / (canvas.clientWidth || canvas.width); // pixels of a CSS pixel
  context.drawImage(shown.picture, 0, 0, canvas.width, canvas.height);
  drawMasks(context, rows);
  for (const { box, color } of [...rows].reverse()) {
    const [x, y, right, bottom] = box.map((value) => value * factor);
    context.strokeStyle = color;
    context.lineWidth = 2 * unit;
    context.strokeRect(x, y, right - x, bottom - y);
  }
  drawLabels(context, rows, factor, unit);
}

// On a layer of the picture's own pixels, the best mask on top, then over the picture.
function drawMasks(context, rows) {
  layer.width = shown.width;
  layer.height = shown.height;
  const masks = layer.getContext("2d");
  for (const { runs, color } of [...rows].reverse()) {
    masks.fillStyle = color;
    for (let i = 0; i < runs.length; i += 3) masks.fillRect(runs[i + 1], runs[i], runs[i + 2], 1);
  }
  context.globalAlpha = 0.45;
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
  context.globalAlpha = 1;
}

// Each label at the first free corner of its box; one that has none is in the list alone.
function drawLabels(context, rows, factor, unit) {
  const { width, height } = context.canvas, tall = 18 * unit, placed = [];
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const detection of rows) {
    const text = `${nameOf(detection)} ${detection.score.toFixed(2)}`;
    const [x, y, right, bottom] = detection.box.map((value) => value * factor);
    const wide = context.measureText(text).width + 8 * unit;
    const lefts = [x - unit, right + unit - wide], tops = [y - tall, y, bottom, bottom - tall];
    const spots = tops.flatMap((top) => lefts.map((left) => [Math.max(left, 0), top]));
    const spot = spots.find(
      ([left, top]) =>
        left + wide <= width && top >= 0 && top + tall <= height &&
        placed.every(([a, b, w]) => left >= a + w || left + wide <= a || Math.abs(top - b) >= tall)
    );
    if (!spot) continue;
    placed.push([...spot, wide]);
    context.fillStyle = detection.color;
    context.fillRect(spot[0], spot[1], wide, tall);
    context.fillStyle = "#101418";
    context.fillText(text, spot[0] + 4 * unit, spot[1] + tall / 2);
  }
}

addEventListener("DOMContentLoaded", () => start().catch((error) => say(error.message, true)));
