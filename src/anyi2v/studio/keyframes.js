/* Boxes between key frames, by the same arithmetic as anyi2v.tracks.keyframes; a test compares both. */

const EASES = {
  "ease-in": (t) => t * t,
  "ease-out": (t) => 1 - (1 - t) ** 2,
  "ease-in-out": (t) => t * t * (3 - 2 * t),
};

/** Linear interpolation of the points (xs, ys) at x, constant beyond the ends. */
function interpolate(x, xs, ys) {
  const last = xs.length - 1;
  if (x <= xs[0]) return ys[0];
  if (x >= xs[last]) return ys[last];
  let k = 0;
  while (xs[k + 1] <= x) k += 1;
  return ((ys[k + 1] - ys[k]) / (xs[k + 1] - xs[k])) * (x - xs[k]) + ys[k];
}

/** The slope at an end, from the two intervals next to it. */
function endSlope(h0, h1, d0, d1) {
  const m = ((2 * h0 + h1) * d0 - h0 * d1) / (h0 + h1);
  if (Math.sign(m) !== Math.sign(d0)) return 0;
  if (Math.sign(d0) !== Math.sign(d1) && Math.abs(m) > 3 * Math.abs(d0)) return 3 * d0;
  return m;
}

/** Slopes of the monotone cubic through (x, y) at its points (Fritsch and Butland 1984). */
function slopes(x, y) {
  const h = x.slice(1).map((value, k) => value - x[k]);
  const d = h.map((width, k) => (y[k + 1] - y[k]) / width);
  if (d.length === 1) return [d[0], d[0]];
  const inner = d.slice(1).map((after, k) => {
    const before = d[k];
    if (Math.sign(before) * Math.sign(after) <= 0) return 0;
    const one = 2 * h[k + 1] + h[k];
    const two = h[k + 1] + 2 * h[k];
    return (one + two) / (one / before + two / after);
  });
  const n = d.length - 1;
  return [endSlope(h[0], h[1], d[0], d[1]), ...inner, endSlope(h[n], h[n - 1], d[n], d[n - 1])];
}

function cubic(at, x, y) {
  const m = slopes(x, y);
  let k = 0;
  while (k < x.length - 2 && x[k + 1] <= at) k += 1;
  const h = x[k + 1] - x[k];
  const t = (at - x[k]) / h;
  const start = (1 + 2 * t) * (1 - t) ** 2 * y[k] + t * (1 - t) ** 2 * h * m[k];
  return start + t ** 2 * (3 - 2 * t) * y[k + 1] + t ** 2 * (t - 1) * h * m[k + 1];
}

/** One box for each of the frames 1 to count; keys are [{frame, box}] with growing frames. */
function between(keys, count, kind = "linear") {
  const frames = keys.map((key) => key.frame);
  const last = frames.length - 1;
  // centre and size, so that no box turns inside out
  const columns = [0, 1, 2, 3].map((c) =>
    keys.map(({ box }) => (c < 2 ? (box[c] + box[c + 2]) / 2 : box[c] - box[c - 2])),
  );
  const boxes = [];
  for (let frame = 1; frame <= count; frame += 1) {
    const key = keys.find((item) => item.frame === frame);
    if (key || frame <= frames[0] || frame >= frames[last]) {
      boxes.push([...(key || (frame <= frames[0] ? keys[0] : keys[last])).box]);
      continue;
    }
    let at = frame;
    if (EASES[kind]) {
      let k = 0;
      while (frames[k + 1] <= frame) k += 1;
      const width = frames[k + 1] - frames[k];
      at = frames[k] + EASES[kind]((frame - frames[k]) / width) * width;
    }
    const curve = kind === "smooth" ? cubic : interpolate;
    const [cx, cy, w, h] = columns.map((values) => curve(at, frames, values));
    boxes.push([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]);
  }
  return boxes;
}

/** The keys at frames that make the centre's speed as even as whole frames allow; first and last key stay. */
function evenSpeed(keys) {
  const centre = ({ box }) => [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
  const lengths = lengthsOf(keys.map(centre));
  const [first, last] = [keys[0].frame, keys[keys.length - 1].frame];
  const total = lengths[keys.length - 1];
  if (total === 0) return keys;
  let former = first - 1;
  return keys.map((key, k) => {
    const wish = Math.round(first + ((last - first) * lengths[k]) / total);
    former = Math.min(Math.max(wish, former + 1), last - (keys.length - 1 - k));
    return { ...key, frame: former };
  });
}

/** How far each point of a line is from its start, along it. */
function lengthsOf(line) {
  const lengths = [0];
  for (let k = 1; k < line.length; k += 1) {
    lengths.push(lengths[k - 1] + Math.hypot(line[k][0] - line[k - 1][0], line[k][1] - line[k - 1][1]));
  }
  return lengths;
}

/** `count` points evenly spread along a drawn line. */
function spread(line, count) {
  const lengths = lengthsOf(line);
  return Array.from({ length: count }, (_, k) => {
    const at = (lengths[line.length - 1] * k) / Math.max(count - 1, 1);
    return [0, 1].map((c) => interpolate(at, lengths, line.map((point) => point[c])));
  });
}
