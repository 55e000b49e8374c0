/* The editor's picture: everything is made of the state anew; names are text, never HTML. */

const SVG = "http://www.w3.org/2000/svg";

function shape(kind, attributes, words) {
  const node = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (words !== undefined) node.textContent = words;
  return node;
}

function rectangle([x0, y0, x1, y1], attributes) {
  return shape("rect", { x: x0, y: y0, width: x1 - x0, height: y1 - y0, ...attributes });
}

/** Pixels of the frame per pixel of the screen. */
function scaleOf(stage) {
  const margin = 0.06 * Math.max(state.doc.width, state.doc.height);
  const { width, height } = stage.getBoundingClientRect();
  return Math.max((state.doc.width + 2 * margin) / (width || 1), (state.doc.height + 2 * margin) / (height || 1));
}

/** The way of an object's centre, with numbers at its frames, and its boxes in all of them. */
function* wayOf(item, k, unit) {
  const boxes = boxesOf(item);
  const centres = boxes.map((box) => [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2]);
  const keys = new Set(item.keyframes.map((key) => key.frame));
  if (item.keyframes.length < 2) return;
  for (const [n, box] of boxes.entries()) {
    if (n + 1 !== state.frame && (keys.has(n + 1) || k === state.chosen)) yield rectangle(box, { class: "onion", stroke: colour(k) });
  }
  yield shape("polyline", { class: "way", stroke: colour(k), points: centres.map((c) => c.join()).join(" ") });
  let last = null;
  for (const [n, [x, y]] of centres.entries()) {
    const key = keys.has(n + 1);
    yield shape("circle", { cx: x, cy: y, r: (key ? 4 : 2) * unit, fill: colour(k), "pointer-events": "none" });
    // numbers do not cover each other; those of key frames come first
    const near = (other, pixels) => other && Math.hypot(x - other[0], y - other[1]) < pixels * unit;
    const following = centres.find((_, m) => m > n && keys.has(m + 1));
    if (near(last, key ? 12 : 22) || (!key && near(following, 12))) continue;
    yield shape("text", { x: x + 5 * unit, y: y - 5 * unit, "font-size": 10 * unit }, n + 1);
    last = [x, y];
  }
}

function* handlesOf(box, k, unit) {
  const [x0, y0, x1, y1] = box;
  const [xm, ym] = [(x0 + x1) / 2, (y0 + y1) / 2];
  const places = { nw: [x0, y0], n: [xm, y0], ne: [x1, y0], e: [x1, ym], se: [x1, y1], s: [xm, y1], sw: [x0, y1], w: [x0, ym] };
  const cursors = { n: "ns", s: "ns", e: "ew", w: "ew", nw: "nwse", se: "nwse", ne: "nesw", sw: "nesw" };
  for (const [edges, [x, y]] of Object.entries(places)) {
    const data = { "data-object": k, "data-edges": edges, style: "cursor:" + cursors[edges] + "-resize" };
    // fingers need more room than what is seen
    yield rectangle([x - 11 * unit, y - 11 * unit, x + 11 * unit, y + 11 * unit], { fill: "transparent", ...data });
    yield rectangle([x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit], { class: "handle", stroke: colour(k), ...data });
  }
}

function* objectOf(item, k, unit) {
  const box = boxAt(item);
  if (state.frame === 1 && item.mask) {
    const { pixels, width, height } = maskOf(item);
    yield pictureOf(maskPicture(pixels, width, height, hex(colour(k))), "mask small");
  }
  yield* wayOf(item, k, unit);
  const kind = k === state.chosen ? "box chosen" : "box";
  yield rectangle(box, { class: kind, stroke: colour(k), fill: colour(k), "data-object": k });
  yield shape("text", { x: box[0], y: box[1] - 4 * unit, "font-size": 12 * unit }, item.name);
  if (k === state.chosen && state.tool === "box") yield* handlesOf(box, k, unit);
  if (state.frame === 1) {
    for (const [n, [x, y]] of (item.points || []).entries()) {
      yield shape("circle", { class: "point", cx: x, cy: y, r: 5 * unit, fill: colour(k), "data-object": k, "data-point": n });
    }
  }
}

function hex(code) {
  return [1, 3, 5].map((k) => parseInt(code.slice(k, k + 2), 16));
}

function pictureOf(url, kind) {
  const { width, height } = state.doc;
  return shape("image", { href: url, x: 0, y: 0, width, height, preserveAspectRatio: "none", class: kind });
}

/** Draws all of the editor from its state. */
function draw() {
  const stage = find(".ed-stage");
  const { width, height, objects } = state.doc;
  const margin = 0.06 * Math.max(width, height);
  stage.setAttribute("viewBox", [-margin, -margin, width + 2 * margin, height + 2 * margin].join(" "));
  const unit = scaleOf(stage);
  const nodes = [];
  if (state.picture) nodes.push(pictureOf(state.picture, width < 256 ? "small" : ""));
  nodes.push(rectangle([0, 0, width, height], { class: "edge" }));
  if (!state.picture) {
    nodes.push(shape("text", { x: width / 2, y: height / 2, "text-anchor": "middle", "font-size": 14 * unit }, "Choose an image or an example"));
  }
  const order = objects.map((_, k) => k).filter((k) => k !== state.chosen);
  if (chosen()) order.push(state.chosen); // on top, where paths cross
  for (const k of order) nodes.push(...objectOf(objects[k], k, unit));
  const gesture = state.gesture;
  if (gesture && gesture.kind === "path") {
    nodes.push(shape("polyline", { class: "way", stroke: colour(state.chosen), points: gesture.line.map((p) => p.join()).join(" ") }));
  }
  if (gesture && gesture.kind === "paint") {
    const { pixels, width: w, height: h } = gesture.mask;
    nodes.push(pictureOf(maskPicture(pixels, w, h, hex(colour(Math.max(state.chosen, 0)))), "mask small"));
  }
  stage.replaceChildren(...nodes);
  drawTime();
  drawObjects();
}

function drawTime() {
  const { frames } = state.doc;
  const slider = find(".ed-frame");
  [slider.max, slider.value] = [frames, state.frame];
  find(".ed-now").textContent = state.frame + " / " + frames;
  refill(find(".ed-keys"), (chosen() ? chosen().keyframes : []).map((key, n) => keyButton(key, n)));
}

/** Other buttons in a list; the focus stays at its place. */
function refill(list, buttons) {
  const focus = [...list.children].indexOf(document.activeElement);
  list.replaceChildren(...buttons);
  if (buttons[focus]) buttons[focus].focus();
}

/** A diamond on the time line: a click shows its frame; dragging it, or an arrow key, moves it in time. */
function keyButton(key, n) {
  const button = document.createElement("button");
  button.type = "button";
  button.style.left = (100 * (key.frame - 1)) / Math.max(state.doc.frames - 1, 1) + "%";
  button.style.background = colour(state.chosen);
  button.setAttribute("aria-label", "Key frame " + key.frame + " of " + chosen().name);
  button.title = "frame " + key.frame;
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    state.keyDrag = JSON.stringify(state.doc);
    button.focus();
    event.preventDefault();
  });
  button.addEventListener("pointermove", (event) => {
    if (!state.keyDrag) return;
    const lane = find(".ed-keys").getBoundingClientRect();
    moveKey(n, 1 + Math.round(((event.clientX - lane.left) / lane.width) * (state.doc.frames - 1)));
    button.style.left = (100 * (key.frame - 1)) / Math.max(state.doc.frames - 1, 1) + "%";
  });
  button.addEventListener("pointerup", () => {
    const before = state.keyDrag;
    state.keyDrag = null;
    if (before && JSON.stringify(state.doc) !== before) remember(before);
    state.frame = key.frame;
    publish();
  });
  button.addEventListener("pointercancel", () => {
    const before = state.keyDrag;
    state.keyDrag = null;
    if (before) load(JSON.parse(before));
  });
  button.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    event.preventDefault();
    change(() => moveKey(n, key.frame + step));
    show(chosen().keyframes[n].frame);
  });
  button.addEventListener("click", () => show(key.frame)); // by the keyboard
  return button;
}

/** Moves a key frame of the chosen object in time, at most to its neighbours. */
function moveKey(n, wish) {
  const keys = chosen().keyframes;
  const low = n ? keys[n - 1].frame + 1 : 1;
  const high = n < keys.length - 1 ? keys[n + 1].frame - 1 : state.doc.frames;
  keys[n].frame = Math.min(Math.max(wish, low), high);
}

function drawObjects() {
  const buttons = state.doc.objects.map((item, k) => {
    const button = document.createElement("button");
    const [swatch, name] = [document.createElement("i"), document.createElement("span")];
    swatch.style.background = colour(k);
    name.textContent = item.name;
    button.append(swatch, name);
    button.type = "button";
    button.dataset.choose = k;
    button.title = item.name;
    button.setAttribute("aria-pressed", String(k === state.chosen));
    return button;
  });
  refill(find(".ed-objects"), buttons);
  const item = chosen();
  find(".ed-object").hidden = !item;
  if (item) {
    find(".ed-name").value = item.name;
    find(".ed-kind").value = item.interpolation || "linear";
    find(".ed-weight").value = item.weight === undefined ? 1 : item.weight;
  }
  const camera = state.doc.camera || {};
  [find(".ed-pan-x").value, find(".ed-pan-y").value] = camera.pan || [0, 0];
  find(".ed-zoom").value = camera.zoom || 1;
  for (const button of element.querySelectorAll("[data-tool]")) {
    button.setAttribute("aria-checked", String(button.dataset.tool === state.tool));
  }
  find('[data-do="undo"]').disabled = !state.undo.length;
  find('[data-do="redo"]').disabled = !state.redo.length;
  find('[data-do="unmask"]').disabled = !(item && item.mask);
}
