// The page of the diagram. It contains no scripts: the drawing is an image, and the policy allows nothing else.
"use strict";

const POLICY = "default-src 'none'; img-src data:; style-src 'sha256-STYLE'";
const STYLE = "body{margin:0;padding:8px}p{margin:4px 0}img{max-width:100%;background:#fff}";

/** @param {string} text */
function escape(text) {
  return text.replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
}

/**
 * Return the page that shows an SVG drawing.
 * @param {string} svg the drawing, or nothing
 * @param {string} note a text above it, or nothing
 */
function previewPage(svg, note) {
  const hash = require("node:crypto").createHash("sha256").update(STYLE).digest("base64");
  const image = `<img alt="diagram of the network" src="data:image/svg+xml;base64,${Buffer.from(svg).toString("base64")}">`;
  return [
    "<!DOCTYPE html>",
    '<html lang="en"><head><meta charset="utf-8">',
    `<meta http-equiv="Content-Security-Policy" content="${POLICY.replace("STYLE", hash)}">`,
    `<title>Diagram</title><style>${STYLE}</style></head><body>`,
    note && `<p role="status">${escape(note)}</p>`,
    svg && image,
    "</body></html>",
  ].join("\n");
}

module.exports = { previewPage };
