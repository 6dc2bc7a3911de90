"""Style and script of ``dataset.html``; both stand inside the page."""

STYLE = """
:root{color-scheme:light dark;--ground:#f6f7f8;--card:#fff;--ink:#1b1f24;--quiet:#5d6670;--line:#e1e5e9;--link:#0b5cad;
--series-0:#0072b2;--series-1:#d98200;--series-2:#009e73;--series-3:#d55e00;--series-4:#a8578a;
--error:#b42318;--error-soft:#fdeceb;--warning:#9a5b00;--warning-soft:#fff4dc;--note:#2560a8;--note-soft:#eaf2fc}
@media(prefers-color-scheme:dark){:root{--ground:#121518;--card:#1b2025;--ink:#e6e9ec;--quiet:#9ba5ae;--line:#323940;
--link:#7ab8f5;--series-0:#56b4e9;--series-1:#f2b441;--series-2:#3fcfa4;--series-3:#ff8a4c;--series-4:#e0a3c8;
--error:#ff8f85;--error-soft:#3a1d1b;--warning:#f5c26b;--warning-soft:#352a14;--note:#8fc1ff;--note-soft:#182a40}}
*{box-sizing:border-box}
html{scroll-behavior:smooth;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1280px;margin:0 auto;padding:28px 24px 48px}
h1{font-size:30px;line-height:1.2;margin:0;overflow-wrap:anywhere;letter-spacing:-.01em}
h2{font-size:19px;margin:36px 0 12px}
h3{font-size:15px;margin:0;overflow-wrap:anywhere}
p{margin:0}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
code{font:.92em ui-monospace,"SF Mono",Menlo,Consolas,monospace;overflow-wrap:anywhere}
.kicker{text-transform:uppercase;letter-spacing:.08em;font-size:12px;font-weight:600;color:var(--quiet)}
.quiet{color:var(--quiet);margin:4px 0 12px;max-width:90ch}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(120px,1fr));gap:12px;margin:16px 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.tile b{display:block;font-size:23px;line-height:1.2;font-variant-numeric:tabular-nums}
.tile span{color:var(--quiet);font-size:13px}
.tile.error b{color:var(--error)}.tile.warning b{color:var(--warning)}.tile.note b{color:var(--note)}
.tile.none b{color:var(--quiet)}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px;width:100%}
header table,.pair table,#drift table{background:var(--card);border:1px solid var(--line);border-radius:10px;
border-collapse:separate;border-spacing:0}
header td,header th,.pair td,.pair th,#drift td,#drift th{padding:6px 14px}
th,td{text-align:right;padding:2px 0 2px 10px;font-weight:400;white-space:nowrap}
th:first-child{text-align:left;padding-left:0}
header th:first-child,.pair th:first-child,#drift th:first-child{padding-left:14px}
thead th{color:var(--quiet);font-size:12px}
tbody tr+tr>*{border-top:1px solid var(--line)}
header thead+tbody tr:first-child>*,.pair thead+tbody tr:first-child>*,#drift thead+tbody tr:first-child>*{
border-top:1px solid var(--line)}
.series::before{content:"";display:inline-block;width:9px;height:9px;border-radius:2px;background:var(--colour);
margin-right:6px}
.findings{list-style:none;margin:0;padding:0;display:grid;gap:8px}
.findings li{display:flex;gap:12px;background:var(--card);border:1px solid var(--line);border-left:4px solid;
border-radius:8px;padding:10px 14px}
.findings li.error{border-left-color:var(--error)}.findings li.warning{border-left-color:var(--warning)}
.findings li.note{border-left-color:var(--note)}
.findings p{overflow-wrap:anywhere;max-width:100ch}
.about{font-weight:600}.about span{color:var(--quiet);font-weight:400;font-size:13px;margin-left:6px}
.sign{flex:none;display:inline-grid;place-items:center;width:20px;height:20px;border-radius:50%;font-size:12px;
font-weight:700;margin-top:2px}
.error>.sign{background:var(--error-soft);color:var(--error)}
.warning>.sign{background:var(--warning-soft);color:var(--warning)}
.note>.sign{background:var(--note-soft);color:var(--note)}
.calm{background:var(--card);border:1px solid var(--line);border-left:4px solid var(--series-2);border-radius:8px;
padding:10px 14px}
details{margin-top:10px}summary{cursor:pointer;color:var(--link);padding:4px 0}
details[open] summary{margin-bottom:8px}
.chip{display:inline-block;font-size:12px;font-weight:400;line-height:1.5;color:var(--quiet);background:var(--ground);
border:1px solid var(--line);border-radius:99px;padding:0 8px;margin-right:4px;vertical-align:middle;max-width:100%;
overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.chip.warning{color:var(--warning);background:var(--warning-soft);border-color:transparent}
.chip.note{color:var(--note);background:var(--note-soft);border-color:transparent}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px;min-width:0}
.card svg{display:block;width:100%;height:auto;margin:6px 0 8px}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(340px,100%),1fr));gap:14px;align-items:start}
.cards .card{content-visibility:auto;contain-intrinsic-size:auto 420px;scroll-margin-top:64px}
.card.error{border-top:3px solid var(--error)}.card.warning{border-top:3px solid var(--warning)}
.card.note{border-top:3px solid var(--note)}
.card:target{outline:2px solid var(--link)}
.card table{font-size:12.5px}
.card th:first-child{color:var(--quiet)}
.chips{margin:4px 0 0}
.bar:hover{fill:var(--ink);fill-opacity:.08}
.pair{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:14px;align-items:start}
.psi i{display:block;height:4px;border-radius:2px;margin-top:2px;
background:linear-gradient(to right,var(--bar) var(--width),var(--line) var(--width))}
.pair svg{max-width:460px}.psi{min-width:96px}.psi.stable{--bar:var(--series-2)}.psi.some{--bar:var(--series-1)}
.psi.large{--bar:var(--error)}.psi.large span{color:var(--error);font-weight:600}.psi.some span{color:var(--warning)}
.card details{font-size:13px}.former{font-size:13px;color:var(--quiet)}
.new,.said{font-size:13px;margin:8px 0 0;overflow-wrap:anywhere}.new{color:var(--quiet)}
.said{list-style:none;padding:8px 0 0;border-top:1px solid var(--line)}
.said li{display:flex;gap:8px;margin-top:4px}
.tools{display:flex;flex-wrap:wrap;gap:10px;position:sticky;top:0;background:var(--ground);padding:8px 0 12px;z-index:1}
.tools input,.tools select{font:inherit;font-size:14px;color:inherit;background:var(--card);
border:1px solid var(--line);border-radius:8px;padding:7px 10px}
.tools input{flex:1 1 200px;max-width:360px}
footer dl{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:4px 16px;font-size:13px;margin:0}
footer dt{color:var(--quiet)}footer dd{margin:0;overflow-wrap:anywhere;font-family:ui-monospace,Menlo,monospace}
@media(max-width:640px){main{padding:18px 14px 32px}h1{font-size:24px}.pair{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:repeat(3,1fr);gap:8px}.tile{padding:9px 10px}.tile b{font-size:18px}
header td,header th,.pair td,.pair th,#drift td,#drift th{padding:6px 9px}
footer dl{grid-template-columns:minmax(0,1fr);gap:0}footer dd{margin-bottom:6px}}
@media print{.tools{display:none}.card,.findings li{break-inside:avoid}}
"""

# Without it the page shows everything in the order of the spec.
SCRIPT = """
const cards = [...document.querySelectorAll('.cards .card')];
const byName = (a, b) => a.dataset.name.localeCompare(b.dataset.name);
const byPlace = (a, b) => a.dataset.place - b.dataset.place;
document.getElementById('filter').addEventListener('input', event => {
  const wanted = event.target.value.trim().toLowerCase();
  for (const card of cards) card.hidden = !card.dataset.name.toLowerCase().includes(wanted);
});
document.getElementById('order').addEventListener('change', event => {
  const key = event.target.value;
  const falling = (a, b) => b.dataset[key] - a.dataset[key] || byPlace(a, b);
  const order = key === 'name' ? byName : key === 'place' ? byPlace : falling;
  document.querySelector('.cards').append(...[...cards].sort(order));
});
"""
