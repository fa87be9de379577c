// The language for CodeMirror: a parser for `StreamLanguage.define`. The playground and JupyterLab use it.
const KEYWORDS = new Set((
  "add and as aux block classes concat default each else expect extends false from if in init input let " +
  "mul network not nothing once or param repeat require then train true use when within"
).split(" "));
const LABELS = new Set("stem stage head".split(" "));

export const parser = {
  name: "cnn",
  // Where a statement or an element of a pipeline begins, a name is called.
  startState: () => ({ callee: true }),
  token(stream, state) {
    if (stream.sol()) state.callee = true;
    if (stream.eatSpace()) return null;
    if (stream.match(/^#.*/)) return "comment";
    if (stream.match(/^%%.*/)) return "meta";
    if (stream.match(/^"[^"]*"?/)) return "string";
    if (stream.match(/^@\w+/)) return "labelName";
    if (stream.match(/^\d+(x\d+)+\b/) || stream.match(/^\d+(\.\d+)?([eE][+-]?\d+|[kMG]\b|\s*%)?/)) return "number";
    if (stream.match(/^x\d+\b/)) return "number";
    if (stream.match(/^output(?=[ \t]+\w+(\.\w+)*[ \t]+from\b)/)) {
      state.callee = false;
      return "keyword";
    }
    const word = stream.match(/^[A-Za-z_]\w*/);
    if (!word) {
      state.callee = "|{;".includes(stream.next());
      return "operator";
    }
    if (LABELS.has(word[0])) {
      state.callee = true;
      return "keyword";
    }
    if (KEYWORDS.has(word[0]) || (word[0] === "again" && stream.match(/^[ \t]+@/, false))) {
      state.callee = false;
      return "keyword";
    }
    if (stream.match(/^\s*:/, false)) {
      stream.match(/^\s*:/);
      state.callee = true;
      return "labelName";
    }
    if (stream.match(/^=(?!=)/, false)) return "propertyName";
    const called = state.callee;
    state.callee = false;
    return called ? "variableName.function" : "variableName";
  },
  languageData: { commentTokens: { line: "#" } },
};
