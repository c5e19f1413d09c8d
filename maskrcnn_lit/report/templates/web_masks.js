// Masks as COCO writes them, and which object is at a point. Plain functions of numbers and lists:
// tests run them without a browser.
"use strict";

// The numbers of a compressed RLE: pixels of 0, pixels of 1, pixels of 0, ... down the columns.
function rleCounts(text) {
  const counts = [];
  for (let i = 0; i < text.length; ) {
    let value = 0, shift = 0, digit;
    do {
      digit = text.charCodeAt(i++) - 48;
      value |= (digit & 31) << shift;
      shift += 5;
    } while (digit & 32);
    if (digit & 16) value |= -1 << shift;
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

// The pixels of 1 in an RLE { size: [height, width], counts }, along columns: x, first y, number of
// pixels of each, one after another.
function rleColumns({ size: [height], counts }) {
  const columns = [];
  let at = 0;
  rleCounts(counts).forEach((count, n) => {
    for (let left = n % 2 ? count : 0, from = at; left > 0; ) {
      const y = from % height, here = Math.min(left, height - y);
      columns.push((from - y) / height, y, here);
      from += here;
      left -= here;
    }
    at += count;
  });
  return columns;
}

// Whether the mask of a detection, or its box if it has none, has the pixel x, y.
function covers({ box, runs = [], columns = [] }, x, y) {
  const inside = x >= box[0] && x < box[2] && y >= box[1] && y < box[3];
  const [px, py] = [Math.floor(x), Math.floor(y)];
  for (let i = 0; i < runs.length; i += 3) {
    if (runs[i] === py && px >= runs[i + 1] && px < runs[i + 1] + runs[i + 2]) return true;
  }
  for (let i = 0; i < columns.length; i += 3) {
    if (columns[i] === px && py >= columns[i + 1] && py < columns[i + 1] + columns[i + 2]) return true;
  }
  return inside && !runs.length && !columns.length;
}

// The smallest of the detections at a point, or null.
function objectAt(found, x, y) {
  const area = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  const there = found.filter((one) => covers(one, x, y)).sort((a, b) => area(a) - area(b));
  return there[0] || null;
}
