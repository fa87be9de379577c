// Prints the scope of each UTF-16 unit of the files that are given, as JSON: a list of lines for each file.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const oniguruma = require("vscode-oniguruma");
const textmate = require("vscode-textmate");

const path = (name) => fileURLToPath(new URL(name, import.meta.url));
await oniguruma.loadWASM(readFileSync(require.resolve("vscode-oniguruma/release/onig.wasm")).buffer);
const registry = new textmate.Registry({
  onigLib: Promise.resolve({
    createOnigScanner: (patterns) => new oniguruma.OnigScanner(patterns),
    createOnigString: (text) => new oniguruma.OnigString(text),
  }),
  loadGrammar: async () =>
    textmate.parseRawGrammar(readFileSync(path("../syntaxes/cnn.tmLanguage.json"), "utf8"), "cnn.tmLanguage.json"),
});
const grammar = await registry.loadGrammar("source.cnn");

const files = process.argv.slice(2).map((file) => {
  let stack = textmate.INITIAL;
  return readFileSync(file, "utf8").split("\n").map((line) => {
    const result = grammar.tokenizeLine(line, stack);
    stack = result.ruleStack;
    return result.tokens.map((token) => [token.startIndex, token.endIndex, token.scopes.at(-1)]);
  });
});
process.stdout.write(JSON.stringify(files));
