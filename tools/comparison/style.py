"""The page's style sheet: light, dark and printed. The series' colours are after Okabe and Ito."""

CSS = """
:root { color-scheme: light dark;
  --ink: #1c1e21; --soft: #5a6068; --ground: #ffffff; --panel: #f4f5f7; --rule: #d5d8dc; --accent: #0b5cad;
  --gain: 0 114 178; --loss: 213 94 0; --host: #8a9099; --warn: #fff4d6; --warn-ink: #5c4400;
  --series-0: #0072b2; --series-1: #d55e00; --series-2: #008f66; --series-3: #b0488a; --series-4: #9a6b00;
  --series-5: #4b3fa8; }
@media screen and (prefers-color-scheme: dark) { :root {
  --ink: #e8eaed; --soft: #a5acb5; --ground: #15171a; --panel: #1f2226; --rule: #3a3f46; --accent: #7db8f5;
  --gain: 86 180 233; --loss: 240 140 60; --host: #8d949d; --warn: #3b3010; --warn-ink: #ffe2a0;
  --series-0: #56b4e9; --series-1: #f0883e; --series-2: #2fc79a; --series-3: #e08cc0; --series-4: #e6c34a;
  --series-5: #a9a0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0.2rem 0 0.6rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 0.5rem; padding-top: 0.7rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 0.4rem; }
p, ul, dl { max-width: 48rem; }
p.lead { font-size: 1.08rem; }
.soft, figcaption { color: var(--soft); font-size: 0.92rem; }
a { color: var(--accent); }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.1rem; list-style: none; padding: 0; max-width: none; }
.notice { background: var(--warn); color: var(--warn-ink); border-left: 4px solid currentColor; padding: 0.6rem 0.9rem;
  border-radius: 3px; max-width: 48rem; }
.scroll { overflow-x: auto; max-width: 100%; }
.tall { max-height: 36rem; overflow-y: auto; }
table { border-collapse: collapse; font-size: 0.94rem; margin: 0.6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.34rem 0.7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
thead th { border-bottom: 2px solid var(--soft); vertical-align: bottom; }
th[scope=row], thead th:first-child, td.text, th.text { text-align: left; }
tbody th { font-weight: 600; }
tr.result td, tr.difference td { white-space: nowrap; }
tr.difference th, tr.difference td { background: var(--panel); border-bottom-color: var(--rule); }
tr.difference th { font-weight: 400; padding-left: 1.6rem; }
tbody { border-bottom: 2px solid var(--soft); }
td small, th small { display: block; color: var(--soft); font-size: 0.8rem; white-space: nowrap; }
td.heat small { color: inherit; opacity: 0.85; }
.seeds { color: var(--soft); font-size: 0.85rem; white-space: normal; min-width: 7rem; }
dl.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.2rem; margin: 0.6rem 0; }
dl.facts dt { color: var(--soft); } dl.facts dd { margin: 0; }
pre { background: var(--panel); padding: 0.7rem 0.9rem; border-radius: 4px; overflow-x: auto; font-size: 0.86rem;
  white-space: pre-wrap; overflow-wrap: anywhere; max-width: 100%; }
code { font-size: 0.9em; overflow-wrap: anywhere; }
figure { margin: 0.8rem 0; } figcaption { max-width: 48rem; }
svg { width: 100%; height: auto; display: block; }
svg text { font-family: inherit !important; }
table.examples td, table.examples th { text-align: left; border: 0; padding: 0.25rem; }
table.examples img { display: block; width: 13.2rem; height: auto; border-radius: 3px; }
table.examples td small { white-space: normal; max-width: 13.2rem; font-size: 0.84rem; }
@media (max-width: 40rem) { body { padding: 1rem 0.8rem 3rem; } dl.facts { grid-template-columns: 1fr; gap: 0; }
  dl.facts dd { margin-bottom: 0.4rem; } h1 { font-size: 1.45rem; } th, td { padding: 0.3rem 0.45rem; } }
@media print { :root { color-scheme: light; font-size: 8.5pt; } body { max-width: none; padding: 0; }
  nav { display: none; } .scroll, .tall { overflow: visible; max-height: none; } h2, h3 { break-after: avoid; }
  tr, svg { break-inside: avoid; } svg { min-width: 0 !important; }
  td.heat, tr.difference > * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  th, td { padding: 0.2rem 0.35rem; } table.examples img { width: 12.4rem; }
  table.examples td small { max-width: 12.4rem; } }
"""
