// What the pages share that show detections on a picture: choose, drop or take a picture, the
// threshold, the classes, the list, and the drawing. A page adds `detect(source, width, height,
// name, own, note, file)`, which ends in `present`, and may add `onShow`.
//
// shown: { name, width, height, picture, panels }; a panel: { title, found, faint }, of which
// found: { box, score, label, text, color, runs | columns } by descending score, x1 y1 x2 y2 in
// pixels, and faint: boxes { box, color } that are drawn thin.
"use strict";

const MAX_PIXELS = 16e6; // of a canvas on a phone
const FINE = 1000; // pixels of the canvas along the longer side of a small picture
const element = (id) => document.getElementById(id);
const layer = document.createElement("canvas");
const video = document.createElement("video");
const hiddenClasses = new Set();
let shown = null, selected = null, stream = null, turn = 0, onShow = () => {};

function say(text, fault = false) {
  element("status").textContent = text;
  element("status").classList.toggle("fault", fault);
}

// A new element with attributes and children; a text becomes a text node.
function make(kind, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(kind), attributes);
  made.append(...children);
  return made;
}

// A detection in words; a plain one is of the ground truth and has no score.
const words = ({ text, score, plain, note }) =>
  [text, ...(plain ? [] : [score.toFixed(2)]), ...(note ? [note] : [])].join(" ");

const thresholdNow = () => Number(element("threshold").value);

function setThreshold(least, value) {
  const slider = element("threshold");
  slider.min = Math.ceil(100 * least) / 100;
  slider.value = Math.max(value, slider.min);
  element("value").textContent = thresholdNow().toFixed(2);
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
  document.addEventListener("keydown", ({ key }) => key === "Escape" && select(null));
  new ResizeObserver(() => shown && draw()).observe(element("frames"));
  view.classList.add("empty");
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
  if (own === turn) await detect(bitmap, width, height, file.name, own, note, factor < 1 ? null : file);
  bitmap.close();
}

// The pixels of `source` on a canvas of their own.
function held(source, width, height) {
  const canvas = make("canvas", { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, alpha: false });
  context.drawImage(source, 0, 0, width, height);
  return canvas;
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

function present(next) {
  shown = next;
  selected = null;
  show();
}

// The detections of a panel that the threshold and the switches leave.
const chosen = (panel) =>
  panel.found.filter(({ score, text }) => score >= thresholdNow() && !hiddenClasses.has(text));

// All that depends on the detections, the threshold, the classes and the selection.
function show() {
  element("value").textContent = thresholdNow().toFixed(2);
  if (!shown) return;
  const counts = shown.panels.map((panel) => chosen(panel).length);
  const objects = counts.map((count) => (count === 1 ? "1 object" : `${count} objects`));
  const titles = shown.panels.map(({ title }, i) => (title ? `${title}: ${objects[i]}` : objects[i]));
  if (selected && !shown.panels.some((panel) => chosen(panel).includes(selected))) selected = null;
  listClasses();
  listObjects();
  say(`${titles.join(", ")} in ${shown.name}.`);
  showFrames(titles);
  draw();
  onShow();
}

function select(found) {
  selected = found === selected ? null : found;
  if (shown) show();
}

// A row for each object, of all panels; a click selects it.
function listObjects() {
  const rows = [], several = shown.panels.length > 1;
  for (const panel of shown.panels) {
    const objects = chosen(panel);
    if (several && objects.length) rows.push(make("li", { className: "title" }, panel.title));
    for (const found of objects) {
      const name = make("span", { className: "name" }, found.note ? `${found.text} ${found.note}` : found.text);
      const score = make("span", { className: "score" }, found.plain ? "" : found.score.toFixed(2));
      const button = make("button", { type: "button", onclick: () => select(found) }, name, score);
      button.setAttribute("aria-pressed", found === selected);
      const row = make("li", {}, button);
      row.style.setProperty("--color", found.color);
      rows.push(row);
    }
  }
  element("list").hidden = !rows.length;
  const focused = [...element("list").children].indexOf(document.activeElement.closest("#list li"));
  element("list").replaceChildren(...rows);
  if (focused >= 0) rows[focused]?.querySelector("button")?.focus({ preventScroll: true });
}

// A switch for each class that was found at any score of the slider.
function listClasses() {
  const counts = new Map();
  for (const { score, text } of shown.panels.flatMap(({ found }) => found)) {
    if (score >= thresholdNow()) counts.set(text, (counts.get(text) || 0) + 1);
  }
  const names = [...new Set([...counts.keys(), ...hiddenClasses])].sort();
  const focused = document.activeElement?.dataset?.label;
  element("classes").hidden = !names.length;
  element("classes").replaceChildren(
    element("classes").firstElementChild,
    ...names.map((name) => {
      const box = make("input", { type: "checkbox", checked: !hiddenClasses.has(name) });
      box.dataset.label = name;
      box.onchange = () => {
        if (box.checked) hiddenClasses.delete(name);
        else hiddenClasses.add(name);
        show();
      };
      return make("label", {}, box, `${name} (${counts.get(name) || 0})`);
    })
  );
  if (focused) element("classes").querySelector(`[data-label="${CSS.escape(focused)}"]`)?.focus();
}

// A canvas for each panel, with its title below if there are several.
function showFrames(titles) {
  const frames = element("frames");
  element("view").classList.remove("empty");
  while (frames.children.length > titles.length) frames.lastElementChild.remove();
  while (frames.children.length < titles.length) {
    frames.append(make("figure", {}, make("canvas"), make("figcaption")));
  }
  frames.classList.toggle("several", titles.length > 1);
  [...frames.children].forEach((frame, i) => {
    const [canvas, caption] = frame.children;
    caption.textContent = titles.length > 1 ? titles[i] : "";
    caption.hidden = titles.length === 1;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${shown.name} with ${titles[i]} marked`);
    canvas.onclick = (event) => {
      const [x, y] = [event.offsetX / canvas.clientWidth, event.offsetY / canvas.clientHeight];
      select(objectAt(chosen(shown.panels[i]), x * shown.width, y * shown.height));
    };
  });
}

const draw = () =>
  [...element("frames").children].forEach((frame, i) => drawPanel(frame.firstElementChild, shown.panels[i]));

function drawPanel(canvas, panel) {
  const { width, height } = shown, rows = chosen(panel);
  const factor = Math.max(1, Math.ceil(FINE / Math.max(width, height)));
  if (canvas.width !== width * factor || canvas.height !== height * factor) {
    canvas.width = width * factor;
    canvas.height = height * factor;
  }
  const context = canvas.getContext("2d");
  const unit = canvas.width / (canvas.clientWidth || canvas.width); // pixels of a CSS pixel
  const one = rows.includes(selected) ? selected : null;
  context.drawImage(shown.picture, 0, 0, canvas.width, canvas.height);
  drawMasks(context, one ? rows.filter((row) => row !== one) : rows, one ? 0.15 : 0.45);
  if (one) drawMasks(context, [one], 0.6);
  for (const { box, color } of panel.faint || []) drawBox(context, box, color, factor, unit);
  for (const { box, color } of one ? [one] : [...rows].reverse()) {
    drawBox(context, box, color, factor, 2 * unit);
  }
  drawLabels(context, one ? [one] : rows, factor, unit);
}

function drawBox(context, box, color, factor, thick) {
  const [x, y, right, bottom] = box.map((value) => value * factor);
  context.strokeStyle = color;
  context.lineWidth = thick;
  context.strokeRect(x, y, right - x, bottom - y);
}

// On a layer of the picture's own pixels, the best mask on top, then over the picture.
function drawMasks(context, rows, opacity) {
  layer.width = shown.width;
  layer.height = shown.height;
  const masks = layer.getContext("2d");
  for (const row of [...rows].reverse()) {
    masks.fillStyle = row.color;
    fillMask(masks, row);
  }
  context.globalAlpha = opacity;
  context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
  context.globalAlpha = 1;
}

// runs: y, first x, number of pixels along a row; columns: x, first y, number along a column.
function fillMask(context, { runs = [], columns = [] }) {
  for (let i = 0; i < runs.length; i += 3) context.fillRect(runs[i + 1], runs[i], runs[i + 2], 1);
  for (let i = 0; i < columns.length; i += 3) {
    context.fillRect(columns[i], columns[i + 1], 1, columns[i + 2]);
  }
}

// Each label at the first free corner of its box; one that has none is in the list alone.
function drawLabels(context, rows, factor, unit) {
  const { width, height } = context.canvas, tall = 18 * unit, placed = [];
  context.font = `600 ${13 * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  for (const detection of rows) {
    const text = words(detection);
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
