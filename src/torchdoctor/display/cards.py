"""Summarise a result in a few lines of text, and as a small table for notebooks."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

MOST_ROWS_OF_TEXT, MOST_ROWS_OF_HTML = 6, 30
WIDEST_LINE, WIDEST_CELL, MOST_LINES = 118, 68, 3

HTML = """<div style="font-family: sans-serif; font-size: 13px">
<p style="margin: 0 0 4px 0"><strong>{{ card.title }}</strong></p>
{% for line in card.lines %}<p style="margin: 0 0 2px 0">{{ line }}</p>
{% endfor %}
{% if rows %}<table><thead>
<tr>{% for name in card.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead><tbody>
{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table>
{% endif %}
{% if left_out %}<p style="margin: 2px 0 0 0">and {{ left_out }} more</p>
{% endif %}
</div>
"""


@dataclass(frozen=True)
class Card:
    """A title, a few lines, and a table: the short form of a result, in any characters.

    Attributes:
        title: One line that names the result.
        lines: Sentences below it.
        columns: The heads of the table.
        rows: The cells of the table, as many in each row as there are columns.
    """

    title: str
    lines: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def text(self) -> str:
        """Write the card as plain text: at most 6 rows of the table, 3 lines for each sentence.

        Returns:
            Lines of at most 118 characters.
        """
        rows = self.rows[:MOST_ROWS_OF_TEXT]
        table = [
            [shortened(cell, WIDEST_CELL) for cell in row] for row in ((self.columns, *rows) if rows else ())
        ]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [shortened(self.title, WIDEST_LINE)]
        for line in self.lines:
            wrapped = textwrap.wrap(
                shortened(line, 1000), WIDEST_LINE - 2, max_lines=MOST_LINES, placeholder="…"
            )
            lines += [f"  {part}" for part in wrapped]
        for row in table:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(f"  {'  '.join(cells).rstrip()}"[:WIDEST_LINE])
        if len(self.rows) > len(rows):
            lines.append(f"  and {len(self.rows) - len(rows)} more")
        return "\n".join(lines)

    def html(self) -> str:
        """Write the card as HTML: at most 30 rows of the table.

        Returns:
            A `div` element, in which everything that users named is escaped.
        """
        from jinja2 import Environment, StrictUndefined

        surroundings = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        rows = self.rows[:MOST_ROWS_OF_HTML]
        return surroundings.from_string(HTML).render(
            card=self, rows=rows, left_out=len(self.rows) - len(rows)
        )


def shortened(text: str, most: int) -> str:
    """Return a text on a single line; a long text is cut at its end.

    Args:
        text: The text, of any characters.
        most: The greatest length in characters.

    Returns:
        The text without line breaks and other control characters.
    """
    line = "".join(letter if letter.isprintable() else " " for letter in text).strip()
    return line if len(line) <= most else f"{line[: most - 1]}…"


def listed(names: tuple[str, ...] | list[str], most: int = 4) -> str:
    """Return the first few names, and how many there are beside them.

    Args:
        names: The names.
        most: The greatest number of names to write.

    Returns:
        A text such as "cat, dog and 3 more".
    """
    text = ", ".join(shortened(name, 30) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"
