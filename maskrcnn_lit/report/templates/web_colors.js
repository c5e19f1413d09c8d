// A color, a number of 0..count-1, for each detection, the best first: that of its class, or the
// next one that nothing near it has.
function chooseColors(found, count, near) {
  const colors = [];
  found.forEach(({ box, label }, i) => {
    const uses = new Array(count).fill(0);
    for (let j = 0; j < i; j++) {
      const other = found[j].box;
      const gap = Math.max(box[0] - other[2], other[0] - box[2], box[1] - other[3], other[1] - box[3]);
      if (gap < near) uses[colors[j]]++;
    }
    let best = (label - 1) % count;
    for (let k = 1; k < count; k++) {
      const next = (label - 1 + k) % count;
      if (uses[next] < uses[best]) best = next;
    }
    colors.push(best);
  });
  return colors;
}
