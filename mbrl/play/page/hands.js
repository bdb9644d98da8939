// Keys, mouse and gamepad as one action: what is held now, sent whenever it changes.

import { state, moment, ownColour } from "./state.js";

const PAIRS = [["ArrowLeft", "ArrowRight"], ["ArrowDown", "ArrowUp"], ["s", "w"], ["a", "d"], ["z", "x"], ["f", "g"]];
const STAYING = [["q", "e"]];
const NAMES = { ArrowLeft: "←", ArrowRight: "→", ArrowDown: "↓", ArrowUp: "↑" };
const REACH = 70; // pixels of a drag on the dream to full speed
const FINE = 0.35; // of full speed, with Shift
const DEAD = 0.15; // of a gamepad's stick

const down = new Set();
const dragged = new Map(); // lever -> -1..1, by mouse
let padded = new Map(); // the same, by gamepad
const latched = new Map(); // of levers that stay where they are put
let levers = [], keyOf = new Map(), fine = false, sent = "", send = () => {};

export function build(host, ask) {
  send = ask;
  levers = state.about.levers;
  keyOf = new Map();
  latched.clear();
  const pairs = [...PAIRS], staying = [...STAYING];
  for (const lever of levers) {
    lever.keys = (lever.stays ? staying : pairs).shift() ?? [];
    lever.keys.forEach((key, i) => keyOf.set(key, [lever, i ? 1 : -1]));
    if (lever.stays) latched.set(lever, -1);
  }
  host.replaceChildren();
  const free = levers.filter((lever) => !lever.stays), others = document.createElement("div");
  others.className = "levers";
  if (free.length > 1) host.append(pad(free[0], free[1]));
  for (const lever of free.length > 1 ? free.slice(2) : free) others.append(bar(lever));
  for (const lever of levers) if (lever.stays) others.append(two(lever));
  if (free.length < 3) others.append(Object.assign(document.createElement("p"), { className: "lever", innerHTML: "arrow keys, or drag" }));
  host.append(others);
  const under = document.createElement("p");
  under.className = "under";
  under.innerHTML = "<kbd>←</kbd><kbd>→</kbd><kbd>↑</kbd><kbd>↓</kbd> <kbd>Shift</kbd> slowly";
  host.append(under);
}

const shownKey = (key) => `<kbd>${NAMES[key] ?? key.toUpperCase()}</kbd>`;

function bar(lever) {
  const host = document.createElement("div");
  host.className = "lever";
  host.innerHTML = `${lever.less} ${lever.keys.map(shownKey).join("")} ${lever.more}<div class="bar"><i></i></div>`;
  const own = host.querySelector(".bar");
  drag(own, (x) => dragged.set(lever, x), () => dragged.delete(lever));
  lever.draw = (value) => { own.firstChild.style.left = `${50 + 44 * value}%`; };
  return host;
}

function pad(across, along) {
  const host = document.createElement("div");
  host.className = "pad";
  host.title = `${across.less}, ${across.more}, ${along.less}, ${along.more}`;
  host.innerHTML = "<i></i>";
  drag(host, (x, y) => { dragged.set(across, x); dragged.set(along, -y); }, () => { dragged.delete(across); dragged.delete(along); });
  across.draw = (value) => { host.firstChild.style.left = `${50 + 40 * value}%`; };
  along.draw = (value) => { host.firstChild.style.top = `${50 - 40 * value}%`; };
  return host;
}

function two(lever) {
  const host = document.createElement("div");
  host.className = "lever";
  host.innerHTML = `${lever.name}<div class="two"><button>${lever.less} ${shownKey(lever.keys[0])}</button><button>${lever.more} ${shownKey(lever.keys[1])}</button></div>`;
  const buttons = [...host.querySelectorAll("button")];
  buttons.forEach((button, i) => {
    button.addEventListener("pointerdown", () => { latched.set(lever, i ? 1 : -1); dragged.set(lever, 0); tell(); });
    for (const end of ["pointerup", "pointerleave", "pointercancel"]) button.addEventListener(end, () => { if (dragged.delete(lever)) tell(); });
  });
  lever.draw = (value) => buttons.forEach((button, i) => button.setAttribute("aria-pressed", i ? value > 0 : value < 0));
  return host;
}

// Tells where in a box the mouse is while it is held, -1..1 each way, and when it lets go.
function drag(box, move, end) {
  const at = (event) => {
    const place = box.getBoundingClientRect();
    const part = (value) => Math.max(-1, Math.min(1, value));
    move(part(2.4 * ((event.clientX - place.left) / place.width - 0.5)), part(2.4 * ((event.clientY - place.top) / place.height - 0.5)));
    tell();
  };
  box.addEventListener("pointerdown", (event) => { box.setPointerCapture(event.pointerId); at(event); });
  box.addEventListener("pointermove", (event) => { if (box.hasPointerCapture(event.pointerId)) at(event); });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) box.addEventListener(name, () => { end(); tell(); });
}

// A drag on the dream is a stick that stands where it began; the wheel lifts and lowers.
export function onImage(image, stick) {
  let from = null;
  const free = () => levers.filter((lever) => !lever.stays);
  const end = () => {
    from = null;
    stick.style.display = "none";
    free().slice(0, 2).forEach((lever) => dragged.delete(lever));
    tell();
  };
  image.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !free().length) return;
    image.setPointerCapture(event.pointerId);
    const place = image.getBoundingClientRect();
    from = [event.clientX, event.clientY];
    Object.assign(stick.style, { display: "block", left: `${event.clientX - place.left}px`, top: `${event.clientY - place.top}px` });
    stick.firstElementChild.style.transform = "";
  });
  image.addEventListener("pointermove", (event) => {
    if (!from) return;
    let x = (event.clientX - from[0]) / REACH, y = (event.clientY - from[1]) / REACH;
    const far = Math.max(1, Math.hypot(x, y));
    [x, y] = [x / far, y / far];
    stick.firstElementChild.style.transform = `translate(${34 * x}px, ${34 * y}px)`;
    const [across, along] = free();
    dragged.set(across, x);
    if (along) dragged.set(along, -y);
    tell();
  });
  image.addEventListener("pointerup", end);
  image.addEventListener("pointercancel", end);
  let turning = 0;
  image.addEventListener("wheel", (event) => {
    const lever = free()[2];
    if (!lever) return;
    event.preventDefault();
    dragged.set(lever, event.deltaY < 0 ? 1 : -1);
    tell();
    clearTimeout(turning);
    turning = setTimeout(() => { dragged.delete(lever); tell(); }, 120);
  }, { passive: false });
}

// Whether a key was one of the hands'.
export function press(event, isDown) {
  fine = event.shiftKey;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!keyOf.has(key)) {
    tell();
    return false;
  }
  if (isDown) down.add(key); else down.delete(key);
  const [lever, sign] = keyOf.get(key);
  if (isDown && lever.stays) latched.set(lever, sign);
  tell();
  return true;
}

export function letGo() {
  down.clear();
  dragged.clear();
  padded.clear();
  tell();
}

export function pollGamepad(pressed) {
  const pads = [...(navigator.getGamepads?.() ?? [])].filter(Boolean);
  if (!pads.length) return;
  const [one] = pads, stick = (value) => (Math.abs(value ?? 0) < DEAD ? 0 : value), free = levers.filter((lever) => !lever.stays);
  const said = [stick(one.axes[0]), -stick(one.axes[1]), -stick(one.axes[3]), stick(one.axes[2])];
  padded = new Map(free.map((lever, i) => [lever, said[i] ?? 0]).filter(([, value]) => value));
  const grip = levers.find((lever) => lever.stays);
  [0, 1].forEach((button, i) => { if (grip && one.buttons[button]?.pressed) { latched.set(grip, i ? -1 : 1); padded.set(grip, 0); } });
  pressed(one.buttons.map((button) => button.pressed));
  tell();
}

function held() {
  const action = new Array(state.about.actions).fill(0);
  let moving = false;
  for (const lever of levers) {
    let value = lever.keys.reduce((sum, key, i) => sum + (down.has(key) ? (i ? 1 : -1) : 0), 0) * (fine ? FINE : 1);
    moving ||= value !== 0 || dragged.has(lever) || padded.has(lever);
    value = lever.stays ? latched.get(lever) : value || dragged.get(lever) || padded.get(lever) || 0;
    lever.vector.forEach((part, i) => { action[i] += part * value; });
  }
  return [action.map((value) => Math.max(-1, Math.min(1, Math.round(1000 * value) / 1000))), moving];
}

function tell() {
  if (!state.about) return;
  const [action, moving] = held(), now = JSON.stringify([action, moving]);
  if (now === sent) return;
  sent = now;
  send(action, moving);
}

// The levers as whoever drives has them.
export function drawHands(host) {
  const driving = state.status.pilot, at = moment(state.here);
  host.style.setProperty("--own", ownColour(driving));
  const [own] = held(), action = driving === "you" ? own : at?.action ?? own;
  for (const lever of levers) {
    const length = lever.vector.reduce((sum, part) => sum + part * part, 0);
    lever.draw?.(Math.max(-1, Math.min(1, lever.vector.reduce((sum, part, i) => sum + part * action[i], 0) / length)));
  }
}

export const keysOf = () => levers.map((lever) => [lever.keys.map((key) => NAMES[key] ?? key.toUpperCase()), `${lever.less}, ${lever.more}`]);
