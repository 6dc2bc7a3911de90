"""The frame of outputs in notebooks."""

# The one style of all outputs in notebooks. Its ink is the notebook's own and its lines are translucent, so that it
# fits any theme: an output does not know whether its notebook is dark, or inverts it as that of Databricks does. The
# colours have a contrast of about 4:1 on white and on dark backgrounds, and only repeat the meaning of their words.
# Jupyter and VS Code name the ground, on which the legends of figures lie; elsewhere it shows through.
_STYLE = """
.mirrorspark{line-height:1.45;max-width:76em;--series-0:#2f7fd0;--series-1:#b07800;--series-2:#0f8f5f;--series-3:#d0561a;
--series-4:#b0609a;--line:rgba(128,128,128,.3);--quiet:#7f7f7f;
--card:var(--jp-layout-color0,var(--vscode-editor-background,transparent))}
.mirrorspark p,.mirrorspark h4{margin:.3em 0}
.mirrorspark h4{font-size:1.05em}
.mirrorspark .quiet{opacity:.75}
.mirrorspark .scroll{overflow-x:auto}
.mirrorspark table{border-collapse:collapse;table-layout:auto;margin:.5em 0;border:0;font-variant-numeric:tabular-nums}
.mirrorspark table th,.mirrorspark table td{padding:.2em .8em .2em 0;text-align:left;vertical-align:top;border:0;
border-bottom:1px solid rgba(128,128,128,.3);white-space:normal;min-width:6em;max-width:60em}
.mirrorspark table .long,.mirrorspark small{overflow-wrap:anywhere}.mirrorspark table .long{min-width:14em}
.mirrorspark table thead th{font-weight:600;white-space:nowrap}
.mirrorspark table .number{text-align:right;white-space:nowrap;padding-left:.8em;min-width:0}
.mirrorspark table .short{white-space:nowrap;min-width:0}
.mirrorspark .error,.mirrorspark .warning,.mirrorspark .good,.mirrorspark .note,.mirrorspark .name{font-weight:600}
.mirrorspark .error{color:#dc4040}.mirrorspark .warning{color:#a86f00}.mirrorspark .good{color:#0f8f5f}
.mirrorspark .note{color:#2f7fd0}
.mirrorspark code,.mirrorspark pre{font-size:.95em;background:none;color:inherit;padding:0;overflow-wrap:anywhere}
.mirrorspark pre{white-space:pre-wrap;margin:.5em 0}
.mirrorspark summary{cursor:pointer}.mirrorspark a{color:#2f7fd0}
.mirrorspark .figure{overflow-x:auto;margin:.5em 0}
.mirrorspark small{display:block;opacity:.75}
.mirrorspark .bar{display:inline-block;vertical-align:middle;width:14em;max-width:100%;height:.6em;border-radius:.3em;
background:linear-gradient(to right,#2f7fd0 var(--share),rgba(128,128,128,.3) var(--share))}
"""


def panel_html(*blocks: str) -> str:
    """Return markup as a notebook shows it, with the style of all our outputs."""
    return f'<div class="mirrorspark"><style>{_STYLE}</style>{"".join(blocks)}</div>'
