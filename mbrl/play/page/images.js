// The three images: dream, simulator, and what differs between them.

import { state, imagesOf, moment, shown } from "./state.js";

const GAIN = 3; // differences of a good model are faint; the films that are kept have the same
const find = (id) => document.querySelector(id);

// Channel-first bytes of one image onto a canvas, pixel by pixel.
export function paint(canvas, size, value) {
  if (canvas.width !== size) canvas.width = canvas.height = size;
  const context = canvas.getContext("2d");
  const image = context.createImageData(size, size);
  const plane = size * size;
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = value(c * plane + i);
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function badge(figure, text, good) {
  const own = find(`#${figure} .badge`);
  own.textContent = text || own.textContent; // it fades out with its words
  own.classList.toggle("on", Boolean(text));
  own.classList.toggle("good", Boolean(good));
}

export function drawImages(redraw) {
  const at = shown();
  if (!at) return;
  const bytes = imagesOf(at.id, redraw);
  const size = state.about.size;
  if (bytes) {
    const one = 3 * size * size;
    paint(find("#dream canvas"), size, (i) => bytes[i]);
    paint(find("#real canvas"), size, (i) => bytes[one + i]);
    paint(find("#error canvas"), size, (i) => Math.min(255, GAIN * Math.abs(bytes[i] - bytes[one + i])));
  }
  document.body.dataset.shown = bytes ? at.id : "";
  document.body.classList.toggle("looking", state.looked !== null && state.looked !== state.here);
  const said = at.predicted.reward;
  find("#said").textContent = said === undefined ? "" : `promises ${said.toFixed(2)}`;
  find("#earned").textContent = at.reward === null ? "" : `earns ${at.reward.toFixed(2)}`;
  find("#mse").textContent = `mse ${at.mse.toFixed(4)}`;
  badge("dream", dreamBadge(at));
  badge("real", at.terminated ? "the task has ended" : at.success ? "success" : "", at.success);
}

const ALONE = 25; // decisions after which a dream may be far from what is real
const DECISIONS = 12; // for which the dream says that it began again

function dreamBadge(at) {
  let m = at, alone = 0; // decisions since it saw what is real
  for (; m && m.pilot !== "woken" && m.parent !== null; m = moment(m.parent), alone++) {
    if (m.anchored && alone < DECISIONS) return "began again from its own frames";
  }
  if (m?.pilot === "woken" && alone < DECISIONS) return "woken";
  return alone < ALONE ? "" : `${alone} decisions alone: R wakes it`;
}
