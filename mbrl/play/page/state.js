// What the server has told: moments, status, images. Everything else draws from here and asks through `send`.

export const state = {
  about: null,        // what is played: task, model, levers, pilots, ...
  status: {},         // runs, pilot, temperature, ... as the server has them
  moments: new Map(), // id -> record, in the order in which they came
  children: new Map(),// id -> ids
  here: null,         // id
  looked: null,       // id of a moment that is looked at without being there
  path: [],           // ids from the start to here
  on: new Set(),      // the same
  version: 0,         // grows with every change of moments
};

const KEPT = 3000; // moments whose images are held
const images = new Map();
const asked = new Set();

export function take(told) {
  if (told.about) state.about = told.about;
  if (told.whole) {
    state.moments.clear();
    state.children.clear();
  }
  for (const moment of told.moments) {
    state.moments.set(moment.id, moment);
    if (moment.parent !== null) {
      if (!state.children.has(moment.parent)) state.children.set(moment.parent, []);
      state.children.get(moment.parent).push(moment.id);
    }
  }
  const { about, whole, moments, here, ...status } = told;
  state.status = status;
  if (whole || moments.length || here !== state.here) {
    state.here = here;
    state.path = [];
    for (let at = state.moments.get(here); at; at = state.moments.get(at.parent)) state.path.push(at.id);
    state.path.reverse();
    state.on = new Set(state.path);
    state.version += 1;
  }
}

export function remember(id, bytes) {
  images.delete(id);
  images.set(id, bytes);
  if (images.size > KEPT) images.delete(images.keys().next().value);
}

// The images of a moment, uint8: dream, then simulator; undefined while they are fetched.
export function imagesOf(id, arrived) {
  if (!images.has(id) && !asked.has(id)) {
    asked.add(id);
    fetch(`/moments/${id}`)
      .then((answer) => (answer.ok ? answer.arrayBuffer() : Promise.reject()))
      .then((buffer) => { remember(id, new Uint8Array(buffer)); arrived(); })
      .catch(() => {})
      .finally(() => asked.delete(id));
  }
  return images.get(id);
}

export const moment = (id) => state.moments.get(id);
export const shown = () => moment(state.looked ?? state.here) ?? moment(state.here);

// `length of a JSON text | the text | bytes`, as the server packs it.
export function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const told = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return [told, new Uint8Array(buffer, 4 + length)];
}

export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const ownColour = (pilot) => colour(["you", "policy", "expert", "planner"].includes(pilot) ? pilot : "dim");
