/** What an alignment page adds to the look of reports, and its script: sorting, sliding, filtering. */
export const ALIGN_STYLE: string = `
.verdict{display:flex;gap:14px;align-items:flex-start;background:var(--card);border:1px solid var(--rule);border-left:6px solid var(--good);border-radius:10px;padding:14px 18px;margin-top:18px;font-size:16px;overflow-wrap:anywhere}
.verdict.no{border-left-color:var(--bad)}
.verdict b{flex:none;font-size:24px;line-height:1.1;color:var(--good)}.verdict.no b{color:var(--bad)}
.tree{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 14px;font-size:13.5px;overflow-x:auto}
.tree details{margin-left:16px}.tree>details{margin-left:0}
.tree summary,.tree .leaf{font-size:13.5px;font-weight:400;margin:0;padding:2px 0;white-space:nowrap}
.tree .leaf{margin-left:33px}
.tree .error{color:var(--soft);font-variant-numeric:tabular-nums;margin-left:8px}
.dot{display:inline-block;width:9px;height:9px;border-radius:50%;margin-right:7px;background:var(--rule)}
.equal{background:var(--good)}.agrees{background:var(--good);opacity:.6}.follows{background:var(--c6)}.origin{background:var(--bad)}.unknown{background:var(--c7)}
.first{background:color-mix(in srgb,var(--bad) 14%,transparent);border-radius:6px;padding-right:8px;box-shadow:0 0 0 3px color-mix(in srgb,var(--bad) 14%,transparent)}
.mark{color:var(--bad);font-weight:650;margin-left:8px}
table.sortable th{cursor:pointer;user-select:none;white-space:nowrap}
table.sortable th[aria-sort=ascending]::after{content:" \\25B2";font-size:10px}table.sortable th[aria-sort=descending]::after{content:" \\25BC";font-size:10px}
td.name{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px;min-width:220px;overflow-wrap:anywhere}
td.value{min-width:104px}
table.sortable td:has(>.dot){white-space:nowrap}
svg.ulps{fill:var(--soft);vertical-align:middle}
td.why{min-width:260px;color:var(--soft)}
.key-list{display:flex;flex-wrap:wrap;gap:4px 16px;margin:0 0 10px;padding:0;list-style:none;font-size:13px}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:14px}
.card{margin:0;min-width:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px}
.card.off{border-color:var(--bad)}
.card figcaption{font-size:13px;margin-bottom:8px;overflow-wrap:anywhere}
.card .both{display:grid;grid-template-columns:1fr 1fr;gap:8px}
.card .both span{display:block;color:var(--soft);font-size:12px;margin-bottom:3px}
.card img{display:block;width:100%;height:auto;border-radius:6px;background:var(--rule)}
.card img.small{image-rendering:pixelated}
.slide{position:relative;--at:50%}
.slide img+img{position:absolute;inset:0;clip-path:inset(0 0 0 var(--at))}
.slide::after{content:"";position:absolute;top:0;bottom:0;left:var(--at);width:2px;margin-left:-1px;background:#fff;mix-blend-mode:difference;pointer-events:none}
.slide input{position:absolute;inset:0;width:100%;height:100%;margin:0;opacity:0;cursor:ew-resize}
.slide input:focus-visible+i,.slide input:focus-visible{opacity:.15}
.complaint{color:var(--bad);font-size:13px;margin-top:6px}
.numbers{color:var(--soft);font-size:13px;margin-top:6px}
@media(max-width:520px){.verdict{font-size:15px;padding:12px}.tree details{margin-left:9px}.tree .leaf{margin-left:24px}}
`;

export const ALIGN_SCRIPT: string = `
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down === 1 ? "ascending" : "descending");
      const value = (row) => { const cell = row.cells[column], raw = cell.dataset.value; return raw === undefined ? cell.textContent : Number(raw); };
      const order = (x, y) => (typeof x === "number" && typeof y === "number" ? (x === y ? 0 : x < y ? -1 : 1) : String(x).localeCompare(String(y)));
      body.append(...[...body.rows].sort((x, y) => down * order(value(x), value(y))));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}
for (const slider of document.querySelectorAll(".slide input"))
  slider.addEventListener("input", () => slider.parentElement.style.setProperty("--at", slider.value + "%"));
`;
