// The extension with doubles of VS Code and of the client: when the diagram is drawn, and what the page says.
"use strict";

const assert = require("node:assert/strict");
const { createHash } = require("node:crypto");
const Module = require("node:module");
const { test, beforeEach } = require("node:test");
const { previewPage } = require("../src/page.js");

let state;
const disposable = (list, handler) => {
  list.push(handler);
  return { dispose: () => list.splice(list.indexOf(handler), 1) };
};
class Uri {
  constructor(path) {
    this.path = path;
  }
  toString() {
    return `file://${this.path}`;
  }
}
const vscode = {
  Uri,
  ViewColumn: { Beside: -2 },
  DiagnosticSeverity: { Error: 0, Warning: 1 },
  workspace: {
    getConfiguration: () => ({ get: (_key, usual) => state.command ?? usual }),
    onDidChangeTextDocument: (handler) => disposable(state.edits, handler),
    get textDocuments() {
      return [{ uri: state.uri, getText: () => state.text }];
    },
  },
  languages: {
    getDiagnostics: () => state.diagnostics,
    onDidChangeDiagnostics: (handler) => disposable(state.checks, handler),
  },
  window: {
    get activeTextEditor() {
      return { document: { uri: state.uri } };
    },
    showErrorMessage: async (message) => void state.messages.push(message),
    createWebviewPanel: (_type, title, column, options) => {
      const panel = { title, column, options, webview: { html: "" }, reveal: () => state.revealed++ };
      panel.onDidDispose = (handler) => (panel.dispose = handler);
      state.panels.push(panel);
      return panel;
    },
  },
  commands: { registerCommand: (name, handler) => ((state.commands[name] = handler), { dispose() {} }) },
};
class LanguageClient {
  constructor(_id, _name, server, options) {
    Object.assign(this, { server, options });
    state.clients.push(this);
  }
  createDefaultErrorHandler() {
    return { error: () => ({ action: "continue" }), closed: () => ({ action: "restart" }) };
  }
  isRunning() {
    return this.running === true;
  }
  error(message, _data, notify) {
    if (notify) vscode.window.showErrorMessage(message);
  }
  async start() {
    if (state.failing === "hangs") await new Promise((_resolve, reject) => (this.end = reject));
    if (state.failing === "ended") return; // the process ends while it is initialized
    if (state.failing) {
      this.error("couldn't create connection", undefined, "force");
      throw new Error("ENOENT");
    }
    this.running = true;
  }
  async stop() {
    this.stopped = true;
    if (this.end) throw new Error("Client is not running and can't be stopped. It's current state is: starting");
  }
  sendRequest(method, parameters) {
    state.requests.push([method, parameters]);
    return new Promise((resolve, reject) => state.answers.push({ resolve, reject }));
  }
}
const CloseAction = { DoNotRestart: "stay closed" };
const load = Module._load;
Module._load = (name, ...rest) =>
  name === "vscode" ? vscode : name === "vscode-languageclient/node" ? { CloseAction, LanguageClient } : load(name, ...rest);
const extension = require("../src/extension.js");

const settle = () => new Promise((resolve) => setImmediate(resolve));
const page = () => state.panels.at(-1).webview.html;
const drawing = () => Buffer.from(page().match(/base64,([^"]*)/)?.[1] ?? "", "base64").toString();

beforeEach(async () => {
  state = {
    uri: new Uri(`/a/net${Math.random()}.cnn`), text: "input 3x8x8\n", diagnostics: [], edits: [], checks: [],
    panels: [], messages: [], commands: {}, clients: [], requests: [], answers: [], revealed: 0,
  };
  await extension.activate({ subscriptions: [] });
});

async function show(svg) {
  state.commands["cnnspec.showPreview"]();
  await settle();
  state.answers.at(-1).resolve(svg);
  await settle();
}

async function edit(t, other = {}) {
  Object.assign(state, other);
  state.edits.forEach((handler) => handler({ document: { uri: state.uri } }));
  t.mock.timers.tick(1000);
  await settle();
}

test("the client starts the command of the setting for specs", () => {
  const [client] = state.clients;
  assert.deepEqual(client.server, { command: "cnnspec", args: ["lsp"] });
  assert.deepEqual(client.options.documentSelector, [{ language: "cnn" }]);
});

for (const failing of ["missing", "ended"]) {
  test(`a server that cannot start (${failing}) is reported once, with the setting`, async () => {
    Object.assign(state, { failing, command: ["/no/such", "lsp"] });
    await state.commands["cnnspec.restart"]();
    assert.equal(state.clients[0].stopped, true);
    const { initializationFailedHandler, errorHandler } = state.clients[1].options;
    assert.equal(initializationFailedHandler(new Error("EPIPE")), false);
    assert.deepEqual(await errorHandler.error(new Error("EPIPE")), { action: "continue", handled: true });
    assert.deepEqual(errorHandler.closed(), { action: "stay closed", handled: true });
    assert.equal(state.messages.length, 1);
    assert.match(state.messages[0], /cannot start `\/no\/such lsp`/);
  });
}

test("a server that hangs in its start is replaced by one that starts, without a message", async () => {
  state.failing = "hangs";
  const hanging = state.commands["cnnspec.restart"]();
  await settle();
  state.failing = undefined;
  await state.commands["cnnspec.restart"]();
  state.clients[1].end(new Error("the connection is closed"));
  await hanging;
  assert.deepEqual(state.clients.map(({ stopped, running }) => [stopped, running]), [
    [true, true], [true, undefined], [undefined, true],
  ]);
  assert.deepEqual(state.messages, []);
  state.commands["cnnspec.showPreview"]();
  await settle();
  assert.equal(state.requests.length, 1); // the new server draws
});

test("errors of a server that has started are shown, and it is started again", async () => {
  const [client] = state.clients;
  assert.deepEqual(await client.options.errorHandler.error(new Error("EPIPE")), { action: "continue", handled: false });
  assert.deepEqual(client.options.errorHandler.closed(), { action: "restart" });
  client.error("the server crashed", undefined, "force");
  assert.deepEqual(state.messages, ["the server crashed"]);
});

test("the diagram is drawn from the open text and follows its edits", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  await show("<svg>1</svg>");
  assert.equal(drawing(), "<svg>1</svg>");
  assert.deepEqual(state.requests[0], [
    "workspace/executeCommand",
    { command: "cnnspec.draw", arguments: [state.uri.toString(), "svg"] },
  ]);
  await edit(t);
  await edit(t); // the first drawing is not finished yet
  state.answers[2].resolve("<svg>3</svg>");
  await settle();
  state.answers[1].resolve("<svg>2</svg>");
  await settle();
  assert.equal(drawing(), "<svg>3</svg>");
});

test("edits in quick succession are drawn once, and other documents are ignored", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  await show("<svg/>");
  for (let i = 0; i < 5; i++) state.edits.forEach((handler) => handler({ document: { uri: state.uri } }));
  state.edits.forEach((handler) => handler({ document: { uri: new Uri("/other.cnn") } }));
  t.mock.timers.tick(1000);
  await settle();
  assert.equal(state.requests.length, 2);
});

test("a spec with errors keeps its last diagram, and one without a network has none", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  await show("<svg>old</svg>");
  await edit(t, { diagnostics: [{ severity: 0 }] });
  assert.equal(drawing(), "<svg>old</svg>");
  assert.match(page(), /The spec has errors; this is its last diagram/);
  await edit(t, { diagnostics: [{ severity: 1 }], text: "block a() {\n    relu\n}\n" });
  assert.match(page(), /defines no network/);
  assert.equal(drawing(), "");
  assert.equal(state.requests.length, 1);
});

test("a failed request is shown as text", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  await show("<svg>old</svg>");
  await edit(t);
  state.answers.at(-1).reject(new Error("<script>alert(1)</script>"));
  await settle();
  assert.match(page(), /alert\(1\)/);
  assert.ok(!page().includes("<script"));
  assert.equal(drawing(), "<svg>old</svg>");
});

test("a document has one panel, which stops when it is closed", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  await show("<svg/>");
  state.commands["cnnspec.showPreview"](state.uri);
  assert.deepEqual([state.panels.length, state.revealed], [1, 1]);
  assert.deepEqual(state.panels[0].options, { enableScripts: false, enableCommandUris: false, localResourceRoots: [] });
  state.panels[0].dispose();
  assert.deepEqual([state.edits.length, state.checks.length], [0, 0]);
  state.commands["cnnspec.showPreview"]();
  assert.equal(state.panels.length, 2);
});

test("the policy of the page allows its style and images, and nothing else", () => {
  const html = previewPage("<svg/>", "a & <b>");
  const style = html.match(/<style>(.*?)<\/style>/s)[1];
  const hash = createHash("sha256").update(style).digest("base64");
  const policy = html.match(/Content-Security-Policy" content="([^"]*)"/)[1];
  assert.equal(policy, `default-src 'none'; img-src data:; style-src 'sha256-${hash}'`);
  assert.ok(html.includes("a &#38; &#60;b&#62;"));
});
