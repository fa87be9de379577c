// Runs Pyodide. The page ends this worker when a check takes too long.
import { loadPyodide } from "./pyodide/pyodide.mjs";

const base = new URL("./", import.meta.url).href;

async function start() {
  const archive = fetch(base + "packages.zip").then((answer) => {
    if (!answer.ok) throw new Error(`packages.zip: ${answer.status}`);
    return answer.arrayBuffer();
  });
  const python = await loadPyodide({ indexURL: base + "pyodide/", packageBaseUrl: base });
  const folder = python.runPython("import site; site.getsitepackages()[0]");
  python.unpackArchive(await archive, "zip", { extractDir: folder });
  return python.pyimport("check");
}

const ready = start();

onmessage = async ({ data: { id, name, values } }) => {
  try {
    const module = await ready;
    postMessage({ id, value: module[name](...values) });
  } catch (error) {
    postMessage({ id, error: String(error) });
  }
};

ready.then(
  () => postMessage({ id: 0 }),
  (error) => postMessage({ id: 0, error: String(error) }),
);
