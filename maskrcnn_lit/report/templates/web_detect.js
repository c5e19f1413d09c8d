// What the page computes around the model, as the Python package does it: the resize of torch
// (data/transforms.py: 8 bits, bilinear, antialiased), boxes in pixels of the picture
// (model/postprocess.py), masks stretched over their boxes and cut at 0.5 (model/paste_masks.py).
// Plain functions of numbers and typed arrays: tests run them without a browser.
"use strict";

const f32 = Math.fround;

function roundHalfToEven(value) {
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
}

// Height, width after the resize. rule: one side in pixels, or [short, long].
function fittedSize(height, width, rule) {
  const most = Math.max(height, width), least = Math.min(height, width);
  const factor = typeof rule === "number" ? rule / most : Math.min(rule[0] / least, rule[1] / most);
  return [height, width].map((side) => Math.max(roundHalfToEven(side * factor), 1));
}

// The index of the smallest of sizes ([height, width] each) that holds one of height x width, or -1.
function smallestSize(sizes, height, width) {
  let best = -1;
  sizes.forEach(([h, w], i) => {
    const holds = h >= height && w >= width;
    if (holds && (best < 0 || h * w < sizes[best][0] * sizes[best][1])) best = i;
  });
  return best;
}

// For each pixel of a resized line the first pixel of the line that counts, and the weights of it
// and those after it, in units of 2 ** -bits. torch has them as 16-bit numbers.
function resizeWeights(before, after) {
  const scale = before / after, support = Math.max(scale, 1), most = Math.ceil(support) * 2 + 1;
  const firsts = new Int32Array(after), weights = new Float64Array(after * most);
  let largest = 0;
  for (let i = 0; i < after; i++) {
    const center = scale * (i + 0.5);
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const count = Math.min(Math.min(Math.trunc(center + support + 0.5), before) - first, most);
    let total = 0;
    for (let j = 0; j < count; j++) {
      const far = Math.abs((j + first - center + 0.5) / support);
      weights[i * most + j] = Math.max(1 - far, 0);
      total += weights[i * most + j];
    }
    for (let j = 0; j < count; j++) {
      weights[i * most + j] /= total;
      largest = Math.max(largest, weights[i * most + j]);
    }
    firsts[i] = first;
  }
  let bits = 0;
  while (bits < 22 && Math.trunc(0.5 + largest * 2 ** (bits + 1)) < 2 ** 15) bits++;
  const whole = Int32Array.from(weights, (weight) => Math.trunc(0.5 + weight * 2 ** bits));
  return { firsts, weights: whole, most, bits };
}

// values: lines x before x inner -> lines x after x inner, in 8 bits.
function resizeAxis(values, lines, before, after, inner) {
  if (before === after) return values;
  const { firsts, weights, most, bits } = resizeWeights(before, after);
  const result = new Uint8Array(lines * after * inner), half = 1 << (bits - 1);
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < after; i++) {
      const start = line * before + firsts[i], count = Math.min(most, before - firsts[i]);
      const to = (line * after + i) * inner;
      for (let k = 0; k < inner; k++) {
        let sum = half;
        for (let j = 0; j < count; j++) sum += weights[i * most + j] * values[(start + j) * inner + k];
        result[to + k] = Math.min(Math.max(sum >> bits, 0), 255);
      }
    }
  }
  return result;
}

// rgba: height x width x 4, of which the last is not read -> 3 x padded height x padded width,
// resized to size and filled with zeros.
function modelInput(rgba, height, width, size, padded) {
  const rgb = new Uint8Array(height * width * 3);
  for (let i = 0, j = 0; j < rgb.length; i += 4, j += 3) {
    rgb[j] = rgba[i];
    rgb[j + 1] = rgba[i + 1];
    rgb[j + 2] = rgba[i + 2];
  }
  const narrow = resizeAxis(rgb, height, width, size[1], 3);
  const small = resizeAxis(narrow, 1, height, size[0], size[1] * 3);
  const plane = padded[0] * padded[1], result = new Uint8Array(3 * plane);
  for (let y = 0, i = 0; y < size[0]; y++) {
    for (let x = 0; x < size[1]; x++, i += 3) {
      const to = y * padded[1] + x;
      for (let channel = 0; channel < 3; channel++) result[channel * plane + to] = small[i + channel];
    }
  }
  return result;
}

// A box of the model, x1 y1 x2 y2 -> in pixels of the picture, clipped to it.
function originalBox(box, size, height, width) {
  const scale = [f32(size[1] / width), f32(size[0] / height)], limit = [width, height];
  return Array.from(box, (value, i) => Math.min(Math.max(f32(value / scale[i % 2]), 0), limit[i % 2]));
}

// Along one axis of a mask of `side` cells with a ring of zeros (side + 2 nodes) over start..end:
// the visible pixels from `first`, and for each the node before it and the share of the next one.
function maskAxis(start, end, side, limit) {
  const nodes = side + 2, middle = f32(f32(end + start) * 0.5);
  const half = f32(f32(f32(end - start) * 0.5) * f32(nodes / side));
  const low = Math.trunc(f32(middle - half)), high = Math.trunc(f32(middle + half));
  const share = f32(nodes / Math.max(high - low + 1, 1));
  const first = Math.max(low, 0), count = Math.max(Math.min(high + 1, limit) - first, 0);
  const node = new Int32Array(count), rest = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const place = f32(Math.max(f32(f32(share * f32(first + i - low + 0.5)) - 0.5), 0));
    node[i] = Math.min(Math.trunc(place), nodes - 2);
    rest[i] = Math.min(place - node[i], 1);
  }
  return { first, count, node, rest };
}

// mask: side x side probabilities. The runs of its pixels along rows, y, first x, number of pixels
// of each, one after another.
function maskRuns(mask, side, box, height, width) {
  const xs = maskAxis(box[0], box[2], side, width), ys = maskAxis(box[1], box[3], side, height);
  const nodes = side + 2, ring = new Float32Array(nodes * nodes), row = new Float32Array(nodes);
  for (let y = 0; y < side; y++) {
    ring.set(mask.subarray(y * side, (y + 1) * side), (y + 1) * nodes + 1);
  }
  const runs = [];
  for (let i = 0; i < ys.count; i++) {
    const above = ys.node[i] * nodes, dy = ys.rest[i];
    for (let n = 0; n < nodes; n++) {
      row[n] = ring[above + n] * (1 - dy) + ring[above + nodes + n] * dy;
    }
    let begin = -1;
    for (let j = 0; j <= xs.count; j++) {
      const n = xs.node[j], dx = xs.rest[j];
      const inside = j < xs.count && f32(row[n] * (1 - dx) + row[n + 1] * dx) > 0.5;
      if (inside && begin < 0) begin = j;
      if (!inside && begin >= 0) {
        runs.push(ys.first + i, xs.first + begin, j - begin);
        begin = -1;
      }
    }
  }
  return Int32Array.from(runs);
}

// outputs: those of the exported file for one image, flat arrays by name. Detections, the best
// first: box x1 y1 x2 y2 in pixels of the picture, score, label 1..K, runs (none
// where the model makes no masks).
function detections(outputs, about, size, height, width) {
  const side = about.mask_side, area = side * side, found = [];
  const maskOf = (slot) => outputs.masks.subarray(area * slot, area * (slot + 1));
  for (let slot = 0; slot < outputs.valid.length; slot++) {
    if (!outputs.valid[slot]) continue;
    const box = originalBox(outputs.boxes.subarray(4 * slot, 4 * slot + 4), size, height, width);
    found.push({
      box,
      score: outputs.scores[slot],
      label: Number(outputs.labels[slot]),
      runs: side ? maskRuns(maskOf(slot), side, box, height, width) : [],
    });
  }
  return found.sort((one, other) => other.score - one.score);
}
