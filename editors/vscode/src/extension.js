// The client of the language server, and the diagram next to the text.
"use strict";

const vscode = require("vscode");
const { CloseAction, LanguageClient } = require("vscode-languageclient/node");
const { previewPage } = require("./page.js");

/** Milliseconds without an edit after which the diagram is drawn again. */
const QUIET = 250;

/** A client that only logs why a server does not start: `startClient` shows one message for all reasons. */
class Client extends LanguageClient {
  starting = false;

  /** @param {string} command @param {string[]} args */
  constructor(command, args) {
    super("cnnspec", "cnnspec", { command, args }, {
      documentSelector: [{ language: "cnn" }],
      outputChannelName: "cnnspec",
      initializationFailedHandler: () => false,
      errorHandler: {
        error: async (...failed) => ({ ...(await this.usual.error(...failed)), handled: !this.isRunning() }),
        closed: () => this.isRunning() ? this.usual.closed() : { action: CloseAction.DoNotRestart, handled: true },
      },
    });
    this.usual = this.createDefaultErrorHandler();
  }

  async start() {
    this.starting = true;
    try {
      await super.start();
      if (!this.isRunning()) throw new Error("the server has ended"); // `super.start` misses it
    } finally {
      this.starting = false;
    }
  }

  /** @param {string} message @param {any} [data] @param {boolean | "force"} [notify] */
  error(message, data, notify) {
    super.error(message, data, this.starting ? false : notify);
  }
}

/** @type {Client | undefined} */
let client;

async function startClient() {
  const [command, ...args] = vscode.workspace.getConfiguration("cnnspec").get("command", ["cnnspec", "lsp"]);
  const starting = (client = new Client(command, args));
  try {
    await starting.start();
  } catch (error) {
    if (client !== starting) return; // `stopClient` has ended it
    client = undefined;
    const choice = await vscode.window.showErrorMessage(
      `cannot start \`${[command, ...args].join(" ")}\`: install it with \`pip install 'cnnspec[lsp]'\`, or change the setting`,
      "Open Setting",
    );
    if (choice !== undefined) {
      await vscode.commands.executeCommand("workbench.action.openSettings", "cnnspec.command");
    }
  }
}

async function stopClient() {
  const running = client;
  client = undefined;
  await running?.stop().catch(() => {}); // of a server that hangs; its process is ended nevertheless
}

/** The diagram of one document, in a panel that follows its edits. */
class Preview {
  /** @type {Map<string, Preview>} */
  static open = new Map();

  /** @param {vscode.Uri} uri */
  static show(uri) {
    const key = uri.toString();
    const preview = Preview.open.get(key);
    if (preview !== undefined) {
      preview.panel.reveal(undefined, true);
      return;
    }
    Preview.open.set(key, new Preview(uri));
  }

  /** @param {vscode.Uri} uri */
  constructor(uri) {
    this.uri = uri;
    this.timer = undefined;
    this.drawing = 0;
    this.svg = "";
    const column = { viewColumn: vscode.ViewColumn.Beside, preserveFocus: true };
    const options = { enableScripts: false, enableCommandUris: false, localResourceRoots: [] };
    const name = uri.path.split("/").at(-1);
    this.panel = vscode.window.createWebviewPanel("cnnspec.preview", `Diagram of ${name}`, column, options);
    const isOwn = (/** @type {vscode.Uri} */ other) => other.toString() === uri.toString();
    const subscriptions = [
      vscode.workspace.onDidChangeTextDocument((event) => isOwn(event.document.uri) && this.schedule()),
      vscode.languages.onDidChangeDiagnostics((event) => event.uris.some(isOwn) && this.schedule()),
    ];
    this.panel.onDidDispose(() => {
      clearTimeout(this.timer);
      subscriptions.forEach((subscription) => subscription.dispose());
      Preview.open.delete(uri.toString());
    });
    void this.draw();
  }

  schedule() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.draw(), QUIET);
  }

  async draw() {
    const number = ++this.drawing;
    const note = await this.update();
    if (number === this.drawing && Preview.open.get(this.uri.toString()) === this) {
      this.panel.webview.html = previewPage(this.svg, note);
    }
  }

  /** Draws the diagram if the text has no errors, and returns a note if it shows an earlier text or nothing. */
  async update() {
    const severity = vscode.DiagnosticSeverity.Error;
    if (vscode.languages.getDiagnostics(this.uri).some((diagnostic) => diagnostic.severity === severity)) {
      return this.svg ? "The spec has errors; this is its last diagram without errors." : "The spec has errors.";
    }
    const document = vscode.workspace.textDocuments.find((each) => each.uri.toString() === this.uri.toString());
    if (document !== undefined && !/^\s*(input|extends)\b/m.test(document.getText())) {
      this.svg = "";
      return "The spec defines no network.";
    }
    if (client === undefined) {
      return "The language server does not run.";
    }
    try {
      const parameters = { command: "cnnspec.draw", arguments: [this.uri.toString(), "svg"] };
      const drawn = await client.sendRequest("workspace/executeCommand", parameters);
      this.svg = drawn;
      return "";
    } catch (error) {
      return `${error instanceof Error ? error.message : error}`;
    }
  }
}

/** @param {vscode.ExtensionContext} context */
async function activate(context) {
  context.subscriptions.push(
    vscode.commands.registerCommand("cnnspec.showPreview", (/** @type {vscode.Uri | undefined} */ given) => {
      const uri = given instanceof vscode.Uri ? given : vscode.window.activeTextEditor?.document.uri;
      if (uri !== undefined) {
        Preview.show(uri);
      }
    }),
    vscode.commands.registerCommand("cnnspec.restart", async () => {
      await stopClient();
      await startClient();
    }),
  );
  await startClient();
}

module.exports = { activate, deactivate: stopClient };
