"""The report as one HTML page without scripts or other files, for light and dark, phone and desktop."""

from collections.abc import Collection, Sequence
from html import escape

from fastdwm.report.paper import published
from fastdwm.report.paper.tables import MISSING, Column, Table

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1d22; --soft: #5c6370; --line: #d5d9e0; --tint: #f3f5f8;
  --note: #fff6dc; --link: #0b57a4 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181d; --ink: #e6e8ec; --soft: #a3aab6; --line: #3a3f4a;
  --tint: #20242c; --note: #37301a; --link: #8fc1ff } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 90rem; padding: 1rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif }
h1 { font-size: 1.6rem; line-height: 1.2 } h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem }
section { margin-top: 2rem } a { color: var(--link) }
.warning { background: var(--note); padding: .6rem .9rem; border-radius: .4rem }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5rem }
figure { margin: 0; flex: 1 1 21rem; min-width: 0; max-width: 36rem }
figure svg { width: 100%; height: auto }
figcaption, .about, li { color: var(--soft) }
.verdicts li { color: var(--ink) }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem }
.scroll:focus-visible { outline: 2px solid var(--link) }
table { border-collapse: collapse; width: 100%; font-size: .875rem; font-variant-numeric: tabular-nums }
caption { text-align: left; padding: .5rem .6rem; font-weight: 600; position: sticky; left: 0 }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; border-top: 1px solid var(--line) }
th[scope=row], th[scope=rowgroup] { text-align: left; font-weight: 500; position: sticky; left: 0;
  background: var(--paper) }
thead th { font-weight: 600; vertical-align: bottom } thead th[scope=colgroup] { text-align: left; color: var(--soft) }
tbody tr:nth-child(even) > * { background: var(--tint) }
tfoot th[scope=row], tfoot td { font-weight: 600; border-top: 2px solid var(--line) }
ul { padding-left: 1.2rem }
@media (max-width: 40rem) { table { font-size: .8125rem } th, td { padding: .28rem .4rem }
  th[scope=row] { white-space: normal; max-width: 7.5rem } }
@media print { @page { size: A4 landscape; margin: 10mm }
  :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --tint: #f3f5f8; --note: #fff }
  body { max-width: none; padding: 0; font-size: 9pt } nav { display: none }
  .scroll { overflow: visible; border: 0 } section { break-before: page; margin: 0 } figure { break-inside: avoid }
  table { font-size: 6.5pt } th, td { padding: .1rem .2rem } caption, th[scope=row] { position: static }
  thead th { white-space: normal } tr { break-inside: avoid } }
.edge { border-left: 2px solid var(--line) } .marked { font-weight: 700 }
"""


def page(
    tables: Sequence[Table],
    verdicts: Sequence[str],
    notes: Sequence[str],
    pictures: dict[str, str],
    finished: Collection[str],
) -> str:
    """The HTML page, which shows the tasks in `finished` alone.   pictures: <svg> by caption."""
    drawn = "".join(f"<figure>{svg}<figcaption>{escape(text)}</figcaption></figure>" for text, svg in pictures.items())
    contents = " · ".join(f'<a href="#{x.key}">{escape(x.title.partition(". ")[0])}</a>' for x in tables)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The paper's tables</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Inference-time policy optimisation: the paper's tables</h1>
<p class="warning">{escape(notes[0])}</p>
<h2>What they say</h2>
<ul class="verdicts">{items(verdicts)}</ul>
<nav aria-label="tables">{contents} · <a href="#notes">Notes</a></nav>
<h2>Pictures</h2>
<div class="pictures">{drawn}</div>
{"".join(section(table, finished) for table in tables)}
<h2 id="notes">Notes</h2>
<ul>{items(notes[1:])}{sources()}</ul>
</main>
</body>
</html>
"""


def items(lines: Sequence[str]) -> str:
    """One list item per line."""
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def sources() -> str:
    """List items of the sources, with the only links to other pages."""
    entries = ((mark, escape(title), url) for mark, (title, url) in published.SOURCES.items())
    return "".join(f'<li>[{mark}] {title}: <a href="{url}">{url}</a></li>' for mark, title, url in entries)


def section(table: Table, finished: Collection[str]) -> str:
    """A table in a container that scrolls by itself, with the rows of the finished tasks."""
    title = escape(table.title)
    # tabindex: containers that scroll must be reachable by keyboard.
    return f"""<section id="{table.key}">
<div class="scroll" role="region" aria-label="{title}" tabindex="0">
<table>
<caption>{title}</caption>
<thead>
<tr><td></td>{"".join(group_header(name, columns) for name, columns in table.groups)}</tr>
<tr><th scope="col" style="text-align:left">task</th>{headers(table)}</tr>
</thead>
<tbody>
{"".join(row(table, cells) for cells in table.rows() if cells[0] in finished)}</tbody>
<tfoot>
{"".join(row(table, cells) for cells in table.averages())}</tfoot>
</table>
</div>
<p class="about">{escape(table.caption)}</p>
</section>
"""


def group_header(name: str, columns: Sequence[Column]) -> str:
    """The header above a group of columns."""
    return f'<th scope="colgroup" colspan="{len(columns)}" class="edge">{escape(name)}</th>'


def headers(table: Table) -> str:
    """One header per column."""
    pairs = zip(table.columns, edges(table), strict=True)
    return "".join(f'<th scope="col"{edge}>{escape(column.header)}</th>' for column, edge in pairs)


def edges(table: Table) -> list[str]:
    """Class attribute of every column, which draws a line where a group begins."""
    return [' class="edge"' if i == 0 else "" for _, columns in table.groups for i in range(len(columns))]


def row(table: Table, cells: Sequence[str]) -> str:
    """One row; the first text is its label."""
    data = "".join(cell(text, edge) for text, edge in zip(cells[1:], edges(table), strict=True))
    return f'<tr><th scope="row">{escape(cells[0])}</th>{data}</tr>\n'


def cell(text: str, edge: str) -> str:
    """A table cell; screen readers announce missing values, and marked values stand out without colour."""
    if text == MISSING:
        return f'<td{edge}><span aria-label="missing">{MISSING}</span></td>'
    shown = escape(text)
    marked = text.endswith(("▲", "▼"))
    return f'<td{edge}><span class="marked">{shown}</span></td>' if marked else f"<td{edge}>{shown}</td>"
