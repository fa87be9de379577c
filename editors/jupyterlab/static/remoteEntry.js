// A prebuilt extension of JupyterLab 4, without a bundler: a container of webpack's module federation, written by hand.
(() => {
  const MIME = "text/x-cnn";
  const base = document.currentScript.src;
  let scope = null;

  async function shared(name) {
    const [version] = Object.values(scope[name]);
    const factory = await version.get();
    return factory();
  }

  // A code cell has the type of the language of its kernel, unless it starts with `%%cnn`.
  function watch(cell) {
    if (cell.type !== "code") return;
    let kernel = cell.mimeType;
    const update = () => {
      if (cell.mimeType !== MIME) kernel = cell.mimeType;
      const wanted = /^%%cnn\b/.test(cell.sharedModel.getSource()) ? MIME : kernel;
      if (cell.mimeType !== wanted) cell.mimeType = wanted;
    };
    cell.contentChanged.connect(update);
    cell.mimeTypeChanged.connect(update);
    update();
  }

  function watchCells(notebook) {
    const attach = () => {
      if (!notebook.model) return;
      const { cells } = notebook.model;
      for (let i = 0; i < cells.length; i += 1) watch(cells.get(i));
      cells.changed.connect((_, change) => {
        if (change.type === "add" || change.type === "set") change.newValues.forEach(watch);
      });
    };
    notebook.modelChanged.connect(attach);
    attach();
  }

  async function extension() {
    const [{ parser }, codemirror, language, notebook] = await Promise.all([
      import(new URL("cnn.js", base)), shared("@jupyterlab/codemirror"), shared("@codemirror/language"),
      shared("@jupyterlab/notebook"),
    ]);
    return {
      __esModule: true,
      default: {
        id: "cnnspec:highlighting",
        autoStart: true,
        requires: [codemirror.IEditorLanguageRegistry],
        optional: [notebook.INotebookTracker],
        activate(app, languages, notebooks) {
          languages.addLanguage({
            name: "cnn",
            displayName: "cnnspec",
            mime: MIME,
            extensions: ["cnn"],
            load: async () => new language.LanguageSupport(language.StreamLanguage.define(parser)),
          });
          if (notebooks) notebooks.widgetAdded.connect((_, panel) => watchCells(panel.content));
        },
      },
    };
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.cnnspec = {
    init: (given) => { scope = given; },
    get: async () => {
      const loaded = await extension();
      return () => loaded;
    },
  };
})();
