// The style and the script of the report's page: light and dark by the reader's setting, nothing from outside.
#pragma once

namespace expertd::client {

inline constexpr char kPageStyle[] = R"css(
:root{--bg:#f6f7f9;--card:#fff;--ink:#1b2430;--soft:#5b6778;--grid:#e3e7ed;--axis:#9aa5b4;--rule:#c2410c;--warn:#fff4e5;--warnline:#e8a33d;
--k0:#2563eb;--k1:#d97706;--k2:#0d9488;--k3:#be185d;--k4:#7c3aed;--k5:#65a30d;--k6:#0891b2;--k7:#94a3b8}
@media (prefers-color-scheme:dark){:root{--bg:#12161c;--card:#1b212a;--ink:#e6ebf2;--soft:#97a3b4;--grid:#2b3440;--axis:#56627a;--rule:#fb923c;--warn:#33270f;--warnline:#b7791f;
--k0:#60a5fa;--k1:#fbbf24;--k2:#2dd4bf;--k3:#f472b6;--k4:#a78bfa;--k5:#a3e635;--k6:#22d3ee;--k7:#64748b}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 48px}
h1{font-size:26px;margin:0 0 2px}h2{font-size:16px;margin:0 0 10px}
.sub{color:var(--soft);margin:0 0 18px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(165px,1fr));gap:12px;margin-bottom:14px}
.tile,.card{background:var(--card);border:1px solid var(--grid);border-radius:10px;padding:14px 16px}
.tile b{display:block;font-size:23px;font-weight:650;letter-spacing:-.01em;font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));gap:14px;grid-auto-flow:dense}
.wide{grid-column:1/-1}
.note{background:var(--warn);border:1px solid var(--warnline);border-radius:10px;padding:10px 16px;margin-bottom:14px}
.note p{margin:2px 0}
figure{margin:0}svg{display:block;width:100%;height:auto}
svg text{font-size:12px;fill:var(--soft)}svg text.title{font-size:12.5px}svg text.note{fill:var(--rule);font-weight:600}
.grid{stroke:var(--grid)}.axis{stroke:var(--axis)}.rule{stroke:var(--rule);stroke-dasharray:5 4}
.line{fill:none;stroke:currentColor;stroke-width:2.2;stroke-linejoin:round}.dashed{stroke-dasharray:6 5}.fill{fill:currentColor}
.c0{color:var(--k0)}.c1{color:var(--k1)}.c2{color:var(--k2)}.c3{color:var(--k3)}.c4{color:var(--k4)}.c5{color:var(--k5)}.c6{color:var(--k6)}.c7{color:var(--k7)}.c8{color:var(--rule)}
.legend{display:flex;flex-wrap:wrap;gap:4px 6px;margin-top:4px}
.legend button{font:inherit;font-size:13px;color:var(--ink);background:none;border:0;padding:2px 6px;cursor:pointer;border-radius:6px}
.legend button:hover{background:var(--grid)}.legend button.off{opacity:.35}
.swatch{display:inline-block;width:11px;height:11px;border-radius:3px;background:currentColor;margin-right:6px}
.hidden{display:none}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:14px}
th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--soft);font-weight:600}th:first-child,td:first-child,td.left{text-align:left}
tr.knee td{font-weight:650;color:var(--k0)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
#tip{position:fixed;pointer-events:none;background:var(--ink);color:var(--card);padding:4px 9px;border-radius:6px;font-size:13px;opacity:0;transition:opacity .1s}
.empty{color:var(--soft)}
)css";

// The tips of marks, and legends that hide and show what they name.
inline constexpr char kPageScript[] = R"js(
const tip=document.getElementById('tip');
document.addEventListener('pointermove',e=>{const t=e.target.closest('[data-tip]');tip.style.opacity=t?1:0;if(!t)return;
tip.textContent=t.dataset.tip;tip.style.left=Math.min(e.clientX+14,innerWidth-tip.offsetWidth-8)+'px';tip.style.top=e.clientY+14+'px'});
document.addEventListener('click',e=>{const b=e.target.closest('[data-toggle]');if(!b)return;b.classList.toggle('off');
b.closest('figure').querySelectorAll('[data-line="'+b.dataset.toggle+'"]').forEach(x=>x.classList.toggle('hidden'))});
document.body.dataset.ready='yes';
)js";

}  // namespace expertd::client
