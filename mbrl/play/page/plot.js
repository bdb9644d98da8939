// One picture of what was driven, over decisions: the tree of branches, rewards promised and earned, the error.

import { state, moment, colour, ownColour } from "./state.js";

const LEFT = 64, RIGHT = 16, TOP = 20, BOTTOM = 22;
const canvas = document.querySelector("#plot");
const tip = document.querySelector("#tip");
const places = []; // of the moments in the tree: {id, x, y}
let lanes = new Map(), used = 0, known = -1, treeEnds = 0;
let scale = { x: () => 0, low: 0, high: 1 };

// Each branch has a line of its own: the first child goes on in that of its parent.
function layOut() {
  if (known === state.version) return;
  known = state.version;
  lanes = new Map();
  used = 0;
  for (const at of state.moments.values()) {
    const before = at.parent === null ? undefined : lanes.get(at.parent);
    const first = before !== undefined && state.children.get(at.parent)[0] === at.id;
    lanes.set(at.id, first ? before : used++);
  }
}

const nice = (span, count) => {
  const raw = span / count, power = 10 ** Math.floor(Math.log10(raw || 1));
  return power * [1, 2, 5, 10].find((step) => step * power >= raw);
};

export function drawPlot() {
  const ratio = window.devicePixelRatio || 1, { clientWidth: width, clientHeight: height } = canvas;
  if (!state.about || !width) return;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.font = "11px system-ui, 'Noto Sans', 'DejaVu Sans', sans-serif";
  layOut();

  const path = state.path.map(moment), low = path[0].depth;
  let high = low + 20;
  for (const at of state.moments.values()) {
    if (at.depth > high && (at.depth <= state.about.episode || near(at))) high = at.depth;
  }
  scale = { low, high, x: (depth) => LEFT + ((depth - low) / (high - low)) * (width - LEFT - RIGHT) };

  const room = height - TOP - BOTTOM, inTree = Math.min(0.4 * room, 18 * (used - 1) + 6), rest = room - inTree - 48;
  const reward = TOP + inTree + 26, error = reward + 0.6 * rest + 24;
  const parts = { tree: [TOP, TOP + inTree], reward: [reward, error - 24], error: [error, height - BOTTOM] };
  treeEnds = TOP + inTree + 8;
  axis(pen, height, parts);
  tree(pen, parts.tree);
  const steps = path.filter((at) => at.reward !== null);
  curve(pen, parts.reward, steps, [
    ["reward earned", colour("real"), (at) => at.reward],
    ["reward promised by the dream", colour("dream"), (at) => at.predicted.reward],
  ]);
  curve(pen, parts.error, steps, [["squared error of the dream", colour("error"), (at) => at.mse]], true);
  cursor(pen, height);
}

// Whether a moment belongs to the tree that is driven in.
function near(at) {
  while (at && at.parent !== null && !state.on.has(at.id)) at = moment(at.parent);
  return at && state.on.has(at.id);
}

function axis(pen, height, parts) {
  const step = Math.max(1, nice(scale.high - scale.low, 10));
  pen.textAlign = "center";
  for (let depth = Math.ceil(scale.low / step) * step; depth <= scale.high; depth += step) {
    const x = scale.x(depth);
    pen.strokeStyle = colour("line");
    pen.globalAlpha = 0.45;
    line(pen, x, parts.tree[0] - 4, x, height - BOTTOM);
    pen.globalAlpha = 1;
    pen.fillStyle = colour("dim");
    pen.fillText(depth, x, height - 7);
  }
  pen.textAlign = "left";
  pen.fillText("decision", 8, height - 7);
}

function line(pen, x0, y0, x1, y1) {
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
}

function tree(pen, [top, bottom]) {
  pen.fillStyle = colour("dim");
  pen.fillText("branches", 8, 14);
  // The lines that fit, the one driven in among them.
  const own = lanes.get(state.here), fit = Math.max(1, Math.floor((bottom - top) / 9) + 1);
  const first = Math.max(0, Math.min(used - fit, own - fit + 2));
  const gap = Math.min(18, (bottom - top) / Math.max(1, Math.min(used, fit) - 1));
  const y = (id) => top + (lanes.get(id) - first) * gap;
  const visible = (id) => lanes.get(id) >= first && lanes.get(id) < first + fit;
  places.length = 0;
  let last = null, style = ""; // what the stroke that is being drawn ends at, and looks like
  const inks = {};
  for (const at of state.moments.values()) {
    if (!visible(at.id) || at.depth < scale.low || at.depth > scale.high) continue;
    const x = scale.x(at.depth), on = state.on.has(at.id), own = `${at.pilot} ${on}`;
    places.push({ id: at.id, x, y: y(at.id) });
    if (at.parent === null || !visible(at.parent)) continue;
    const x0 = scale.x(moment(at.parent).depth), y0 = y(at.parent);
    if (at.parent !== last || own !== style) {
      if (last !== null) pen.stroke();
      pen.strokeStyle = inks[at.pilot] ??= ownColour(at.pilot);
      [pen.globalAlpha, pen.lineWidth] = on ? [1, 3] : [0.35, 2];
      pen.beginPath();
      pen.moveTo(x0, y0);
      style = own;
    }
    if (y0 === y(at.id)) pen.lineTo(x, y0);
    else pen.bezierCurveTo((x0 + x) / 2, y0, x0, y(at.id), x, y(at.id));
    last = at.id;
  }
  if (last !== null) pen.stroke();
  pen.lineWidth = 1;
  for (const place of places) mark(pen, moment(place.id), place);
  pen.globalAlpha = 1;
}

function mark(pen, at, { x, y }) {
  pen.globalAlpha = state.on.has(at.id) ? 1 : 0.4;
  if (at.parent === null) disc(pen, x, y, 4, colour("text"));
  if (at.pilot === "woken") disc(pen, x, y, 3.5, colour("real"));
  if (at.anchored) disc(pen, x, y, 3.5, colour("warn"));
  if (at.success && !moment(at.parent)?.success) disc(pen, x, y, 5, colour("good"));
}

function disc(pen, x, y, radius, fill) {
  pen.fillStyle = fill;
  pen.strokeStyle = colour("panel");
  pen.beginPath();
  pen.arc(x, y, radius, 0, 7);
  pen.fill();
  pen.stroke();
}

function curve(pen, [top, bottom], steps, lines, fromZero) {
  pen.fillStyle = colour("dim");
  const values = lines.flatMap(([, , value]) => steps.map(value).filter((v) => v !== undefined));
  let low = Math.min(0, ...values), high = Math.max(fromZero ? 0.004 : 1, ...values);
  if (high === low) high = low + 1;
  const y = (value) => bottom - ((value - low) / (high - low)) * (bottom - top);
  pen.strokeStyle = colour("line");
  line(pen, LEFT, y(Math.max(low, 0)), canvas.clientWidth - RIGHT, y(Math.max(low, 0)));
  pen.textAlign = "right";
  pen.fillText(Number(high.toPrecision(2)), LEFT - 8, top + 8);
  pen.fillText(Number(low.toPrecision(2)), LEFT - 8, bottom + 3);
  pen.textAlign = "left";
  let left = LEFT + 6;
  for (const [name, ink, value] of lines) {
    if (!steps.some((at) => value(at) !== undefined)) continue;
    pen.strokeStyle = pen.fillStyle = ink;
    pen.lineWidth = 1.75;
    pen.lineJoin = "round";
    pen.beginPath();
    for (const at of steps) pen.lineTo(scale.x(at.depth), y(value(at)));
    pen.stroke();
    const last = steps[steps.length - 1];
    pen.beginPath();
    pen.arc(scale.x(last.depth), y(value(last)), 2.5, 0, 7);
    pen.fill();
    pen.fillText(name, left, top - 4);
    left += pen.measureText(name).width + 16;
  }
  pen.lineWidth = 1;
}

function cursor(pen, height) {
  for (const [id, ink] of [[state.here, colour("text")], [state.looked, colour("warn")]]) {
    const at = id === null ? undefined : moment(id);
    if (!at) continue;
    pen.strokeStyle = ink;
    pen.setLineDash([2, 3]);
    line(pen, scale.x(at.depth), TOP - 6, scale.x(at.depth), height - BOTTOM);
    pen.setLineDash([]);
    const place = places.find((p) => p.id === id);
    if (place) {
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(place.x, place.y, 6, 0, 7);
      pen.stroke();
      pen.lineWidth = 1;
    }
  }
}

// The moment under the mouse: of the tree the nearest, of the curves that of the way to here.
function under(event) {
  const box = canvas.getBoundingClientRect(), x = event.clientX - box.left, y = event.clientY - box.top;
  const inTree = y < treeEnds;
  const among = inTree ? places : places.filter((place) => state.on.has(place.id));
  let best = null, least = Infinity;
  for (const place of among) {
    const far = (place.x - x) ** 2 + (inTree ? 4 * (place.y - y) ** 2 : 0);
    if (far <= least) [best, least] = [place, far];
  }
  return best && { ...best, mouse: [x, y] };
}

export function listen(look, go) {
  canvas.addEventListener("pointermove", (event) => {
    const found = under(event);
    if (!found) return;
    const at = moment(found.id), said = at.predicted.reward;
    const rewards = at.reward === null ? "" : `\nearned ${at.reward.toFixed(2)}` + (said === undefined ? "" : `, promised ${said.toFixed(2)}`);
    tip.textContent = `decision ${at.depth}, ${at.pilot}${rewards}\nerror ${at.mse.toFixed(4)}` +
      (at.anchored ? "\nthe dream began again from its own frames" : "");
    tip.hidden = false;
    tip.style.left = `${Math.min(found.mouse[0] + 14, canvas.clientWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(found.mouse[1] + 14, canvas.clientHeight - tip.offsetHeight - 8)}px`;
    look(found.id);
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; look(null); });
  canvas.addEventListener("click", (event) => {
    const found = under(event);
    if (found) go(found.id);
  });
}
