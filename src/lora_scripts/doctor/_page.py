"""How the report looks in a browser: its style sheet, and the few lines that copy a command."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f6f3; --card: #ffffff; --ink: #1e2227; --soft: #5a626c; --line: #e3e1db; --well: #f1efea;
  --must: #b3261e; --should: #8a5a00; --good: #1f6a6f; --keep: #1d7042; --focus: #2457c5;
  --must-tint: #fbeceb; --should-tint: #fbf3e2; --good-tint: #e7f3f3;
  --text: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "PingFang SC", "Hiragino Sans GB",
    "Microsoft YaHei", "Noto Sans CJK SC", "Noto Sans SC", sans-serif;
  --code: ui-monospace, "SF Mono", "Cascadia Mono", Consolas, "DejaVu Sans Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #15171a; --card: #1d2024; --ink: #e7e8ea; --soft: #a3abb5; --line: #31363c; --well: #262a2f;
    --must: #ff8d85; --should: #f0bd62; --good: #78c9cd; --keep: #79d2a0; --focus: #8fb1ff;
    --must-tint: #35201f; --should-tint: #322817; --good-tint: #182b2c;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.6 var(--text); }
:focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; border-radius: 4px; }
.wrap { max-width: 66rem; margin: 0 auto; padding: clamp(1.25rem, 4vw, 3.5rem) clamp(1rem, 4vw, 2.5rem) 5rem; }
.over { margin: 0; color: var(--soft); font-size: .875rem; letter-spacing: .02em; }
h1 { margin: .2rem 0 .35rem; font-size: clamp(1.6rem, 1.2rem + 2vw, 2.4rem); line-height: 1.2; font-weight: 650;
  letter-spacing: -.015em; overflow-wrap: anywhere; }
.seen { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
.healthy { margin: 2rem 0 0; padding: 1.25rem 1.5rem; background: var(--good-tint); border-radius: 14px;
  font-size: 1.1rem; }
nav { margin: 2.25rem 0 0; display: grid; grid-template-columns: repeat(auto-fit, minmax(min(13.5rem, 100%), 1fr));
  gap: 1rem; align-items: start; }
nav section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 1.1rem 1.25rem; }
nav h2 { margin: 0; display: flex; align-items: baseline; gap: .6rem; font-size: 1rem; font-weight: 600; }
nav h2 a { color: inherit; text-decoration: none; }
nav h2 a:hover { text-decoration: underline; text-underline-offset: .2em; }
nav .number { font-size: 1.9rem; font-weight: 650; line-height: 1.1; font-variant-numeric: tabular-nums; }
nav ul { list-style: none; margin: .7rem 0 0; padding: 0; font-size: .9rem; line-height: 1.4; }
nav li { border-top: 1px solid var(--line); }
nav li a { display: block; padding: .45rem 0; color: var(--soft); text-decoration: none; overflow-wrap: anywhere; }
nav li a:hover { color: var(--ink); text-decoration: underline; text-underline-offset: .2em; }
.must_fix .number, .must_fix > h2.group { color: var(--must); }
.should_look .number, .should_look > h2.group { color: var(--should); }
.good_to_know .number, .good_to_know > h2.group { color: var(--good); }
.ignored .number, .ignored > h2.group { color: var(--soft); }
main > section { margin-top: 3.5rem; }
h2.group { margin: 0 0 1rem; font-size: 1.3rem; font-weight: 650; letter-spacing: -.01em; }
article { background: var(--card); border: 1px solid var(--line); border-radius: 16px; margin: 0 0 1.25rem;
  padding: clamp(1.1rem, 3vw, 1.9rem); scroll-margin-top: 1rem; }
article:target { border-color: var(--focus); }
h3 { margin: 0; max-width: 44rem; font-size: 1.15rem; line-height: 1.4; font-weight: 620; overflow-wrap: anywhere; }
dl { margin: .9rem 0 0; display: grid; grid-template-columns: minmax(6rem, max-content) minmax(0, 42rem);
  gap: .35rem 1.25rem; }
dt { color: var(--soft); font-size: .9rem; line-height: 1.75; }
dd { margin: 0; overflow-wrap: anywhere; }
.chips { list-style: none; margin: 1rem 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: .5rem; }
.chips li { background: var(--well); border-radius: 999px; padding: .2rem .85rem; max-width: 100%;
  overflow-wrap: anywhere; font-size: .925rem; }
.grid { list-style: none; margin: 1.4rem 0 0; padding: 0; display: grid; gap: 1.25rem 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(10.5rem, 44%), 1fr)); }
.grid.told { grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); }
.groups { list-style: none; margin: 1.4rem 0 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); }
.groups > li { background: var(--well); border-radius: 12px; padding: .9rem; }
.groups .grid { margin-top: 0; grid-template-columns: repeat(auto-fit, minmax(min(8rem, 46%), 1fr)); }
.groups .said { margin: .6rem 0 0; }
figure { margin: 0; }
.frame { display: grid; grid-template: minmax(0, 1fr) / minmax(0, 1fr); place-items: center; height: 10.5rem;
  border-radius: 10px; background: var(--well); overflow: hidden; }
.groups .frame { background: var(--card); height: 8.5rem; }
.sheet { position: relative; overflow: hidden; border-radius: 5px; line-height: 0; max-width: calc(100% - 1rem); }
.sheet img { display: block; max-width: 100%; max-height: 9.5rem; width: auto; height: auto; }
.groups .sheet img { max-height: 7.5rem; }
.mark { position: absolute; border: 2px solid #fff; outline: 1px solid rgb(0 0 0 / .55);
  box-shadow: 0 0 0 100rem rgb(10 12 15 / .5); }
.lost { color: var(--soft); font-size: .85rem; padding: 1rem; text-align: center; line-height: 1.4; }
figcaption { margin-top: .5rem; font-size: .85rem; line-height: 1.4; overflow-wrap: anywhere; }
figcaption .name { display: block; font-weight: 550; }
.said { color: var(--soft); font-size: .85rem; line-height: 1.45; overflow-wrap: anywhere; }
.keep { display: inline-block; margin-top: .15rem; color: var(--keep); font-weight: 600; }
.rows { list-style: none; margin: 1.2rem 0 0; padding: 0; }
.rows li { border-top: 1px solid var(--line); padding: .55rem 0; overflow-wrap: anywhere; }
.rows .name { font-family: var(--code); font-size: .85rem; }
.rows .said { display: block; font-size: .925rem; }
details { margin: 1.1rem 0 0; }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; width: fit-content; }
summary:hover { color: var(--ink); }
.command { display: flex; gap: .6rem; align-items: stretch; margin: .6rem 0 0; }
.command code { flex: 1; min-width: 0; background: var(--well); border-radius: 8px; padding: .55rem .8rem;
  font: .85rem/1.5 var(--code); overflow-wrap: anywhere; }
button { flex: none; font: 600 .85rem/1 var(--text); color: var(--ink); background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; padding: .55rem .9rem; cursor: pointer; min-height: 2.5rem; }
button:hover { border-color: var(--soft); }
.reason { margin: .6rem 0 0; padding: .5rem .8rem; border-left: 3px solid var(--line); overflow-wrap: anywhere; }
footer { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; color: var(--soft);
  font-size: .9rem; }
footer p { margin: .2rem 0 0; }
footer .command code { color: var(--ink); }
.skip { position: absolute; left: -100rem; }
.skip:focus { left: 1rem; top: 1rem; background: var(--card); padding: .5rem 1rem; z-index: 1; }
.quiet { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
@media (max-width: 34rem) {
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd + dt { margin-top: .5rem; }
  .command { flex-direction: column; }
  .frame { height: 8.5rem; }
  .sheet img { max-height: 7.5rem; }
}
@media print {
  body { background: #fff; }
  button, .skip { display: none; }
  article { break-inside: avoid; }
}
"""

# `navigator.clipboard` is there on secure pages only, which a file is not everywhere.
SCRIPT = """
"use strict";
const status = document.getElementById("status");
const selectAndCopy = (code) => {
  const range = document.createRange();
  range.selectNodeContents(code);
  const selection = getSelection();
  selection.removeAllRanges();
  selection.addRange(range);
  return document.execCommand("copy");
};
const copy = async (code) => {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    return selectAndCopy(code);
  }
};
for (const button of document.querySelectorAll("button[data-done]")) {
  button.hidden = false;
  const label = button.textContent;
  button.addEventListener("click", async () => {
    const done = await copy(button.parentElement.querySelector("code"));
    status.textContent = button.textContent = done ? button.dataset.done : button.dataset.failed;
    setTimeout(() => { button.textContent = label; status.textContent = ""; }, 2000);
  });
}
"""
