// Writes the licenses of the packages in dist/extension.js, as the list that esbuild made of its inputs names them.
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const { inputs } = JSON.parse(readFileSync("dist/inputs.json", "utf8"));
const folders = Object.keys(inputs).map((path) => path.match(/^(?:.*\/)?node_modules\/(?:@[^/]+\/)?[^/]+/)?.[0]);
const texts = [...new Set(folders.filter(Boolean))].sort().map((folder) => {
  const { name, version, license } = JSON.parse(readFileSync(`${folder}/package.json`, "utf8"));
  const file = ["LICENSE", "LICENSE.md", "LICENSE.txt", "License.txt", "license"].find((each) => existsSync(`${folder}/${each}`));
  if (file === undefined) {
    throw new Error(`${name} has no file with its license`);
  }
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
if (texts.length === 0) {
  throw new Error("no packages are bundled");
}
writeFileSync("dist/LICENSES.txt", texts.join(`\n${"-".repeat(80)}\n\n`));
