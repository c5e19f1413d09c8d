// The model, in a thread of its own: the page stays alive while it computes. It comes after
// web_detect.js. A session is opened when the first picture of its size comes.
let runtime = null;
let models = [];
let colors = 1; // how many there are

async function start({ library, wasm, files, count }) {
  const own = URL.createObjectURL(new Blob([library], { type: "text/javascript" }));
  runtime = await import(own);
  runtime.env.wasm.wasmBinary = wasm;
  runtime.env.wasm.numThreads = 1; // more need headers of a server
  runtime.env.logLevel = "error";
  models = files;
  colors = count;
  await session(models[0]);
}

async function session(model) {
  if (!model.session) {
    model.session = await runtime.InferenceSession.create(model.bytes, {
      executionProviders: ["wasm"],
      logSeverityLevel: 3,
    });
    model.bytes = null;
  }
  return model.session;
}

async function detect({ rgba, height, width }) {
  const began = performance.now(), rule = models[0].about.image_size;
  const size = fittedSize(height, width, rule);
  const model = models[smallestSize(models.map(({ about }) => about.size), ...size)];
  if (!model) {
    const known = models.map(({ about }) => about.size.join(" x ")).join(", ");
    throw new Error(
      `The picture is ${size.join(" x ")} pixels (height x width) after the resize, and this page ` +
        `takes up to ${known}: export again with a larger size.`
    );
  }
  const { about } = model, opened = await session(model);
  const input = modelInput(rgba, height, width, size, about.size);
  const resized = performance.now();
  const outputs = await opened.run({
    images: new runtime.Tensor("uint8", input, [1, 3, ...about.size]),
    image_sizes: new runtime.Tensor("int64", BigInt64Array.from(size, BigInt), [1, 2]),
  });
  const computed = performance.now();
  const values = Object.fromEntries(Object.entries(outputs).map(([name, { data }]) => [name, data]));
  const found = detections(values, about, size, height, width);
  const milliseconds = {
    resize: resized - began,
    model: computed - resized,
    masks: performance.now() - computed,
  };
  const near = 0.04 * Math.max(height, width);
  return { found, colors: chooseColors(found, colors, near), milliseconds };
}

onmessage = async ({ data }) => {
  try {
    const answer = data.start ? await start(data.start) : await detect(data.detect);
    postMessage({ id: data.id, answer });
  } catch (error) {
    postMessage({ id: data.id, error: String(error.message || error) });
  }
};
