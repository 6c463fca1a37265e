/** How the report looks: light and dark, from 390 pixels up. */
export const STYLE: string = `
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1b2430;--soft:#5a6675;--rule:#e1e5ea;--good:#0b7a4b;--bad:#b42335;
--c1:#2462c4;--c2:#c2560a;--c3:#0c7d6d;--c4:#8240b5;--c5:#b4253f;--c6:#8a6a00;--c7:#59677a;--c8:#a33b86}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--card:#1b212a;--text:#e6eaf0;--soft:#9aa7b6;--rule:#2d3541;--good:#4cc38a;--bad:#ff8a8f;
--c1:#7aaeff;--c2:#ff9d57;--c3:#4fd1bd;--c4:#c79bf2;--c5:#ff8795;--c6:#e2bd4d;--c7:#a4b2c3;--c8:#f09ad5}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:1240px;margin:0 auto;padding:24px 20px 48px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:19px;margin:36px 0 12px}
h3{font-size:15px;margin:0}
p{margin:0}
.gap{margin-bottom:12px}.compared{margin-top:8px}.stages{margin-top:14px}
.soft,.note,.xname,figcaption .note{color:var(--soft);font-size:13px}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(158px,1fr));gap:10px;margin-top:20px}
.tile{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:10px 13px}
.tile b{display:block;font-size:17px;font-weight:650;line-height:1.4;white-space:nowrap;font-variant-numeric:tabular-nums}
.tile small{color:var(--soft);font-size:13px;overflow-wrap:anywhere}
.tile span{white-space:nowrap}.up{color:var(--good)}.down{color:var(--bad)}
.notice{background:var(--card);border:1px solid var(--rule);border-left:4px solid var(--c2);border-radius:8px;padding:10px 14px;margin-top:16px}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,280px),1fr));gap:14px}
.pair{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:12px}
.pair figcaption{font-size:14px;margin-bottom:8px;overflow-wrap:anywhere}
.two{display:grid;grid-template-columns:1fr 1fr;gap:8px}
.two span{display:block;color:var(--soft);font-size:12px;margin-bottom:3px}
.two img{display:block;width:100%;height:auto;border-radius:6px;border:1px solid var(--rule)}
.two img.small{image-rendering:pixelated}
.pair table{font-size:12.5px;margin-top:6px}.pair th{color:var(--soft);font-weight:400;width:46%}.pair th,.pair td{padding:1px 0;border:0}.pair td{text-align:right;width:27%}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,460px),1fr));gap:14px}
.chart{margin:0;min-width:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px 12px}
.plot{position:relative;height:190px;margin:12px 8px 22px 52px;border-bottom:1px solid var(--soft)}
.plot svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.plot span{position:absolute;font-size:11.5px;color:var(--soft);line-height:1;font-variant-numeric:tabular-nums;white-space:nowrap}
.plot .y{right:100%;margin-right:7px;transform:translateY(-50%)}
.plot .x{top:100%;margin-top:7px;transform:translateX(-50%)}
.xname{text-align:center}
path{vector-effect:non-scaling-stroke;fill:none}
.grid{stroke:var(--rule);stroke-width:1}
.line{stroke-width:2;stroke-linejoin:round}.line.faint{stroke-width:1;opacity:.45}
.dots{stroke-width:7;stroke-linecap:round}
.band{stroke:none;opacity:.16}.area{stroke:none;opacity:.85}
${[1, 2, 3, 4, 5, 6, 7, 8].map((c) => `.line.c${c},.dots.c${c}{stroke:var(--c${c})}.band.c${c},.area.c${c}{fill:var(--c${c})}i.c${c}{background:var(--c${c})}`).join("\n")}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;margin:8px 0 0;padding:0;font-size:13px}
.legend li{display:flex;align-items:center;gap:6px}
.key{display:inline-block;width:16px;height:3px;border-radius:2px}.key.faint{opacity:.45}.key.band{height:11px;opacity:.3}.key.area{height:11px;width:11px}
.cursor{position:absolute;top:0;bottom:0;width:1px;background:var(--soft);pointer-events:none}
.tip{position:absolute;top:4px;z-index:1;pointer-events:none;background:var(--card);color:var(--text);border:1px solid var(--rule);border-radius:6px;padding:5px 8px;
font-size:12px;line-height:1.45;white-space:nowrap;box-shadow:0 2px 8px rgb(0 0 0/.18)}
.tip i{display:inline-block;width:8px;height:8px;border-radius:2px;margin-right:5px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--rule);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 14px;border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child>*{border-bottom:0}td.number,th.number{text-align:right;white-space:nowrap}
td.value{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:12.5px;overflow-wrap:anywhere}
.meter{display:inline-block;vertical-align:middle;height:8px;border-radius:4px;min-width:2px}
details summary{cursor:pointer;font-size:19px;font-weight:650;margin:36px 0 12px}
footer{margin-top:36px;color:var(--soft);font-size:13px}
@media(max-width:520px){main{padding:16px 12px 32px}h1{font-size:22px}.plot{margin-left:46px;height:170px}.chart{padding:12px 10px}th,td{padding:5px 9px}}
@media print{.chart,.pair,.tile{break-inside:avoid}}
`;

/** Tells the values under the pointer. Without it the page lacks nothing else. */
export const SCRIPT: string = `
for (const plot of document.querySelectorAll("[data-chart]")) {
  const { x, xName, lines } = JSON.parse(plot.dataset.chart);
  const first = x[0], last = x[x.length - 1];
  const add = (name) => plot.appendChild(Object.assign(document.createElement("div"), { className: name, hidden: true }));
  const cursor = add("cursor"), tip = add("tip");
  const show = (event) => {
    const box = plot.getBoundingClientRect();
    const at = first + (last - first) * Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    let near = 0;
    for (let i = 1; i < x.length; i++) if (Math.abs(x[i] - at) < Math.abs(x[near] - at)) near = i;
    const share = last > first ? (x[near] - first) / (last - first) : 0.5;
    cursor.style.left = 100 * share + "%";
    tip.style.left = share < 0.5 ? 100 * share + 2 + "%" : "auto";
    tip.style.right = share < 0.5 ? "auto" : 100 - 100 * share + 2 + "%";
    tip.replaceChildren(xName + " " + x[near]);
    for (const { name, color, values, high } of lines) {
      const row = document.createElement("div"), key = document.createElement("i");
      key.className = "c" + color;
      const value = values[near] ?? "-";
      row.append(key, name + " " + (high ? value + " to " + (high[near] ?? "-") : value));
      tip.append(row);
    }
    cursor.hidden = tip.hidden = false;
  };
  plot.addEventListener("pointermove", show);
  plot.addEventListener("pointerdown", show);
  plot.addEventListener("pointerleave", () => { cursor.hidden = tip.hidden = true; });
}
`;
