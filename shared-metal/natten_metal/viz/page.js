// The page: controls, numbers and what a picture says in words. START and EXAMPLES are written by page.py.

const element = (id) => document.getElementById(id);
const state = { settings: null, token: null, transposed: false, kernels: false, patch: "", bricks: "" };
let [placed, hovered, walk] = [null, null, null];

// --- settings in the address ----------------------------------------------------------------------------------------

function to_hash() {
  const parts = [...NUMBERS, ...SWITCHES].map((name) => `${name}=${state.settings[name].map(Number).join(",")}`);
  parts.push(`token=${state.token.join(",")}`);
  if (state.transposed) parts.push("view=queries");
  if (state.kernels) parts.push("kernels=1");
  if (state.patch) parts.push(`patch=${state.patch}`);
  if (state.bricks) parts.push(`bricks=${state.bricks}`);
  return `#${parts.join("&")}`;
}

// Read what an address says over the defaults; what it does not say, or says wrongly, stays as it is there.
function from_hash(hash) {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const number = (text) => (/^\d{1,9}$/.test(text) ? Number(text) : NaN);
  const numbers = (name) => (given.get(name) ?? "").split(",").map(number);
  const shape = numbers("shape");
  const rank = shape.length >= 1 && shape.length <= 3 && !shape.some(Number.isNaN) ? shape.length : 0;
  const settings = of_rank(START, rank || START.shape.length);
  for (const name of rank ? [...NUMBERS, ...SWITCHES] : []) {
    const values = numbers(name);
    if (values.length !== rank || values.some(Number.isNaN)) continue;
    settings[name] = SWITCHES.includes(name) ? values.map(Boolean) : values;
  }
  const token = numbers("token");
  state.settings = settings;
  state.token = token.length === settings.shape.length && !token.some(Number.isNaN) ? token : centers(settings);
  state.transposed = given.get("view") === "queries";
  state.kernels = given.get("kernels") === "1";
  state.patch = given.get("patch") ?? "";
  state.bricks = ["rows", "flat"].find((name) => name === given.get("bricks")) ?? "";
}

const centers = (settings) => settings.shape.map((length) => div(length, 2));

// Settings with another number of axes: the first ones, and the last of them again for those that are missing.
function of_rank(settings, rank) {
  const fitted = (values) => Array.from({ length: rank }, (_, a) => values[Math.min(a, values.length - 1)]);
  return Object.fromEntries([...NUMBERS, ...SWITCHES].map((name) => [name, fitted(settings[name])]));
}

// --- controls -------------------------------------------------------------------------------------------------------

// One input of the table of axes, or of the token.
function input_of(name, axis, value) {
  const input = document.createElement("input");
  input.id = `${name}-${axis}`;
  input.setAttribute("aria-label", `${name}, axis ${axis}`);
  if (SWITCHES.includes(name)) {
    [input.type, input.checked] = ["checkbox", value];
    input.addEventListener("change", () => change(name, axis, input.checked));
  } else {
    [input.type, input.inputMode, input.min, input.step] = ["number", "numeric", name === "token" ? 0 : 1, 1];
    input.value = Number.isNaN(value) ? "" : value;
    input.addEventListener("input", () => change(name, axis, input.value === "" ? NaN : Number(input.value)));
  }
  return input;
}

function change(name, axis, value) {
  (name === "token" ? state.token : state.settings[name])[axis] = value;
  refresh();
}

function make_controls() {
  const rank = state.settings.shape.length;
  element("rank").value = rank;
  const rows = state.settings.shape.map((_, axis) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    [head.scope, head.textContent] = ["row", String(axis)];
    row.append(head);
    for (const name of [...NUMBERS, ...SWITCHES, "token"]) {
      const cell = document.createElement("td");
      cell.append(input_of(name, axis, (name === "token" ? state.token : state.settings[name])[axis]));
      row.append(cell);
    }
    return row;
  });
  element("axes").replaceChildren(...rows);
  const options = PATCHES[rank].map((patch) => new Option(`${patch.join(" x ")} rows`, patch.join(",")));
  element("patch").replaceChildren(new Option("with the fewest bricks", ""), ...options);
  if (!options.some((option) => option.value === state.patch)) state.patch = "";
  element("patch").value = state.patch;
  element("bricks").value = state.bricks;
  element("kernels").checked = state.kernels;
  element(state.transposed ? "view-queries" : "view-keys").checked = true;
}

// --- words and numbers ----------------------------------------------------------------------------------------------

// Tokens of one axis, in runs: "6-10", "14-15, 0-2", "2, 5, 8 ... 20".
function listed(tokens, step) {
  const runs = [];
  for (const token of tokens) {
    const run = runs.at(-1);
    if (run && token === run[1] + step) run[1] = token;
    else runs.push([token, token]);
  }
  const every = step > 1 ? ` by ${step}` : "";
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}${every}`)).join(", ");
}

// A token in words: a number on a single axis.
const named = (token) => (token.length === 1 ? String(token[0]) : tuple(token));

function sentence(settings, transposed, token) {
  const axes = axes_of(settings);
  const found = axes.map((axis, a) => seen(axis, transposed, token[a]));
  const [one, others, does] = transposed ? ["Key", "queries", "is seen by"] : ["Query", "keys", "attends to"];
  const count = product(found.map((tokens) => tokens.length));
  const where = found.map((tokens, a) => `axis ${a}: ${listed(tokens, axes[a].dilation) || "none"}`).join("; ");
  const of = `${grouped(count)} of ${grouped(product(settings.shape))} ${others}`;
  const said = [`${one} ${named(token)} ${does} ${of}: ${where}.`];
  if (!transposed && settings.stride.some((s) => s > 1)) {
    const groups = axes.map((axis, a) => stride_group(axis, token[a]));
    const mates = Number(product(groups.map(({ mates }) => mates.length)));
    said.push(`Its leader is ${named(groups.map(({ leader }) => leader))}; ${mates} queries are in the group.`);
  }
  if (settings.dilation.some((d) => d > 1)) {
    said.push(`Dilation group ${named(token.map((t, a) => t % settings.dilation[a]))}.`);
  }
  return said.join(" ");
}

// What the patch of the token reads.
function sentence_of_kernels(settings, transposed, token, { patch, flat }) {
  const boxes = sight(settings, transposed, token, patch).map(({ box }) => box);
  const sizes = boxes.map(({ columns }) => columns.length);
  const { executed, full } = patch_bricks(boxes, flat);
  const [rows, columns] = transposed ? ["keys", "queries"] : ["queries", "keys"];
  const held = boxes.map((box) => box.rows.length).join(" x ");
  const read = `a box of ${sizes.join(" x ")} ${columns}: ${grouped(executed)} ${flat ? "flat bricks" : "bricks"}`;
  const twice = transposed && settings.wrap.some(Boolean);
  const note = twice ? " A key near an end that wraps is in two patches; this is one of them." : "";
  const unmasked = full === executed ? "all" : full ? grouped(full) : "none";
  return `Its patch of ${held} ${rows} reads ${read}, ${unmasked} of them without a mask.${note}`;
}

const grouped = (count) => count.toLocaleString("en-US");
const rounded = (value) => (value >= 100 ? grouped(Math.round(value)) : value.toPrecision(3));

// The call in Python; what has its default is left out, and one value stands for equal ones.
function call_of(settings) {
  const python = (value) => (typeof value === "boolean" ? (value ? "True" : "False") : String(value));
  const shown_as = (values) => (new Set(values).size === 1 ? python(values[0]) : tuple(values.map(python)));
  const defaults = { stride: 1, dilation: 1, is_causal: false, wrap: false };
  const given = Object.entries(defaults).filter(([name, value]) => settings[name].some((each) => each !== value));
  const parts = ["query, key, value", `kernel_size=${shown_as(settings.kernel_size)}`];
  parts.push(...given.map(([name]) => `${name}=${shown_as(settings[name])}`));
  return `na${settings.shape.length}d(${parts.join(", ")})`;
}

function write_numbers(settings, walk) {
  const found = work(settings, walk, state.transposed);
  const mean = Number(found.pairs) / Number(found.tokens);
  const texts = {
    tokens: grouped(found.tokens),
    keys: settings.is_causal.some(Boolean) ? `${rounded(mean)} on average` : grouped(Math.round(mean)),
    sparsity: `${(100 * found.sparsity).toFixed(2)} %`,
    ideal: `${rounded(found.ideal)}x`,
    rows: `${walk.patch.join(" x ")} ${state.transposed ? "keys" : "queries"}`,
    bricks: `${grouped(found.executed)}${walk.flat ? ", flat" : ""}`,
    full: `${grouped(found.full)} (${((100 * Number(found.full)) / Number(found.executed)).toFixed(0)} %)`,
    ratio: found.ratio.toFixed(2),
    speed: `${rounded(found.with_bricks)}x`,
  };
  for (const [name, text] of Object.entries(texts)) element(`number-${name}`).textContent = text;
}

// --- the page -------------------------------------------------------------------------------------------------------

function legal_token(token, shape) {
  return token.map((t, a) => Math.min(Math.max(Number.isInteger(t) ? t : 0, 0), shape[a] - 1));
}

function chosen_walk() {
  const patch = state.patch ? state.patch.split(",").map(Number) : null;
  const flat = state.bricks ? state.bricks === "flat" : null;
  return best_walk(state.settings, state.transposed, patch, flat);
}

// Show the settings: the rule that they break, or the picture, the numbers and the link.
function refresh() {
  const { settings } = state;
  const broken = broken_rule(settings);
  element("error").textContent = broken ? broken.message : "";
  for (const name of [...NUMBERS, ...SWITCHES]) {
    for (const axis of settings.shape.keys()) {
      const wrong = broken !== null && broken.axis === axis && broken.names.includes(name);
      element(`${name}-${axis}`).setAttribute("aria-invalid", String(wrong));
    }
  }
  document.body.classList.toggle("broken", broken !== null);
  if (broken) return;
  walk = chosen_walk();
  write_numbers(settings, walk);
  element("call").textContent = call_of(settings);
  history.replaceState(null, "", to_hash());
  show();
}

// The picture of the token under the pointer, or else of the chosen one.
function show() {
  const { settings, transposed, kernels } = state;
  if (broken_rule(settings)) return;
  const token = legal_token(hovered ?? state.token, settings.shape);
  const fixed = legal_token(state.token, settings.shape);
  // Where the picture is cut out of a larger one follows the chosen token alone, so that nothing moves under a pointer.
  placed = draw(element("picture"), settings, { transposed, kernels, token, ...walk, center: fixed });
  const said = [sentence(settings, transposed, token)];
  if (kernels) said.push(sentence_of_kernels(settings, transposed, token, walk));
  element("said").textContent = said.join(" ");
  const legend = { keys: !transposed, queries: transposed, kernels, matrix: settings.shape.length === 1 };
  legend.strides = !transposed && settings.stride.some((s) => s > 1);
  legend.dilated = settings.dilation.some((d) => d > 1);
  element("legend").className = Object.keys(legend).filter((name) => legend[name]).join(" ");
  element("token-head").textContent = transposed ? "key" : "query";
}

function choose(token) {
  state.token = legal_token(token, state.settings.shape);
  for (const [axis, t] of state.token.entries()) element(`token-${axis}`).value = t;
  hovered = null;
  refresh();
}

// Whether the settings break a rule: the picture is that of earlier ones then, or there is none yet.
const is_broken = () => document.body.classList.contains("broken");

function point(event) {
  if (is_broken()) return null;
  const box = element("picture").getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  return token_under(placed, state.settings.shape.length, state.transposed, x, y);
}

// Keys of the keyboard: the axis that they move along, from the last one, and by how much.
const MOVES = {
  ArrowUp: [2, -1], ArrowDown: [2, 1], ArrowLeft: [1, -1], ArrowRight: [1, 1], PageUp: [3, -1], PageDown: [3, 1],
};

function press(event) {
  const [from_end, by] = MOVES[event.key] ?? [0, 0];
  const rank = state.settings.shape.length;
  const axis = rank === 1 && from_end === 2 ? 0 : rank - from_end;
  if (!by || axis < 0 || is_broken() || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  const token = legal_token(state.token, state.settings.shape);
  token[axis] += by;
  choose(token);
}

function hover(event) {
  if (event.pointerType === "touch" || is_broken()) return;
  hovered = point(event);
  show();
}

function change_rank(rank) {
  const last = state.token.length - 1;
  state.settings = of_rank(state.settings, rank);
  state.token = Array.from({ length: rank }, (_, a) => state.token[Math.min(a, last)]);
  [state.patch, hovered] = ["", null];
  start();
}

function take_example(name) {
  const example = EXAMPLES.find((each) => each.name === name);
  if (!example) return;
  state.settings = structuredClone(example.settings);
  [state.token, state.patch, hovered] = [centers(state.settings), "", null];
  start();
}

async function copy_link() {
  const copied = await navigator.clipboard?.writeText(location.href).then(() => true, () => false);
  element("copied").textContent = copied ? "copied" : "copy it from the address bar";
}

function on(id, event, action) {
  element(id).addEventListener(event, (happened) => action(happened.target, happened));
}

function listen() {
  on("picture", "pointermove", (_, event) => hover(event));
  on("picture", "pointerleave", () => {
    hovered = null;
    show();
  });
  on("picture", "click", (_, event) => choose(point(event) ?? state.token));
  on("picture", "keydown", (_, event) => press(event));
  on("rank", "change", ({ value }) => change_rank(Number(value)));
  on("example", "change", ({ value }) => take_example(value));
  const set = (name, value) => {
    state[name] = value;
    refresh();
  };
  on("view-keys", "change", () => set("transposed", false));
  on("view-queries", "change", () => set("transposed", true));
  on("kernels", "change", ({ checked }) => set("kernels", checked));
  on("patch", "change", ({ value }) => set("patch", value));
  on("bricks", "change", ({ value }) => set("bricks", value));
  on("theme", "change", ({ value }) => {
    document.documentElement.dataset.theme = value;
    show();
  });
  on("link", "click", copy_link);
  globalThis.addEventListener("hashchange", () => {
    from_hash(location.hash);
    start();
  });
  globalThis.addEventListener("resize", show);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
}

function start() {
  make_controls();
  refresh();
}

element("example").append(...EXAMPLES.map(({ name }) => new Option(name, name)));
from_hash(location.hash);
listen();
start();
