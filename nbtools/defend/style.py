"""The look of the page; its colours are those of the package's figures."""

STYLE = """
:root { --ink: #1d2433; --soft: #5c667a; --line: #e3e7ee; --ground: #f6f7fa; --blue: #0173b2; --red: #d55e00; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 40px 24px 64px; }
.kind { margin: 0; color: var(--soft); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 2px 0 0; font-size: 30px; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 18px; }
.about { margin: 4px 0 22px; color: var(--soft); }
.verdict { margin: 0 0 12px; font-size: 20px; line-height: 1.5; }
.caution { margin: 0 0 24px; color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px; margin-bottom: 20px; }
.tile { display: flex; flex-direction: column; padding: 14px 16px; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; }
.tile span, .tile small { color: var(--soft); font-size: 13px; }
.tile b { font-size: 28px; line-height: 1.35; font-variant-numeric: tabular-nums; }
section, aside { margin: 0 0 20px; padding: 20px 22px; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; }
section p { margin: 12px 0 0; color: var(--soft); font-size: 15px; }
section p b { color: var(--ink); }
.warn { background: #fff8ef; border-color: #f3d3a8; }
.warn h2 { margin-bottom: 6px; font-size: 16px; }
.warn ul { margin: 0; padding-left: 20px; }
.warn li { margin: 3px 0; }
.row { display: grid; grid-template-columns: 190px 1fr 92px; align-items: center; gap: 14px; min-height: 23px; }
.name { overflow-wrap: anywhere; }
.value { text-align: right; font-variant-numeric: tabular-nums; }
.track { position: relative; height: 12px; background: linear-gradient(var(--line), var(--line)) center / 100% 1px
  no-repeat; }
.track.plain { background: var(--ground); border-radius: 3px; }
.track.middle { background: linear-gradient(var(--soft), var(--soft)) center / 1px 100% no-repeat, var(--ground); }
.bar { position: absolute; top: 0; bottom: 0; background: var(--red); border-radius: 3px; }
.bar.soft { background: var(--blue); }
.whisker { position: absolute; top: 4px; height: 4px; border-radius: 2px; background: #a9b8cc; }
.dot { position: absolute; top: -1px; width: 14px; height: 14px; margin-left: -7px; border-radius: 50%; }
.dot.before { background: #8792a6; }
.dot.after { background: var(--blue); }
.ends { display: flex; justify-content: space-between; color: var(--soft); font-size: 13px; }
.ends i { font-style: normal; }
.number { white-space: nowrap; font-variant-numeric: tabular-nums; }
.files { margin: 16px 0 0; padding: 0; list-style: none; font-size: 14px; overflow-wrap: anywhere; }
.files li { margin-top: 10px; }
.mono, code { font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.mono, code, .settings td { overflow-wrap: anywhere; }
img { display: block; width: 100%; height: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; }
td, th { padding: 8px 10px 8px 0; border-top: 1px solid var(--line); text-align: left; vertical-align: top; }
tr:first-child > * { border-top: 0; }
th { font-weight: 600; }
.settings th { width: 150px; }
td.mono { width: 30%; }
summary { margin-top: 14px; cursor: pointer; color: var(--blue); }
details .chart, details table { margin-top: 10px; }
@media (max-width: 620px) { .row { grid-template-columns: 110px 1fr 76px; } .verdict { font-size: 18px; } }
@media print { body { background: #fff; } section, aside, .tile { break-inside: avoid; } }
"""
