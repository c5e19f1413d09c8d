// The page of a server: it sends each picture to /predict, once for each model that is switched on.
// Each picture ends in an event "detections" of the document.
"use strict";

const data = JSON.parse(element("data").textContent);
const answers = new Map(); // of the shown panels: panel -> COCO json

function start() {
  setThreshold(data.lowest, data.threshold);
  listen();
  element("models").hidden = data.models.length < 2;
  data.models.forEach(({ name }, i) => {
    const box = make("input", { type: "checkbox", checked: i < 4, onchange: again });
    box.dataset.model = name;
    element("models").append(make("label", {}, box, name));
  });
  element("cutout").onclick = saveCutout;
  element("json").onclick = saveJson;
  onShow = showCard;
  if (data.run) startRun();
  for (const id of ["choose", "camera"]) element(id).disabled = false;
  if (!data.run) say("Ready.");
}

const modelsOn = () => [...element("models").querySelectorAll(":checked")].map((box) => box.dataset.model);

// The same picture, with the models that are on now.
function again() {
  if (shown?.repeat) shown.repeat(++turn);
}

async function detect(source, width, height, name, own, note = "", file = null) {
  const picture = held(source, width, height);
  const jpeg = () => new Promise((resolve) => picture.toBlob(resolve, "image/jpeg", 0.95));
  await ask(picture, file || (await jpeg()), name, own, note);
}

async function ask(picture, body, name, own, note) {
  const { width, height } = picture, began = performance.now();
  if (!stream) say(`Looking at ${name}.`);
  try {
    const found = await Promise.all(modelsOn().map((model) => fetchDetections(model, body, name)));
    if (own !== turn) return;
    answers.clear();
    const panels = found.map((answer) => {
      const { width: w, height: h } = answer.images[0];
      if (w !== width || h !== height) {
        throw new Error(`${name} has ${w} x ${h} pixels on the server and ${width} x ${height} here: save it as PNG.`);
      }
      const panel = { title: found.length > 1 ? answer.info.model : "", found: detectionsOf(answer) };
      answers.set(panel, answer);
      return panel;
    });
    element("time").textContent =
      `${width} x ${height} pixels in ${Math.round(performance.now() - began)} ms.${note}`;
    present({ name, width, height, picture, panels, repeat: (next) => ask(picture, body, name, next, note) });
    document.dispatchEvent(new CustomEvent("detections", { detail: { name, answers: found } }));
  } catch (error) {
    if (own !== turn) return;
    stopCamera();
    say(error.message, true);
  }
}

async function fetchDetections(model, body, name) {
  const query = new URLSearchParams({ model, score_threshold: data.lowest, file_name: name });
  const headers = { "Content-Type": "application/octet-stream" };
  return await json(`predict?${query}`, { method: "POST", body, headers });
}

// The answer of the server as an object; what it refuses is an Error with its sentence.
async function json(address, options) {
  let answer, content;
  try {
    answer = await fetch(address, options);
    content = await answer.json();
  } catch {
    throw new Error("The server does not answer: start it again, and reload this page.");
  }
  if (!answer.ok) throw new Error(content.error);
  return content;
}

// COCO json -> what a panel shows, the best score first.
function detectionsOf({ annotations, categories, images: [{ width, height }] }) {
  const found = annotations.map((annotation) => {
    const { bbox: [x, y, w, h], category_id, score, segmentation } = annotation;
    const label = 1 + categories.findIndex(({ id }) => id === category_id);
    const columns = segmentation ? rleColumns(segmentation) : [];
    const text = categories[label - 1].name;
    const own = score === undefined ? { score: 1, plain: true } : { score };
    return { box: [x, y, x + w, y + h], label, text, columns, annotation, ...own };
  });
  const colors = chooseColors(found, data.colors.length, 0.04 * Math.max(width, height));
  return found.map((one, i) => Object.assign(one, { color: data.colors[colors[i]] }));
}

function showCard() {
  element("card").hidden = !selected;
  element("json").hidden = !answers.size;
  if (!selected) return;
  const { text, score, box, annotation, plain, notes = [] } = selected;
  const [width, height] = [box[2] - box[0], box[3] - box[1]].map(Math.round);
  const facts = [
    plain ? `${text}, annotation ${annotation.id}` : `${text} ${score.toFixed(3)}`,
    `${width} x ${height} pixels, ${Math.round(annotation.area)} of them in the object`,
    ...notes,
  ];
  element("about_object").replaceChildren(...facts.flatMap((fact, i) => (i ? [make("br"), fact] : [fact])));
  if (data.run) showMask();
}

const stem = () => shown.name.replace(/\.[^.]*$/, "").replace(/[^\w.-]+/g, "_") || "picture";

function save(blob, name) {
  const link = make("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  document.dispatchEvent(new CustomEvent("saved", { detail: { blob, name } }));
}

// The pixels of the selected object on a transparent ground, as large as its box.
function saveCutout() {
  const one = selected, box = one.box;
  const [x, y] = [Math.floor(box[0]), Math.floor(box[1])];
  const width = Math.max(Math.ceil(box[2]) - x, 1), height = Math.max(Math.ceil(box[3]) - y, 1);
  const canvas = make("canvas", { width, height }), context = canvas.getContext("2d");
  context.translate(-x, -y);
  if (one.columns.length) fillMask(context, one);
  else context.fillRect(x, y, width, height);
  context.globalCompositeOperation = "source-in";
  context.drawImage(shown.picture, 0, 0);
  canvas.toBlob((blob) => save(blob, `${stem()}_${one.text.replace(/[^\w.-]+/g, "_")}.png`), "image/png");
}

// What is shown of each panel, one file a model.
function saveJson() {
  for (const panel of shown.panels) {
    const answer = answers.get(panel);
    if (!answer) continue;
    const annotations = chosen(panel).map(({ annotation }) => annotation);
    const text = JSON.stringify({ ...answer, annotations });
    const title = panel.title ? `_${panel.title.replace(/[^\w.-]+/g, "_")}` : "";
    save(new Blob([text], { type: "application/json" }), `${stem()}${title}.json`);
  }
}

addEventListener("DOMContentLoaded", start);
