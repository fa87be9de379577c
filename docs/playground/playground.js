// The page of the playground: an editor whose text a worker checks.
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { HighlightStyle, StreamLanguage, bracketMatching, indentUnit, syntaxHighlighting } from "@codemirror/language";
import { lintGutter, setDiagnostics } from "@codemirror/lint";
import { EditorState, StateEffect, StateField } from "@codemirror/state";
import { Decoration, EditorView, WidgetType, drawSelection, keymap, lineNumbers } from "@codemirror/view";
import { tags } from "@lezer/highlight";
import { parser } from "./cnn.js";

const DELAY = 250; // milliseconds after the last key
const LIMIT = 10000; // milliseconds of one check
const MAX_TEXT = 200000; // characters of a shared text
const FIRST = "resnet20";
const element = (id) => document.getElementById(id);
const status = (text) => { element("status").textContent = text; };

function make(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

// --- the worker -----------------------------------------------------------------------------------

let worker = null;
let waiting = null; // the call in progress: {id, resolve, reject, timer}
let calls = 0;
let booted = false;

function startWorker() {
  // A worker made from a blob inherits the content security policy of the page.
  const script = `import ${JSON.stringify(new URL("worker.js", import.meta.url).href)};`;
  const url = URL.createObjectURL(new Blob([script], { type: "text/javascript" }));
  const started = new Worker(url, { type: "module" });
  booted = false;
  // Messages that arrive before the worker has loaded its modules would be lost.
  const ready = new Promise((resolve, reject) => {
    started.onmessage = ({ data }) => {
      if (data.id === 0) {
        booted = !data.error;
        if (data.error) reject(new Error(data.error)); else resolve();
      } else if (waiting && waiting.id === data.id) {
        const { resolve: done, reject: failed, timer } = waiting;
        waiting = null;
        clearTimeout(timer);
        if (!data.error) { done(data.value); return; }
        restartWorker(); // Python may have ended: it cannot go on after an overflow of its stack
        failed(new Error(data.error));
      }
    };
    started.onerror = (event) => reject(new Error(event.message || "the worker cannot be loaded"));
  });
  ready.catch(() => {});
  worker = { started, ready };
}

function restartWorker() {
  worker.started.terminate();
  startWorker();
}

async function call(name, ...values) {
  if (!booted) status("loading Python …");
  await worker.ready;
  const id = (calls += 1);
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      waiting = null;
      restartWorker();
      reject(new Error(`stopped after ${LIMIT / 1000} s`));
    }, LIMIT);
    waiting = { id, resolve, reject, timer };
    worker.started.postMessage({ id, name, values });
  });
}

// One call at a time: the worker has one thread.
let queue = Promise.resolve();
const inTurn = (name, ...values) => (queue = queue.catch(() => {}).then(() => call(name, ...values)));

// --- the editor -----------------------------------------------------------------------------------

const colors = HighlightStyle.define([
  { tag: tags.keyword, color: "var(--keyword)" },
  { tag: tags.function(tags.variableName), color: "var(--call)" },
  { tag: tags.labelName, color: "var(--label)" },
  { tag: tags.number, color: "var(--number)" },
  { tag: tags.string, color: "var(--string)" },
  { tag: tags.comment, color: "var(--muted)", fontStyle: "italic" },
]);

class Shape extends WidgetType {
  constructor(text) { super(); this.text = text; }
  eq(other) { return other.text === this.text; }
  toDOM() { return make("span", this.text, { className: "cm-shape", ariaHidden: "true" }); }
}

const setShapes = StateEffect.define();
const shapes = StateField.define({
  create: () => Decoration.none,
  update(value, transaction) {
    let found = value.map(transaction.changes);
    for (const effect of transaction.effects) if (effect.is(setShapes)) found = effect.value;
    return found;
  },
  provide: (field) => EditorView.decorations.from(field),
});

const theme = EditorView.theme({
  "&": { height: "100%", color: "var(--text)", backgroundColor: "var(--page)" },
  "&.cm-focused": { outline: "none" },
  ".cm-scroller": { font: "13px/1.55 'DejaVu Sans Mono', Menlo, Consolas, monospace", overflow: "auto" },
  ".cm-content": { caretColor: "var(--text)" },
  ".cm-cursor": { borderLeftColor: "var(--text)" },
  ".cm-gutters": { backgroundColor: "var(--panel)", color: "var(--muted)", borderRight: "1px solid var(--line)" },
  "&.cm-focused > .cm-scroller > .cm-selectionLayer .cm-selectionBackground, .cm-selectionBackground":
    { backgroundColor: "color-mix(in srgb, var(--accent) 30%, transparent)" },
  ".cm-tooltip": { backgroundColor: "var(--panel)", color: "var(--text)", border: "1px solid var(--line)" },
  ".cm-shape": { color: "var(--muted)", paddingLeft: "2em", fontSize: "11.5px", whiteSpace: "pre" },
});

const host = element("editor").attachShadow({ mode: "open" }); // its style sheets are constructed, not inline
const view = new EditorView({
  parent: host,
  root: host,
  state: EditorState.create({
    extensions: [
      lineNumbers(), lintGutter(), history(), drawSelection(), bracketMatching(), indentUnit.of("    "),
      keymap.of([...defaultKeymap, ...historyKeymap, indentWithTab]), StreamLanguage.define(parser), syntaxHighlighting(colors), shapes,
      theme, EditorView.lineWrapping, EditorView.contentAttributes.of({ "aria-label": "Spec" }),
      EditorView.updateListener.of((update) => { if (update.docChanged) schedule(); }),
    ],
  }),
});
host.firstElementChild.style.height = "100%";

function setText(text) {
  const old = view.state.doc.toString();
  let start = 0;
  let end = 0;
  const least = Math.min(old.length, text.length);
  while (start < least && old[start] === text[start]) start += 1;
  while (end < least - start && old[old.length - 1 - end] === text[text.length - 1 - end]) end += 1;
  view.dispatch({ changes: { from: start, to: old.length - end, insert: text.slice(start, text.length - end) } });
}

// --- results --------------------------------------------------------------------------------------

let timer = 0;
let latest = 0;

function schedule() {
  clearTimeout(timer);
  timer = setTimeout(update, DELAY);
}

async function update() {
  const number = (latest += 1);
  const text = view.state.doc.toString();
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  await queue.catch(() => {});
  if (number !== latest) return; // a newer text waits
  status("checking …");
  try {
    const found = JSON.parse(await inTurn("check", text, dark ? "dark" : "light"));
    if (number === latest && text === view.state.doc.toString()) show(found);
  } catch (error) {
    if (number === latest) fail(error);
  }
}

function fail(error) {
  status("the check failed");
  element("diagnostics").replaceChildren(make("article"));
  element("diagnostics").firstChild.append(make("pre", `the check failed: ${error.message}`));
  markStale(true);
}

function markStale(stale) {
  for (const id of ["diagram", "summary"]) element(id).classList.toggle("stale", stale);
}

function show(found) {
  const errors = found.diagnostics.filter((one) => one.severity === "error").length;
  const warnings = found.diagnostics.length - errors;
  const count = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  status([errors && count(errors, "error"), warnings && count(warnings, "warning")].filter(Boolean).join(", ") || "no errors");
  showDiagnostics(found.diagnostics);
  const doc = view.state.doc;
  const widgets = Object.entries(found.shapes || {}).map(([line, text]) =>
    Decoration.widget({ widget: new Shape(text), side: 1 }).range(doc.line(Number(line)).to));
  view.dispatch({ effects: setShapes.of(Decoration.set(widgets, true)) });
  markStale(!found.rows);
  if (!found.rows) return;
  const picture = found.svg
    ? make("img", "", { alt: found.title, src: `data:image/svg+xml,${encodeURIComponent(found.svg)}` })
    : make("p", found.undrawn);
  element("diagram").replaceChildren(picture);
  const row = (cells, tag) => {
    const line = make("tr");
    line.append(...cells.map((cell) => make(tag, cell)));
    return line;
  };
  const table = make("table");
  table.append(row(found.head, "th"), ...found.rows.map((cells) => row(cells, "td")));
  element("summary").replaceChildren(table);
}

function showDiagnostics(diagnostics) {
  const marks = diagnostics.map((one) => ({
    from: one.from, to: one.to, severity: one.severity, message: `${one.code}: ${one.message}`,
    actions: one.fixes.map((fix) => ({ name: "Fix", apply: () => setText(fix.text) })),
  }));
  view.dispatch(setDiagnostics(view.state, marks));
  const items = diagnostics.map((one) => {
    const item = make("article", "", { className: one.severity });
    item.append(make("pre", one.text));
    for (const fix of one.fixes) {
      item.append(make("button", `Fix: ${fix.help}`, { onclick: () => { setText(fix.text); view.focus(); } }));
    }
    return item;
  });
  element("diagnostics").replaceChildren(...(items.length ? items : [make("p", "No errors or warnings.")]));
}

// --- sharing: the text, compressed, in the fragment of the address, which is not sent to a server --

const through = (bytes, stream) => new Blob([bytes]).stream().pipeThrough(stream);

async function encode(text) {
  const packed = await new Response(through(new TextEncoder().encode(text), new CompressionStream("deflate-raw"))).arrayBuffer();
  const letters = Array.from(new Uint8Array(packed), (byte) => String.fromCharCode(byte)).join("");
  return btoa(letters).replaceAll("+", "-").replaceAll("/", "_").replace(/=+$/, "");
}

async function decode(encoded) {
  const letters = atob(encoded.replaceAll("-", "+").replaceAll("_", "/"));
  const packed = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
  const reader = through(packed, new DecompressionStream("deflate-raw")).pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    if (text.length > MAX_TEXT) throw new Error("too long");
  }
  return text;
}

async function readFragment() {
  if (!location.hash.startsWith("#spec=")) return false;
  try {
    setText(await decode(location.hash.slice("#spec=".length)));
  } catch {
    status("the link is damaged");
    return false;
  }
  return true;
}

element("share").addEventListener("click", async () => {
  window.history.replaceState(null, "", `#spec=${await encode(view.state.doc.toString())}`);
  let done = "Link copied";
  try {
    await navigator.clipboard.writeText(location.href);
  } catch {
    done = "Link in the address bar";
  }
  element("share").textContent = done;
  setTimeout(() => { element("share").textContent = "Share"; }, 2000);
});

// --- controls -------------------------------------------------------------------------------------

const tabs = [...document.querySelectorAll("[role=tab]")];
for (const tab of tabs) {
  tab.addEventListener("click", () => {
    for (const other of tabs) {
      other.setAttribute("aria-selected", String(other === tab));
      element(other.getAttribute("aria-controls")).hidden = other !== tab;
    }
  });
}

element("format").addEventListener("click", async () => {
  const text = view.state.doc.toString();
  const formatted = await inTurn("format", text);
  if (text === view.state.doc.toString()) setText(formatted);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", schedule);
addEventListener("hashchange", readFragment);

async function start() {
  startWorker();
  const shared = await readFragment();
  const texts = JSON.parse(await inTurn("examples"));
  const choice = element("examples");
  if (shared) choice.append(make("option", "shared"));
  choice.append(...Object.keys(texts).map((name) => make("option", name)));
  choice.addEventListener("change", () => {
    if (!texts[choice.value]) return;
    setText(texts[choice.value]);
    view.dispatch({ selection: { anchor: 0 }, scrollIntoView: true });
  });
  choice.disabled = element("format").disabled = false;
  if (shared || view.state.doc.length) await update(); else setText(texts[FIRST]);
}

start().catch((error) => { status(`the playground cannot start: ${error.message}`); });
