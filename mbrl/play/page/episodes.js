// The dialog in which a moment of a recorded episode is picked.

import { state, unpack } from "./state.js";
import { paint } from "./images.js";

const find = (id) => document.querySelector(id);
let frames = null, ask = () => {}, newest = 0;

export async function openEpisodes(send) {
  ask = send;
  const answer = await fetch("/episodes");
  if (!answer.ok) return;
  const sources = await answer.json();
  find("#source").replaceChildren(...Object.entries(sources).map(([name, { title, count }]) => {
    const option = new Option(count === null ? title : `${title} (${count})`, name);
    option.disabled = count === 0;
    return option;
  }));
  const usable = [...find("#source").options].find((option) => !option.disabled);
  if (usable) find("#source").value = usable.value;
  find("#episodes").showModal();
  load();
}

async function load() {
  const source = find("#source").value, number = Number(find("#number").value), own = ++newest;
  find("#told").textContent = "looking …";
  find("#begin").disabled = true;
  const answer = source ? await fetch(`/episodes/${source}/${number}`) : null;
  if (own !== newest) return; // another one was asked for since
  if (!answer?.ok) {
    find("#told").textContent = answer ? await answer.text() : "there are none yet";
    return;
  }
  const [told, bytes] = unpack(await answer.arrayBuffer());
  frames = bytes;
  find("#decision").max = told.decisions;
  find("#told").textContent = told.success.length ? `first success: decision ${told.success[0] + 1}` : "without a success";
  find("#begin").disabled = false;
  show();
}

function show() {
  const at = Number(find("#decision").value), size = state.about.size, from = at * 3 * size * size;
  find("#decision-is").textContent = at;
  paint(find("#preview"), size, (i) => frames[from + i]);
}

find("#source").onchange = load;
find("#number").oninput = load;
find("#decision").oninput = () => { if (frames) show(); };
find("#episodes").addEventListener("close", () => {
  if (find("#episodes").returnValue === "begin") {
    ask("start", { source: find("#source").value, number: Number(find("#number").value), decision: Number(find("#decision").value) });
  }
});
