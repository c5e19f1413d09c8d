// The images of a run: which come, in which order, and what the model computed for the one that is
// shown. Each image ends in an event "image" of the document.
"use strict";

const LEVELS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"]; // of p2..p6
let images = [], order = [], current = -1, inside = null, asked = 0;

function startRun() {
  const { classes, sizes, kinds } = data.run;
  classes.forEach((name, i) => element("of_class").append(make("option", { value: i }, name)));
  sizes.forEach((name, i) => element("of_size").append(make("option", { value: i }, name)));
  kinds.forEach((name) => element("of_kind").append(make("option", { value: name }, name)));
  for (const id of ["sort", "of_class", "of_size", "of_kind"]) element(id).onchange = () => arrange(0);
  for (const id of ["proposals", "anchors"]) element(id).onchange = lookInside;
  element("before").onclick = () => step(-1);
  element("after").onclick = () => step(1);
  element("finder").onsubmit = (event) => event.preventDefault();
  element("threshold").onchange = listImages;
  document.addEventListener("keydown", ({ key, target }) => {
    const typing = ["INPUT", "SELECT"].includes(target.tagName) && target.type !== "checkbox";
    if (!typing && key === "ArrowLeft") step(-1);
    if (!typing && key === "ArrowRight") step(1);
  });
  listImages();
}

// The rows of all images, whose errors depend on the threshold.
async function listImages() {
  try {
    ({ images } = await json(`run/images?threshold=${thresholdNow()}`));
    await arrange(Math.max(order.indexOf(current), 0));
  } catch (error) {
    say(error.message, true);
  }
}

// The objects and detections of an image that the choices ask for.
function wanted({ rows }) {
  const [ofClass, ofSize, kind] = ["of_class", "of_size", "of_kind"].map((id) => element(id).value);
  return rows.filter(
    (row) =>
      (ofClass === "" || row.class === Number(ofClass)) &&
      (ofSize === "" || row.size === Number(ofSize)) &&
      (kind === "" || (kind === "any" ? row.kinds.length : row.kinds.includes(kind)))
  );
}

// The images with such objects, sorted, and the one at this position of them.
async function arrange(position) {
  const all = ["of_class", "of_size", "of_kind"].every((id) => element(id).value === "");
  const best = (i) => Math.max(...wanted(images[i]).map(({ score }) => score ?? -1), -1);
  const values = {
    loss: (i) => images[i].loss ?? Infinity, // unreadable ones first
    score: best,
    name: (i) => -i,
  }[element("sort").value];
  order = images.map((_, i) => i).filter((i) => all || wanted(images[i]).length);
  const by = new Map(order.map((i) => [i, values(i)]));
  order.sort((a, b) => (by.get(a) === by.get(b) ? a - b : by.get(b) > by.get(a) ? 1 : -1));
  await openAt(Math.min(position, order.length - 1));
}

function step(by) {
  const position = order.indexOf(current) + by;
  if (position >= 0 && position < order.length) openAt(position);
}

async function openAt(position) {
  element("position").textContent = `${position + 1} of ${order.length}`;
  element("before").disabled = position <= 0;
  element("after").disabled = position >= order.length - 1;
  if (position < 0) {
    current = -1;
    shown = null;
    element("view").classList.add("empty");
    element("invitation").textContent = "No image has such an object: choose others.";
    for (const id of ["list", "card", "json", "classes"]) element(id).hidden = true;
    say("No image has such an object.");
    return;
  }
  stopCamera();
  current = order[position];
  const own = ++turn, i = current, name = images[i].name;
  try {
    const [content, picture] = await Promise.all([
      json(`run/images/${i}?threshold=${thresholdNow()}`),
      pictureOf(i),
    ]);
    if (own !== turn) return;
    showImage(i, name, content, picture);
    await lookInside();
    document.dispatchEvent(new CustomEvent("image", { detail: { position: i, name } }));
  } catch (error) {
    if (own === turn) say(`${name}: ${error.message}`, true);
  }
}

async function pictureOf(i) {
  const answer = await fetch(`run/images/${i}/picture`);
  if (!answer.ok) throw new Error((await answer.json()).error);
  const bitmap = await createImageBitmap(await answer.blob(), { colorSpaceConversion: "none" });
  return held(bitmap, bitmap.width, bitmap.height);
}

function showImage(i, name, { losses, truth, prediction }, picture) {
  const panels = [truth, prediction].map((answer) => {
    const found = detectionsOf(answer).map((one) => {
      const { kinds, iou, iscrowd } = one.annotation;
      const note = [...(iscrowd ? ["crowd"] : []), ...kinds].join(", ");
      const notes = [...(kinds.length ? [kinds.join(", ")] : [])];
      if (!one.plain) notes.push(`IoU ${iou.toFixed(2)} with the nearest object`);
      return { ...one, note, notes };
    });
    return { title: answer.info.model, found };
  });
  answers.clear();
  answers.set(panels[1], prediction);
  inside = null;
  const parts = Object.entries(losses || {}).map(([part, loss]) => `${part.replaceAll("_", " ")} ${loss.toFixed(3)}`);
  element("time").textContent = losses
    ? `Loss ${Object.values(losses).reduce((a, b) => a + b, 0).toFixed(3)}: ${parts.join(", ")}.`
    : "";
  present({ name, width: picture.width, height: picture.height, picture, panels, image: i });
}

// What is asked for of the model's inside, once for each image.
async function loadInside() {
  const i = shown?.image;
  if (i === undefined) return null;
  if (inside?.image !== i) inside = { image: i, ...(await json(`run/images/${i}/inside`)) };
  return shown?.image === i ? inside : null;
}

async function lookInside() {
  const [proposals, anchors] = ["proposals", "anchors"].map((id) => element(id).checked);
  if (shown?.image === undefined) return;
  try {
    if ((proposals || anchors) && !(await loadInside())) return;
    drawInside(proposals, anchors);
  } catch (error) {
    say(error.message, true);
  }
}

// Proposals on the prediction, anchors on the ground truth: those of the selected object, or all.
function drawInside(proposals, anchors) {
  const own = selected?.plain ? selected.annotation.id : null, counts = new Map();
  const faint = (rows) =>
    rows.map(({ box, level }) => {
      counts.set(level, (counts.get(level) || 0) + 1);
      return { box, color: LEVELS[(level - 2 + LEVELS.length) % LEVELS.length] };
    });
  const matched = anchors ? inside.anchors.filter(({ annotation }) => own === null || annotation === own) : [];
  shown.panels[0].faint = faint(matched);
  shown.panels[1].faint = faint(proposals ? inside.proposals : []);
  element("levels").hidden = !counts.size;
  element("levels").replaceChildren(
    ...[...counts.keys()].sort().map((level) => {
      const row = make("li", {}, `p${level}: ${counts.get(level)}`);
      row.style.setProperty("--color", LEVELS[(level - 2 + LEVELS.length) % LEVELS.length]);
      return row;
    })
  );
  draw();
}

// Of the selected detection the level that RoIAlign reads, and the mask head's own output.
async function showMask() {
  const one = selected, own = ++asked, i = shown.image;
  element("raw").hidden = true;
  if (element("anchors").checked && inside) drawInside(element("proposals").checked, true);
  if (i === undefined || !one || one.plain) return;
  const { slot } = one.annotation;
  try {
    const levels = (await loadInside())?.levels;
    if (own !== asked || !levels) return;
    element("about_object").append(make("br"), `RoIAlign reads p${levels[slot]}`);
    if (!data.run.masks) return;
    const { mask } = await json(`run/images/${i}/masks/${slot}`);
    if (own === asked) drawMask(mask);
  } catch (error) {
    say(error.message, true);
  }
}

function drawMask(mask) {
  const canvas = element("raw_mask"), side = mask.length;
  canvas.width = canvas.height = side;
  const context = canvas.getContext("2d"), pixels = context.createImageData(side, side);
  mask.flat().forEach((value, n) => {
    pixels.data.fill(Math.round(255 * value), 4 * n, 4 * n + 3);
    pixels.data[4 * n + 3] = 255;
  });
  context.putImageData(pixels, 0, 0);
  element("about_mask").textContent = `${side} x ${side} probabilities of the mask head, black 0, white 1. Stretched over the box and cut at 0.5 they are the mask.`;
  element("raw").hidden = false;
}
