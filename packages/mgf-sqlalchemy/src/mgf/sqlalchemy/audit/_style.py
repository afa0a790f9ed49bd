"""The look of the HTML page."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1c2430; --soft: #5b6675; --line: #dfe3e9;
  --code: #f1f3f6; --critical: #b3131f; --error: #c2410c; --warning: #8a5a00; --info: #1d5fa8;
  --good: #14713d; --held: #dff3e6; --held-text: #14713d; --leaked: #c4121f;
  --unproven: #ffe9b8; --unproven-text: #7a4d00; --none: #eef0f3; --none-text: #7b8593;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #11151b; --card: #1a2029; --text: #e6eaf0; --soft: #9aa5b4; --line: #2d3642;
    --code: #12171e; --critical: #ff7a80; --error: #ff9c62; --warning: #f0c05a; --info: #7db7f5;
    --good: #6fd39a; --held: #173626; --held-text: #7fdca6; --leaked: #d92632;
    --unproven: #4a3810; --unproven-text: #ffd479; --none: #232b36; --none-text: #8b96a5;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--text); overflow-wrap: break-word;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1rem; font-weight: 600; color: var(--soft); margin: 0 0 .75rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .4rem 0; }
a { color: inherit; }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code { font-size: .875em; overflow-wrap: anywhere; }
.soft { color: var(--soft); }
.unseen {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%);
  white-space: nowrap;
}
.card {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem;
}
.verdict { border-left: .5rem solid var(--critical); padding: 1.25rem; }
.verdict.ok { border-left-color: var(--good); }
.verdict strong { display: block; font-size: 1.6rem; line-height: 1.25; }
.verdict p { font-size: 1.05rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(7rem, 1fr)); gap: .6rem;
  margin-top: .8rem;
}
.tile { padding: .6rem .8rem; text-decoration: none; color: var(--soft); font-size: .875rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; color: var(--text); }
a.tile:hover, a.tile:focus-visible { border-color: currentcolor; }
.critical { --tone: var(--critical); } .error { --tone: var(--error); }
.warning { --tone: var(--warning); } .info { --tone: var(--info); }
.tile.some b { color: var(--tone, var(--text)); }
.finding { border-left: .3rem solid var(--tone); margin: .75rem 0; }
.finding header { display: flex; flex-wrap: wrap; gap: .3rem .7rem; align-items: baseline; }
.pill {
  color: var(--tone); border: 1px solid currentcolor; border-radius: 1rem; padding: 0 .6rem;
  font-size: .8rem; font-weight: 600;
}
.finding section { margin-top: .9rem; }
.names { display: flex; flex-wrap: wrap; gap: .3rem; list-style: none; margin: 0; padding: 0; }
.names li { background: var(--code); border-radius: .3rem; padding: 0 .4rem; }
pre {
  background: var(--code); border: 1px solid var(--line); border-radius: .4rem; margin: .5rem 0 0;
  padding: .6rem .75rem; overflow-x: auto; font-size: .84rem; line-height: 1.45;
  -webkit-user-select: all; user-select: all; cursor: copy; max-height: 24rem;
}
summary { cursor: pointer; }
h2 + p { margin-bottom: .7rem; }
.matrix + details { margin-top: .7rem; }
:target {
  outline: 2px solid var(--tone, currentcolor); outline-offset: .4rem; border-radius: .2rem;
}
.bar { display: flex; height: .8rem; border-radius: .4rem; overflow: hidden; gap: 2px; }
.bar i { min-width: 4px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .6rem 0; padding: 0; }
.legend li { list-style: none; display: flex; gap: .4rem; align-items: center; }
.legend .mark { width: 1.6rem; border-radius: .25rem; }
.mark { display: block; text-align: center; font-weight: 700; line-height: 1.6rem; }
.held { background: var(--held); color: var(--held-text); }
.leaked { background: var(--leaked); color: #fff; }
.not_proven {
  color: var(--unproven-text); background: repeating-linear-gradient(
    135deg, var(--unproven) 0 5px, color-mix(in srgb, var(--unproven) 60%, var(--card)) 5px 10px);
}
.not_applicable { background: var(--none); color: var(--none-text); }
.matrix {
  overflow: auto; max-height: 85vh; max-height: 85dvh; padding: 0;
}
.matrix table {
  border-collapse: separate; border-spacing: 0; font-size: .875rem; width: 100%;
}
.matrix th, .matrix td { padding: 0; }
.matrix thead th {
  position: sticky; top: 0; z-index: 2; background: var(--card); vertical-align: bottom;
  border-bottom: 1px solid var(--line); font-weight: 500;
}
.matrix thead th span {
  writing-mode: vertical-rl; transform: rotate(180deg); padding: .5rem 0;
  white-space: nowrap; display: block; margin: 0 auto;
}
.matrix thead th:first-child { left: 0; z-index: 3; text-align: left; padding: .5rem .75rem; }
.matrix tbody th {
  position: sticky; left: 0; z-index: 1; background: var(--card); text-align: left;
  font-weight: 400; padding: .1rem .75rem; max-width: 22rem; border-right: 1px solid var(--line);
}
.matrix tbody th.bad { font-weight: 700; color: var(--critical); }
.matrix td { min-width: 2.1rem; padding: 1px; border-bottom: 1px solid var(--card); }
.matrix td .mark { text-decoration: none; border-radius: .25rem; }
.matrix td:last-child, .matrix thead th:last-child { padding-right: .75rem; }
.matrix tbody tr:first-child > * { padding-top: .4rem; }
.matrix tbody tr:last-child > * { padding-bottom: .4rem; }
.matrix tbody tr:hover > * { background: var(--code); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .6rem 0 0; }
dd { margin: 0; }
.list { width: 100%; border-collapse: collapse; table-layout: fixed; }
.list th:first-child { width: 30%; }
.list th:nth-child(2):not(:last-child) { width: 26%; }
.list th { text-align: left; font-size: .875rem; color: var(--soft); font-weight: 500; }
.list th, .list td { padding: .4rem .75rem .4rem 0; vertical-align: top; }
.list tr + tr td { border-top: 1px solid var(--line); }
footer { margin-top: 3rem; color: var(--soft); font-size: .875rem; }
@media (max-width: 40rem) {
  .matrix tbody th { min-width: 7.5rem; max-width: 9rem; padding: .1rem .5rem; }
  .verdict strong { font-size: 1.3rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; color: var(--soft); }
  .list, .list tbody, .list tr, .list td { display: block; padding-right: 0; }
  .list thead { display: none; }
  .list tr + tr { border-top: 1px solid var(--line); }
  .list td, .list tr + tr td { border: 0; padding: .3rem 0; }
}
@media print {
  :root { --page: #fff; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  .matrix { max-height: none; overflow: visible; border: 0; }
  .matrix thead { display: table-header-group; }
  .matrix thead th, .matrix tbody th { position: static; }
  .matrix table { font-size: .7rem; }
  .matrix td { min-width: 1.4rem; }
  .matrix .mark { line-height: 1.15rem; }
  /* What is folded up is no use on paper, and a long card leaves no half of a page empty. */
  ::details-content { display: block; content-visibility: visible; height: auto; }
  summary { list-style: none; }
  .card { -webkit-box-decoration-break: clone; box-decoration-break: clone; }
  .verdict, .tile, .names li, tr, p { break-inside: avoid; }
  h2, .finding header, .names, summary, .finding p:last-of-type { break-after: avoid; }
  pre {
    white-space: pre-wrap; overflow-wrap: anywhere; overflow: visible; max-height: none;
    -webkit-box-decoration-break: clone; box-decoration-break: clone;
  }
}
"""
