/* The editor: state, gestures, keys. `element`, `props`, `watch` and `trigger` are given by gr.HTML.

props.value is the track JSON as text, exactly what the commands read.
props.scene = {picture, width, height, token} comes from the server: the image to draw on.
props.incoming = {id, document | object | mask | words} comes from the server: what to put in.
The page's scripts are one function body: keyframes.js, mask.js, drawing.js, then this one. */

const COLOURS = ["#ffe600", "#00c7ff", "#ff8cff", "#5ae65a", "#ff9600", "#ff9b87"];
const STORE = "anyi2v-studio";
const MOST_UNDO = 200;
const DOUBLE = 400; // milliseconds between two taps on a point that remove it
const find = (name) => element.querySelector(name);

const state = {
  doc: { width: 1, height: 1, frames: props.frames, objects: [] },
  picture: "",
  frame: 1,
  chosen: -1,
  tool: "box",
  undo: [],
  redo: [],
  gesture: null,
  keyDrag: null,
  tapped: { point: null, time: 0 },
  timer: 0,
};

const rounded = (value) => Math.round(value * 100) / 100;
const colour = (k) => COLOURS[k % COLOURS.length];
const chosen = () => state.doc.objects[state.chosen];
const boxesOf = (item) => between(item.keyframes, state.doc.frames, item.interpolation);
const boxAt = (item, frame = state.frame) => boxesOf(item)[frame - 1];
const text = () => JSON.stringify(state.doc, null, 1) + "\n";

function say(words) {
  find(".ed-say").textContent = words;
}

/* state */

/** Shows the document everywhere, and hands it over. */
function publish() {
  draw();
  const json = text();
  find(".ed-json").value = json;
  if (props.value !== json) props.value = json;
  keep({ document: state.doc });
}

/** Keeps something in this tab's storage, so that a reload finds it. */
function keep(values) {
  try {
    const former = JSON.parse(sessionStorage.getItem(STORE) || "{}");
    sessionStorage.setItem(STORE, JSON.stringify({ ...former, ...values }));
  } catch {
    say("nothing is kept over a reload: this browser's storage is full or switched off");
  }
}

/** Changes the document by a function; one step of undo. */
function change(edit) {
  const before = JSON.stringify(state.doc);
  edit(state.doc);
  if (JSON.stringify(state.doc) !== before) remember(before);
  publish();
}

function remember(before) {
  state.undo.push(before);
  if (state.undo.length > MOST_UNDO) state.undo.shift();
  state.redo = [];
}

function stepBack(from, to) {
  if (!from.length) return;
  to.push(JSON.stringify(state.doc));
  load(JSON.parse(from.pop()));
}

function load(doc) {
  state.doc = doc;
  state.frame = Math.min(state.frame, doc.frames);
  state.chosen = Math.min(Math.max(state.chosen, 0), doc.objects.length - 1);
  publish();
}

/** Sets the box of an object in a frame, which becomes a key frame; in frame 1 its points go along. */
function setBox(item, frame, box) {
  const before = boxAt(item, 1);
  const key = item.keyframes.find((other) => other.frame === frame);
  if (key) key.box = box.map(rounded);
  else item.keyframes.push({ frame, box: box.map(rounded) });
  item.keyframes.sort((a, b) => a.frame - b.frame);
  const after = boxAt(item, 1);
  if (!item.points || String(before) === String(after)) return;
  const scale = [0, 1].map((c) => (after[c + 2] - after[c]) / (before[c + 2] - before[c]));
  item.points = item.points.map((point) => inside([0, 1].map((c) => after[c] + (point[c] - before[c]) * scale[c]), after));
}

function inside([x, y], [x0, y0, x1, y1]) {
  return [rounded(Math.min(Math.max(x, x0), x1)), rounded(Math.min(Math.max(y, y0), y1))];
}

function freeName(wish = "object") {
  const names = new Set(state.doc.objects.map((item) => item.name));
  if (wish !== "object" && !names.has(wish)) return wish;
  let number = 1;
  while (names.has(wish + " " + number)) number += 1;
  return wish + " " + number;
}

function add(item) {
  state.doc.objects.push({ ...item, name: freeName(item.name) });
  state.chosen = state.doc.objects.length - 1;
}

/* gestures */

/** Where a pointer is, in pixels of the frame. */
function place(event) {
  const stage = find(".ed-stage");
  const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(stage.getScreenCTM().inverse());
  return [point.x, point.y];
}

function moved(box, dx, dy) {
  return [box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy];
}

/** A box whose sides named in `edges` follow the pointer, and stay apart. */
function resized(box, edges, dx, dy) {
  const least = Math.min(state.doc.width, state.doc.height) / 64;
  const out = [...box];
  if (edges.includes("w")) out[0] = Math.min(box[0] + dx, box[2] - least);
  if (edges.includes("e")) out[2] = Math.max(box[2] + dx, box[0] + least);
  if (edges.includes("n")) out[1] = Math.min(box[1] + dy, box[3] - least);
  if (edges.includes("s")) out[3] = Math.max(box[3] + dy, box[1] + least);
  return out;
}

/** What a gesture does while the pointer moves. */
const GESTURES = {
  /** A new box, drawn from corner to corner; it is there in all frames until it is moved in another one. */
  draw(gesture, [x, y]) {
    const [x0, y0] = gesture.start;
    const box = [Math.min(x0, x), Math.min(y0, y), Math.max(x0, x), Math.max(y0, y)].map(rounded);
    const least = Math.min(state.doc.width, state.doc.height) / 40;
    if (box[2] - box[0] < least || box[3] - box[1] < least) return;
    if (!gesture.item) {
      add({ keyframes: [{ frame: 1, box }] });
      gesture.item = chosen();
    }
    gesture.item.keyframes[0].box = box;
  },
  move(gesture, [x, y]) {
    setBox(gesture.item, state.frame, moved(gesture.box, x - gesture.start[0], y - gesture.start[1]));
  },
  resize(gesture, [x, y]) {
    setBox(gesture.item, state.frame, resized(gesture.box, gesture.edges, x - gesture.start[0], y - gesture.start[1]));
  },
  point(gesture, at) {
    gesture.item.points[gesture.index] = inside(at, boxAt(gesture.item, 1));
  },
  path(gesture, at) {
    gesture.line.push(at);
  },
  paint(gesture, [x, y]) {
    const { pixels, width, height } = gesture.mask;
    const [sx, sy] = [width / state.doc.width, height / state.doc.height];
    const radius = Math.max(1, Math.min(width, height) / 24);
    const [fx, fy] = gesture.last || [x, y];
    const count = Math.max(1, Math.ceil(Math.hypot((x - fx) * sx, (y - fy) * sy) / radius));
    for (let k = 1; k <= count; k += 1) {
      const [px, py] = [fx + ((x - fx) * k) / count, fy + ((y - fy) * k) / count];
      paintDisc(pixels, width, height, px * sx, py * sy, radius, gesture.value);
    }
    gesture.last = [x, y];
  },
};

/** What is done when the pointer is lifted. */
const ENDS = {
  path({ item, line }) {
    if (line.length < 2) return;
    const first = boxAt(item, 1);
    const count = Math.min(state.doc.frames, 9);
    const points = spread(line, count);
    item.keyframes = points.map(([x, y], k) => ({
      frame: 1 + Math.round(((state.doc.frames - 1) * k) / Math.max(count - 1, 1)),
      box: moved(first, x - points[0][0], y - points[0][1]).map(rounded),
    }));
  },
  paint(gesture) {
    const { pixels, width, height } = gesture.mask;
    const around = maskBox(pixels, width, height, state.doc.width, state.doc.height);
    if (!gesture.item && !around) return;
    if (!gesture.item) {
      add({ keyframes: [{ frame: 1, box: around.map(rounded) }] });
      gesture.item = chosen();
    }
    if (around) gesture.item.mask = encodeMask(pixels, width, height);
    else delete gesture.item.mask;
  },
};

/** The pixels of an object's mask, or an empty one of at most some hundred pixels. */
function maskOf(item) {
  if (item && item.mask) return { pixels: decodeMask(item.mask), height: item.mask.size[0], width: item.mask.size[1] };
  const scale = 256 / Math.max(state.doc.width, state.doc.height);
  const [width, height] = [state.doc.width, state.doc.height].map((side) => Math.max(1, Math.round(side * scale)));
  return { pixels: new Uint8Array(width * height), width, height };
}

/** The gesture that a pointer begins, by the tool and by what is under it; null if there is none. */
function begin(event) {
  const at = place(event);
  const data = event.target.dataset || {};
  const index = data.object === undefined ? -1 : Number(data.object);
  const gesture = { start: at, before: JSON.stringify(state.doc) };
  const again = twice(data.point === undefined ? null : data.object + " " + data.point, event.timeStamp);
  if (state.tool === "pick") {
    say("looking for the object there ...");
    trigger("pick", { x: at[0], y: at[1] });
    return null;
  }
  if (state.tool === "brush" || state.tool === "erase") {
    state.frame = 1;
    const value = state.tool === "brush" ? 1 : 0;
    return { ...gesture, kind: "paint", item: chosen(), mask: maskOf(chosen()), value };
  }
  if (data.point !== undefined) {
    state.chosen = index;
    if (again) return removePoint(chosen(), Number(data.point));
    return { ...gesture, kind: "point", item: chosen(), index: Number(data.point) };
  }
  if (state.tool === "path" && index >= 0) state.chosen = index;
  if (state.tool !== "box" && !chosen()) {
    say("draw a box first");
    return null;
  }
  if (state.tool === "path") return { ...gesture, kind: "path", item: chosen(), line: [at] };
  if (state.tool === "point") {
    state.frame = 1;
    const item = chosen();
    item.points = [...(item.points || []), inside(at, boxAt(item, 1))];
    return { ...gesture, kind: "point", item, index: item.points.length - 1 };
  }
  if (index < 0) return { ...gesture, kind: "draw" };
  state.chosen = index;
  return { ...gesture, kind: data.edges ? "resize" : "move", item: chosen(), box: boxAt(chosen()), edges: data.edges };
}

/** Whether a point is tapped for the second time in a row; the browser cannot know it, as its node is replaced. */
function twice(point, time) {
  const former = state.tapped;
  state.tapped = { point, time };
  return point !== null && former.point === point && time - former.time < DOUBLE;
}

/** Removes a salient point; a gesture that ends here. */
function removePoint(item, index) {
  change(() => {
    item.points.splice(index, 1);
    if (!item.points.length) delete item.points;
  });
  return null;
}

function down(event) {
  if (event.button > 0 || state.gesture || !state.picture) return;
  stop();
  event.preventDefault();
  find(".ed-stage").focus({ preventScroll: true });
  state.gesture = begin(event);
  if (!state.gesture) return;
  find(".ed-stage").setPointerCapture(event.pointerId);
  state.gesture.pointer = event.pointerId;
  if (state.gesture.kind === "paint") GESTURES.paint(state.gesture, place(event));
  draw();
}

function drag(event) {
  const gesture = state.gesture;
  if (!gesture || event.pointerId !== gesture.pointer) return;
  GESTURES[gesture.kind](gesture, place(event));
  draw();
}

function lift(event) {
  const gesture = state.gesture;
  if (!gesture || event.pointerId !== gesture.pointer) return;
  state.gesture = null;
  if (event.type === "pointercancel") load(JSON.parse(gesture.before));
  else if (ENDS[gesture.kind]) ENDS[gesture.kind](gesture);
  if (JSON.stringify(state.doc) !== gesture.before) {
    remember(gesture.before);
    state.tapped.point = null; // it was dragged
  }
  publish();
}

/* actions */

const ACTIONS = {
  undo: () => stepBack(state.undo, state.redo),
  redo: () => stepBack(state.redo, state.undo),
  play() {
    if (state.timer) stop();
    else state.timer = setInterval(() => show((state.frame % state.doc.frames) + 1), 125);
  },
  copy() {
    const field = find(".ed-json");
    field.select();
    if (document.execCommand("copy")) say("copied");
  },
  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: "application/json" }));
    link.download = "tracks.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  },
};

/** Actions on the chosen object; nothing happens without one. */
const OBJECT_ACTIONS = {
  key: (item) => change(() => setBox(item, state.frame, boxAt(item))),
  unkey(item) {
    if (!item.keyframes.some((key) => key.frame === state.frame)) say("there is no key frame in frame " + state.frame);
    else if (item.keyframes.length === 1) say("the only key frame stays; delete the object instead");
    else change(() => (item.keyframes = item.keyframes.filter((key) => key.frame !== state.frame)));
  },
  even: (item) => change(() => (item.keyframes = evenSpeed(item.keyframes))),
  still: (item) => change(() => (item.keyframes = [{ frame: 1, box: boxAt(item, 1) }])),
  unmask: (item) => change(() => delete item.mask),
  delete() {
    change((doc) => {
      doc.objects.splice(state.chosen, 1);
      state.chosen = Math.min(state.chosen, doc.objects.length - 1);
    });
  },
};

function act(name) {
  if (ACTIONS[name]) ACTIONS[name]();
  else if (chosen()) OBJECT_ACTIONS[name](chosen());
}

function stop() {
  clearInterval(state.timer);
  state.timer = 0;
}

function show(frame) {
  state.frame = Math.min(Math.max(frame, 1), state.doc.frames);
  draw();
}

function choose(tool) {
  state.tool = tool;
  if (tool === "brush" || tool === "erase" || tool === "point") state.frame = 1;
  draw();
}

const TOOLS = { b: "box", p: "path", o: "point", m: "brush", e: "erase", c: "pick" };
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

/** Keys of the drawing area; true if the key meant something. */
function pressed(event) {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key !== "z" && key !== "y") return false;
    act(key === "y" || event.shiftKey ? "redo" : "undo");
  } else if (event.altKey) {
    return false;
  } else if (ARROWS[key] && chosen()) {
    const reach = (event.shiftKey ? 8 : 1) * Math.max(1, state.doc.width / 256);
    const [dx, dy] = ARROWS[key].map((value) => value * reach);
    change(() => setBox(chosen(), state.frame, moved(boxAt(chosen()), dx, dy)));
  } else if (key === "," || key === ".") {
    show(state.frame + (key === "." ? 1 : -1));
  } else if (key === "n" && state.doc.objects.length) {
    state.chosen = (state.chosen + 1) % state.doc.objects.length;
    draw();
  } else if (key === "k") {
    act("key");
  } else if (key === "Delete" || key === "Backspace") {
    act(event.shiftKey ? "delete" : "unkey");
  } else if (key === " ") {
    act("play");
  } else if (TOOLS[key]) {
    choose(TOOLS[key]);
  } else {
    return false;
  }
  return true;
}

/* from the server */

function receive(incoming) {
  if (!incoming || incoming.id === state.received) return;
  state.received = incoming.id;
  if (incoming.document) {
    if (state.doc.objects.length) remember(JSON.stringify(state.doc));
    load(incoming.document);
  }
  if (incoming.object) change(() => add(incoming.object));
  if (incoming.mask && chosen()) change(() => (chosen().mask = incoming.mask));
  else if (incoming.mask) change(() => add({ mask: incoming.mask, keyframes: [{ frame: 1, box: incoming.box }] }));
  if (incoming.words) say(incoming.words);
}

/** Another image: tracks keep their place on it. */
function setScene(scene) {
  if (!scene) return;
  keep({ token: scene.token });
  if (!scene.picture) return draw();
  state.picture = scene.picture;
  const { doc } = state;
  const [sx, sy] = [scene.width / doc.width, scene.height / doc.height];
  if (sx !== 1 || sy !== 1) {
    for (const item of doc.objects) {
      for (const key of item.keyframes) key.box = key.box.map((value, c) => rounded(value * (c % 2 ? sy : sx)));
      if (item.points) item.points = item.points.map(([x, y]) => [rounded(x * sx), rounded(y * sy)]);
    }
  }
  Object.assign(doc, { width: scene.width, height: scene.height });
  publish();
}

/* set up */

/** An input that changes the chosen object. */
function field(name, edit) {
  find(name).addEventListener("change", (event) => chosen() && change(() => edit(chosen(), event.target.value)));
}

function setCamera(doc) {
  const [x, y, zoom] = [".ed-pan-x", ".ed-pan-y", ".ed-zoom"].map((name) => Number(find(name).value));
  if (x || y || (zoom && zoom !== 1)) doc.camera = { pan: [x, y], zoom: zoom || 1 };
  else delete doc.camera;
}

const stage = find(".ed-stage");
stage.addEventListener("pointerdown", down);
stage.addEventListener("pointermove", drag);
stage.addEventListener("pointerup", lift);
stage.addEventListener("pointercancel", lift);
stage.addEventListener("keydown", (event) => pressed(event) && event.preventDefault());
element.addEventListener("click", (event) => {
  const { dataset } = event.target.closest("button") || { dataset: {} };
  if (dataset.tool) choose(dataset.tool);
  if (dataset.do) act(dataset.do);
  if (dataset.choose) {
    state.chosen = Number(dataset.choose);
    draw();
  }
});
find(".ed-frame").addEventListener("input", (event) => show(Number(event.target.value)));
field(".ed-name", (item, value) => {
  if (value.trim() && value.trim() !== item.name) item.name = freeName(value.trim());
});
field(".ed-kind", (item, value) => (item.interpolation = value));
field(".ed-weight", (item, value) => (item.weight = Math.max(0, Number(value) || 0)));
for (const name of [".ed-pan-x", ".ed-pan-y", ".ed-zoom"]) find(name).addEventListener("change", () => change(setCamera));
new ResizeObserver(() => draw()).observe(stage);
watch("scene", () => setScene(props.scene));
watch("incoming", () => receive(props.incoming));
element.studio = { state, between, text, encodeMask, decodeMask };
setScene(props.scene);
receive(props.incoming);
draw();
