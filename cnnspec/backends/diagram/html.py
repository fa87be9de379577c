"""An interactive page: diagrams of several depths, the text of the spec, and a script, all in one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence

from cnnspec.backends.diagram.svg import DARK, LIGHT, safe, style

_STYLE = """
body{margin:0;font:14px/1.4 Inter,Helvetica,Arial,'DejaVu Sans',sans-serif;background:var(--page);color:var(--text);
display:grid;grid-template:auto 1fr/minmax(0,1fr) auto;height:100vh}
header{grid-column:1/-1;display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;padding:8px 16px;
border-bottom:1px solid var(--line)}
h1{font-size:16px;margin:0}input,button{font:inherit;color:inherit;background:var(--panel);
border:1px solid var(--line);border-radius:6px;padding:4px 8px}button[aria-pressed=true]{border-color:var(--text)}
button{cursor:pointer}main{overflow:auto}main svg{display:block}
pre{margin:0;padding:12px 0;overflow:auto;border-left:1px solid var(--line);background:var(--panel);
font:12px/1.6 'DejaVu Sans Mono',Menlo,Consolas,monospace;max-width:44vw}
pre span{display:block;padding:0 16px 0 8px}pre span::before{content:attr(data-n);display:inline-block;width:3em;
margin-right:12px;text-align:right;opacity:.5}.here{background:var(--mark)}
.node{cursor:pointer}.node:focus{outline:none}.node:focus .rim,.node:focus .frame,.node:hover .rim{stroke-width:2.5}
.hit .rim,.hit .frame{stroke-width:3;stroke:var(--hit)}.searching .node:not(.hit){opacity:.3}
.figure:target .panel{stroke:var(--hit);stroke-width:2}[hidden]{display:none!important}
#tip{position:fixed;pointer-events:none;white-space:pre-wrap;max-width:420px;padding:6px 10px;border-radius:6px;
background:var(--text);color:var(--page);font-size:12px;overflow-wrap:anywhere;z-index:1}
@media(max-width:700px){body{grid-template:auto 1fr 30vh/100%}pre{max-width:none;border-left:0;
border-top:1px solid var(--line)}}
"""
_SCRIPT = """
'use strict';
const all = (query, root = document) => [...root.querySelectorAll(query)];
const tip = document.getElementById('tip'), views = all('main section'), levels = all('[data-view]');
const search = document.getElementById('search'), count = document.getElementById('count');
let current = views.length - 1;
for (const node of all('.node')) {
  const title = node.querySelector('title');
  node.dataset.tip = title.textContent;
  title.remove();
  node.setAttribute('tabindex', '0');
  node.setAttribute('role', 'button');
  node.setAttribute('aria-label', node.dataset.tip.replaceAll('\\n', ', '));
}
function show(index) {
  current = Math.max(0, Math.min(index, views.length - 1));
  views.forEach((view, i) => { view.hidden = i !== current; });
  levels.forEach((button, i) => button.setAttribute('aria-pressed', String(i === current)));
  find();
}
function find() {
  const word = search.value.trim().toLowerCase();
  let hits = 0;
  for (const node of all('.node', views[current])) {
    const hit = word !== '' && node.dataset.tip.toLowerCase().includes(word);
    node.classList.toggle('hit', hit);
    hits += hit;
  }
  views[current].classList.toggle('searching', word !== '');
  count.textContent = word === '' ? '' : hits + (hits === 1 ? ' match' : ' matches');
  if (hits) views[current].querySelector('.hit').scrollIntoView({block: 'nearest', inline: 'nearest'});
}
function open(node) {
  all('.here').forEach(line => line.classList.remove('here'));
  const line = document.getElementById('L' + node.dataset.line);
  if (line) { line.classList.add('here'); line.scrollIntoView({block: 'nearest'}); }
  const expands = node.dataset.kind === 'group', path = node.dataset.path;
  if (!expands && node.dataset.kind !== 'frame') return;
  const wanted = expands ? [current + 1] : [...views.keys()].reverse().filter(i => i < current);
  for (const i of wanted) {
    const same = views[i] && all('.node', views[i]).find(n => n.dataset.path === path);
    if (same && (expands || same.dataset.kind === 'group')) {
      show(i);
      same.focus();
      same.scrollIntoView({block: 'center', inline: 'center'});
      return;
    }
  }
  if (expands && views[current + 1]) show(current + 1);
}
levels.forEach((button, i) => button.addEventListener('click', () => show(i)));
search.addEventListener('input', find);
document.addEventListener('click', event => {
  const node = event.target.closest('.node');
  if (node) open(node);
});
document.addEventListener('keydown', event => {
  const node = event.target.closest && event.target.closest('.node');
  if (node && (event.key === 'Enter' || event.key === ' ')) {
    event.preventDefault();
    open(node);
    const link = node.closest('a');
    if (link) location.hash = link.getAttribute('href');
  } else if (event.key === '/' && event.target !== search) {
    event.preventDefault();
    search.focus();
  }
});
document.addEventListener('pointermove', event => {
  const node = event.target.closest('.node');
  tip.hidden = !node;
  if (!node) return;
  tip.textContent = node.dataset.tip;
  tip.style.left = Math.max(0, Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)) + 'px';
  tip.style.top = Math.max(0, Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)) + 'px';
});
show(current);
"""


def _variables(colors: dict[str, str], mark: str, hit: str) -> str:
    names = ("page", "text", "panel", "line")
    return ":root{" + "".join(f"--{n}:{colors[n]};" for n in names) + f"--mark:{mark};--hit:{hit}}}"


def write_html(
    views: Sequence[tuple[str, str]], title: str, subtitle: str, sources: Sequence[str], theme: str, *, paper: bool
) -> str:
    """Return a page with diagrams that are expanded, searched, and linked to the text of the spec.

    Args:
        views: The diagrams as SVG, from the coarsest to the finest, with their names.
        title: The name of the network.
        subtitle: Its figures in words.
        sources: The text of each spec.
        theme: `light`, `dark` or `auto`.
        paper: Whether the diagrams are in the style of papers.
    """
    light, dark = _variables(LIGHT, "#fff3bf", "#c2410c"), _variables(DARK, "#5c4a12", "#fb923c")
    colors = dark if theme == "dark" else light
    if theme == "auto":
        colors += f"@media (prefers-color-scheme:dark){{{dark}}}"
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    buttons = [f'<button type="button" data-view="{i}">{safe(name)}</button>' for i, (name, _) in enumerate(views)]
    lines = [
        f'<span id="L{network}-{n}" data-n="{n}">{safe(line)}</span>'
        for network, source in enumerate(sources)
        for n, line in enumerate(source.split("\n"), start=1)
    ]
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            f"<title>{safe(title)}</title>",
            f"<style>{colors}{style(theme, paper)}{_STYLE}</style>",
            f"</head>\n<body>\n<header><h1>{safe(title)}</h1><span>{safe(subtitle)}</span>",
            '<input id="search" type="search" placeholder="Search modules" aria-label="Search modules">',
            '<output id="count" for="search"></output>',
            f'<span role="group" aria-label="Levels">{"".join(buttons) if len(views) > 1 else ""}</span></header>',
            "<main>",
            *(f"<section>{svg}</section>" for _, svg in views),
            f'</main>\n<pre aria-label="Spec">{"".join(lines)}</pre>',
            f'<div id="tip" role="tooltip" hidden></div>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n',
        ]
    )
