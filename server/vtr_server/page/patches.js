// Which patches survive: an overlay per image, scrubbed over the layers.

import { byId, element, percent, svg } from "./dom.js";

const DIM = "rgba(10, 13, 18, 0.76)";
const OUTSIDE = "rgba(128, 132, 140, 0.72)";
const EDGE = "#ffb31a";
const SIDE = 640; // longest side of a canvas, in its own pixels
const STEP_MS = 650;

let shown = null; // {images, trace, kept, total, frame, share}
let timer = null;

/** Shows what one answer kept. images: <img> in the order sent; facts: its vtr object. */
export function show(images, facts, { frame, share }) {
  stop();
  byId("patches").hidden = false;
  const traced = facts.trace?.images?.length === images.length && facts.vision_tokens > 0;
  byId("survivors").hidden = !facts.vision_tokens;
  shown = { images, trace: traced ? facts.trace : null, frame, share };
  shown.kept = facts.kept_per_layer;
  shown.total = facts.vision_tokens;
  byId("patches-note").textContent = note(facts, shown);
  byId("views").replaceChildren(...(shown.trace ? images.map(view) : []));
  const slider = byId("layer");
  slider.max = String(shown.kept.length - 1);
  byId("chart").replaceChildren(chart());
  byId("cuts").replaceChildren(...cutLayers().map(cutButton));
  byId("cuts-block").hidden = cutLayers().length === 0;
  setLayer(Math.floor(shown.kept.length / 2));
}

export function hide() {
  stop();
  byId("patches").hidden = true;
  shown = null;
}

function note(facts, { trace, frame, share, images }) {
  if (!facts.vision_tokens) return "The prompt has no vision tokens.";
  if (facts.trace?.truncated) return "Too many vision tokens to trace: only the counts are known.";
  if (!trace) return "This answer says how many tokens were kept, not which.";
  if (trace.images.some(({ grid }) => !grid)) return "The tokens of this model lie on no grid, so they cannot be drawn on the image.";
  const whole = "Dimmed patches were dropped before the layer shown.";
  const square = share === 1 && images.every((image) => image.naturalWidth === image.naturalHeight);
  if (frame === "centre" && !square) return `${whole} The model sees a square from the middle of the image.`;
  return frame === "unknown" ? `${whole} How this model crops an image is not known here: places are approximate.` : whole;
}

/** Layers from which fewer tokens are seen than before. */
function cutLayers() {
  const { kept, total } = shown;
  return kept.flatMap((count, layer) => (count < (layer ? kept[layer - 1] : total) ? [layer] : []));
}

function cutButton(layer) {
  const label = `Layer ${layer}: ${shown.kept[layer]}`;
  const button = element("button", { type: "button", textContent: label });
  button.dataset.layer = String(layer);
  button.addEventListener("click", () => pick(layer));
  return button;
}

function view(picture, number) {
  const scale = SIDE / Math.max(picture.naturalWidth, picture.naturalHeight);
  const canvas = element("canvas", {
    width: Math.max(1, Math.round(picture.naturalWidth * scale)),
    height: Math.max(1, Math.round(picture.naturalHeight * scale)),
  });
  canvas.setAttribute("role", "img");
  const name = shown.images.length > 1 ? `Image ${number + 1}` : "The image";
  canvas.dataset.name = name;
  return element("figure", { className: "view" }, canvas, element("figcaption"));
}

/** The part of a canvas that the model sees: [x, y, width, height]. */
function seenPart({ width, height }) {
  if (shown.frame !== "centre") return [0, 0, width, height];
  const side = Math.min(width, height) * shown.share;
  return [(width - side) / 2, (height - side) / 2, side, side];
}

function keptAt(layer) {
  const cuts = shown.trace.cuts.filter((cut) => cut.layer <= layer);
  return cuts.length ? new Set(cuts.at(-1).kept) : null; // null: all
}

function draw(layer) {
  const kept = keptAt(layer);
  byId("views").querySelectorAll("canvas").forEach((canvas, number) => {
    const { grid, first, tokens } = shown.trace.images[number];
    const survives = (token) => !kept || kept.has(first + token);
    const pen = canvas.getContext("2d");
    pen.imageSmoothingEnabled = shown.images[number].naturalWidth > 320;
    pen.drawImage(shown.images[number], 0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let token = 0; token < tokens; token += 1) count += survives(token);
    if (grid) paint(pen, canvas, grid, survives);
    const name = canvas.dataset.name;
    canvas.setAttribute("aria-label", `${name}: ${count} of ${tokens} patches seen by layer ${layer}`);
    canvas.nextElementSibling.textContent = `${name}: ${count} of ${tokens}`;
  });
}

function paint(pen, canvas, [rows, columns], survives) {
  const [left, top, width, height] = seenPart(canvas);
  pen.fillStyle = OUTSIDE;
  const outside = new Path2D();
  outside.rect(0, 0, canvas.width, canvas.height);
  outside.rect(left, top, width, height);
  pen.fill(outside, "evenodd");
  const x = (column) => Math.round(left + (column * width) / columns);
  const y = (row) => Math.round(top + (row * height) / rows);
  const alive = (row, column) =>
    row >= 0 && column >= 0 && row < rows && column < columns && survives(row * columns + column);
  pen.fillStyle = DIM;
  const edges = new Path2D();
  const edge = (x0, y0, x1, y1) => (edges.moveTo(x0, y0), edges.lineTo(x1, y1));
  let dropped = 0;
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < columns; column += 1) {
      const [x0, y0, x1, y1] = [x(column), y(row), x(column + 1), y(row + 1)];
      if (!alive(row, column)) {
        pen.fillRect(x0, y0, x1 - x0, y1 - y0);
        dropped += 1;
        continue;
      }
      if (!alive(row - 1, column)) edge(x0, y0, x1, y0);
      if (!alive(row + 1, column)) edge(x0, y1, x1, y1);
      if (!alive(row, column - 1)) edge(x0, y0, x0, y1);
      if (!alive(row, column + 1)) edge(x1, y0, x1, y1);
    }
  }
  if (!dropped) return;
  pen.strokeStyle = EDGE;
  pen.lineWidth = 2.5;
  pen.stroke(edges);
}

/** Bars of the tokens kept per layer, each on a slot that stands for all; the layer shown stands out. */
function chart() {
  const { kept, total } = shown;
  const [high, left, wide] = [72, 24, 296 / kept.length];
  const gap = Math.min(2, wide / 5);
  const label = `Kept per layer, from layer 0, of ${total}: ${kept.join(", ")}`;
  const drawing = svg("svg", { viewBox: `0 0 320 ${high + 16}`, role: "img", "aria-label": label });
  kept.forEach((count, layer) => {
    const tall = total ? (high * count) / total : 0;
    const place = { x: left + layer * wide + gap / 2, width: wide - gap };
    const slot = svg("rect", { class: "slot", ...place, y: 0, height: high });
    const bar = svg("rect", { class: "bar-kept", ...place, y: high - tall, height: tall });
    const group = svg("g", { "data-layer": layer }, slot, bar);
    group.addEventListener("click", () => pick(layer));
    drawing.append(group);
  });
  const write = (x, y, anchor, text) => {
    const made = svg("text", { x, y, "text-anchor": anchor });
    made.textContent = text;
    drawing.append(made);
  };
  write(left - 5, 8, "end", String(total));
  write(left - 5, high, "end", "0");
  write(left, high + 13, "start", "layer 0");
  write(320, high + 13, "end", String(kept.length - 1));
  return drawing;
}

function setLayer(layer) {
  const { kept, total, trace } = shown;
  const slider = byId("layer");
  slider.value = String(layer);
  const share = total ? ` (${percent(kept[layer] / total)})` : "";
  slider.setAttribute("aria-valuetext", `Layer ${layer}, ${kept[layer]} of ${total} vision tokens kept`);
  byId("kept").textContent = `${layer} · ${kept[layer]} of ${total} kept${share}`;
  if (trace) draw(layer);
  for (const bar of byId("chart").querySelectorAll("g")) {
    bar.classList.toggle("now", Number(bar.dataset.layer) === layer);
  }
  const current = cutLayers().findLast((cut) => cut <= layer);
  for (const button of byId("cuts").children) {
    button.setAttribute("aria-pressed", String(Number(button.dataset.layer) === current));
  }
}

function pick(layer) {
  stop();
  setLayer(layer);
}

function stop() {
  clearInterval(timer);
  timer = null;
  byId("play").textContent = "Play";
}

function play() {
  if (timer) return stop();
  const slider = byId("layer");
  if (slider.value === slider.max) setLayer(0);
  byId("play").textContent = "Pause";
  timer = setInterval(() => {
    setLayer(Number(slider.value) + 1);
    if (slider.value === slider.max) stop();
  }, STEP_MS);
}

/** Once, when the page loads. */
export function wire() {
  byId("layer").addEventListener("input", (event) => pick(Number(event.target.value)));
  byId("play").addEventListener("click", play);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const settle = () => {
    byId("play").hidden = still.matches; // nothing moves by itself then; the slider does the same
    stop();
  };
  still.addEventListener("change", settle);
  settle();
}
