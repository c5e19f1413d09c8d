// The page of an exported model. The model runs in a worker; each picture ends in an event
// "detections" of the document, whose detail is what was found.
"use strict";

let data, worker;
const waiting = new Map();

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
  setThreshold(data.models[0].about.score_threshold, 0.5);
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

async function detect(source, width, height, name, own, note = "") {
  const picture = held(source, width, height);
  const rgba = picture.getContext("2d").getImageData(0, 0, width, height).data;
  if (!stream) say(`Looking at ${name}.`);
  try {
    const answer = await ask({ detect: { rgba, height, width } }, [rgba.buffer]);
    if (own !== turn) return;
    const { resize, model, masks } = answer.milliseconds;
    const [all, ...parts] = [resize + model + masks, resize, model, masks].map(Math.round);
    element("time").textContent =
      `${width} x ${height} pixels in ${all} ms: resize ${parts[0]}, model ${parts[1]}, masks ${parts[2]}.${note}`;
    const classes = data.models[0].about.classes;
    const found = answer.found.map((one, i) => ({
      ...one,
      text: classes[one.label - 1][1],
      color: data.colors[answer.colors[i]],
    }));
    present({ name, width, height, picture, panels: [{ title: "", found }] });
    document.dispatchEvent(new CustomEvent("detections", { detail: { name, ...answer } }));
  } catch (error) {
    if (own !== turn) return;
    stopCamera();
    say(error.message, true);
  }
}

addEventListener("DOMContentLoaded", () => start().catch((error) => say(error.message, true)));
