// The page: it connects, sends what is pressed, and draws what it is told.

import { state, take, remember, unpack, moment, ownColour } from "./state.js";
import { drawImages } from "./images.js";
import { drawPlot, listen } from "./plot.js";
import * as hands from "./hands.js";
import { openEpisodes } from "./episodes.js";

const find = (id) => document.querySelector(id);
const WAIT_MS = [300, 600, 1200, 2500, 5000]; // before it tries to connect again

const PATIENCE_MS = 700; // for a decision, before the page says who is thinking about it

let socket = null, tries = 0, arrived = 0, dirty = false, seq = 0, noted = -1;
const waiting = []; // [seq, when] of holds that no image has heeded yet
const delays = [];

// -- the connection ---------------------------------------------------------------------------------------------------

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/ws`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { tries = 0; waiting.length = 0; seq = 0; link(true); };
  socket.onclose = () => {
    link(false);
    setTimeout(connect, WAIT_MS[Math.min(tries++, WAIT_MS.length - 1)]);
  };
  socket.onmessage = (event) => {
    const [told, bytes] = unpack(event.data);
    const first = !state.about || told.about;
    if (told.here !== state.here) arrived = performance.now();
    take(told);
    remember(state.here, bytes);
    if (first) setUp();
    if (told.complaint) note(told.complaint, true);
    if (told.notes !== noted) {
      if (noted >= 0 || told.note) note(told.note, told.fault);
      noted = told.notes;
    }
    measure(told.heeded);
    redraw();
  };
}

function link(there) {
  document.body.classList.toggle("lost", !there);
  find("#link").textContent = there ? "connected" : "connection lost, trying again";
}

export function send(name, fields = {}) {
  if (socket?.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ do: name, ...fields }));
}

function hold(action, moving) {
  seq += 1;
  if (moving) {
    find("#hint").classList.add("gone");
    waiting.push([seq, performance.now()]);
    if (waiting.length > 50) waiting.shift();
  }
  send("hold", { action, moving, seq });
}

// The time from a key to the first image that heeds it. Only the first of several keys between two images counts.
function measure(heeded) {
  const done = waiting.filter(([number]) => number <= heeded);
  if (!done.length) return;
  waiting.splice(0, waiting.length, ...waiting.filter(([number]) => number > heeded));
  const [, when] = done[done.length - 1];
  requestAnimationFrame(() => {
    delays.push(performance.now() - when);
    if (delays.length > 21) delays.shift();
    const median = [...delays].sort((a, b) => a - b)[delays.length >> 1];
    find("#delay").textContent = `key ${median.toFixed(0)} ms`;
    document.body.dataset.delay = median.toFixed(1);
  });
}

// -- drawing ----------------------------------------------------------------------------------------------------------

export function redraw() {
  if (dirty) return;
  dirty = true;
  requestAnimationFrame(() => {
    dirty = false;
    if (!state.about) return;
    drawImages(redraw);
    drawPlot();
    drawStatus();
    hands.drawHands(find("#hands"));
  });
}

function note(text, fault) {
  const host = find("#note");
  host.textContent = text;
  host.title = text;
  host.classList.toggle("fault", Boolean(fault));
  host.classList.add("fresh");
  clearTimeout(note.timer);
  note.timer = setTimeout(() => host.classList.remove("fresh"), 6000);
}

function drawStatus() {
  const { status } = state, at = moment(state.here);
  document.body.classList.toggle("runs", status.runs);
  document.body.dataset.here = state.here;
  find("#rate").textContent = status.rate ? `${status.rate.toFixed(1)} a second` : "";
  const does = status.runs && performance.now() - arrived > PATIENCE_MS ? "thinks …" : "drives";
  find("#where").textContent = `decision ${at.depth}` + (status.pilot === "you" ? "" : `, ${status.pilot} ${does}`);
  for (const button of find("#pilots").children) button.setAttribute("aria-pressed", button.dataset.name === status.pilot);
  find("#score").hidden = !status.played;
  find("#score").textContent = `solved ${status.solved} of ${status.played}`;
  if (status.pilot !== "you") find("#hint").classList.add("gone");
  find("#eyes-row").hidden = status.pilot !== "policy";
  find("#again-row").hidden = status.pilot === "you";
  set("#eyes", status.eyes);
  find("#again").checked = status.again;
  set("#temperature", status.temperature);
  find("#temperature-is").textContent = status.temperature ? status.temperature.toFixed(2) : "0";
  set("#speed", status.speed);
  find("#speed-is").textContent = status.speed;
  const every = find("#wake-every");
  if (![...every.options].some((option) => option.value === String(status.wake_every))) every.add(new Option(status.wake_every));
  set("#wake-every", status.wake_every);
}

function set(id, value) {
  const control = find(id);
  if (document.activeElement !== control || control.tagName === "SELECT") control.value = value;
}

// Images are enlarged by whole numbers of screen pixels, as far as the window has room.
function fit() {
  const size = state.about?.size ?? 64, ratio = window.devicePixelRatio || 1, narrow = innerWidth <= 860;
  const wide = narrow ? innerWidth - 28 : innerWidth - 28 - 248 - 10, across = narrow ? 2 : 3, high = innerHeight - 46 - 24 - 34 - 40 - 200 - 14;
  const cell = Math.min((wide - 10 * (across - 1)) / across, narrow ? Infinity : Math.max(high, 192));
  const times = Math.max(1, Math.floor((cell * ratio) / size));
  document.documentElement.style.setProperty("--cell", `${(times * size) / ratio}px`);
  redraw();
}

// -- what can be pressed ----------------------------------------------------------------------------------------------

function setUp() {
  const { about } = state;
  document.title = `${about.task} – dream and simulator`;
  find("#task").textContent = about.task;
  const own = about.run && about.model.startsWith(about.run), policy = about.run ? `policy of ${about.run}, frame ${about.frames.toLocaleString("en")}` : "";
  find("#model").textContent = own ? `dream and ${policy}` : `dream of ${about.model}` + (policy && `, ${policy}`);
  find("#model").title = find("#model").textContent;
  find("#pilots").replaceChildren(...["you", ...about.pilots].map((name, i) => {
    const button = document.createElement("button");
    Object.assign(button, { innerHTML: `${name[0].toUpperCase()}${name.slice(1)} <kbd>${i + 1}</kbd>` });
    button.dataset.name = name;
    button.style.setProperty("--own", `var(--${name})`);
    button.onclick = () => { send("pilot", { name }); button.blur(); };
    return button;
  }));
  hands.build(find("#hands"), hold);
  fit();
}

const back = () => { const at = moment(state.here); if (at?.parent !== null) send("go", { moment: at.parent }); };
const start = () => send("go", { moment: state.path[0] });
const run = () => send("run", { on: !state.status.runs });
const fresh = () => { const seed = Number(find("#seed").value); send("start", { source: "reset", number: seed, decision: 0 }); find("#seed").value = seed + 1; };
const save = async (format) => {
  note("filming …");
  const answer = await fetch(`/film.${format}`);
  if (!answer.ok) return note(await answer.text(), true);
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(await answer.blob()), download: `${state.about.task.replaceAll("/", "-")}.${format}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  note(`kept as ${link.download}`);
};
const theme = () => {
  const light = document.documentElement.classList.toggle("light");
  localStorage.setItem("theme", light ? "light" : "dark");
  redraw();
};
const help = () => {
  const rows = [...hands.keysOf(), [["Shift"], "slowly"], [["Space"], "go on, or stop"], [["."], "one decision"], [[","], "one decision back"],
    [["Home"], "to the start"], [["R"], "wake the dream"], [["N"], "a new episode"], [["1", "…"], "who drives"], [["K"], "keep as a demonstration"]];
  find("#all-keys").innerHTML = rows.map(([keys, does]) => `<dt>${keys.map((key) => `<kbd>${key}</kbd>`).join("")}</dt><dd>${does}</dd>`).join("");
  find("#keys").showModal();
};

const KEYS = {
  " ": run, ".": () => send("step"), ",": back, Home: start, r: () => send("wake"), n: fresh, k: () => send("keep"), "?": help,
};
for (const [id, does] of [["run", run], ["step", KEYS["."]], ["back", back], ["first", start], ["wake", KEYS.r], ["fresh", fresh],
  ["keep", KEYS.k], ["gif", () => save("gif")], ["mp4", () => save("mp4")], ["theme", theme], ["help", help], ["choose", () => openEpisodes(send)]]) {
  find(`#${id}`).addEventListener("click", (event) => { does(); event.currentTarget.blur(); });
}
find("#temperature").oninput = (event) => send("temperature", { value: Number(event.target.value) });
find("#speed").oninput = (event) => send("speed", { value: Number(event.target.value) });
find("#wake-every").onchange = (event) => { send("wake_every", { decisions: Number(event.target.value) }); event.target.blur(); };
find("#eyes").onchange = (event) => { send("eyes", { name: event.target.value }); event.target.blur(); };
find("#again").onchange = (event) => { send("again", { on: event.target.checked }); event.target.blur(); };

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input[type=number], select") || (event.target.matches("input[type=range]") && event.key.startsWith("Arrow"))) return;
  if (event.target.matches("button") && (event.key === " " || event.key === "Enter")) return;
  if (hands.press(event, true)) return event.preventDefault();
  if (event.repeat && !"., ".includes(event.key)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key, pilot = ["you", ...(state.about?.pilots ?? [])][Number(key) - 1];
  const does = KEYS[key] ?? (pilot && (() => send("pilot", { name: pilot })));
  if (does) {
    event.preventDefault();
    does();
  }
});
addEventListener("keyup", (event) => hands.press(event, false));
addEventListener("blur", hands.letGo);
document.addEventListener("visibilitychange", () => { if (document.hidden) hands.letGo(); });
addEventListener("resize", fit);
hands.onImage(find("#dream .image"), find("#stick"));
listen((id) => { if (state.looked !== id) { state.looked = id; redraw(); } }, (id) => send("go", { moment: id }));

setInterval(() => { if (state.status.runs) redraw(); }, PATIENCE_MS / 2);

let buttons = [];
(function poll() {
  if (state.about) hands.pollGamepad((now) => {
    if (now[9] && !buttons[9]) run();
    if (now[4] && !buttons[4]) back();
    if (now[5] && !buttons[5]) send("step");
    buttons = now;
  });
  requestAnimationFrame(poll);
})();

const chosen = localStorage.getItem("theme") ?? (matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark");
document.documentElement.classList.toggle("light", chosen === "light");
connect();
