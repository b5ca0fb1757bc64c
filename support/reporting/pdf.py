"""How does the report look on paper?"""

import textwrap
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

from matplotlib import get_data_path
from pandas import DataFrame
from reportlab.lib.pagesizes import A4
from reportlab.lib.sequencer import Sequencer, setSequencer
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics, ttfonts
from reportlab.platypus import CondPageBreak, Flowable, Image, Paragraph, SimpleDocTemplate, Table

from support.files import write_bytes

BODY = ParagraphStyle("body", fontName="STIX", fontSize=10, leading=12.5, spaceAfter=5)
CAPTION = ParagraphStyle("caption", BODY, fontSize=9, leading=11)
HEADING = ParagraphStyle("heading", BODY, fontName="STIX-Bold", fontSize=12)
TITLE = ParagraphStyle("title", BODY, fontSize=18, leading=28)
WIDTH = 487  # of the text, in points
EVERYTHING = (0, 0), (-1, -1)
RULED = [
    ("LINEABOVE", (0, 0), (-1, 0), 0.9, "black"), ("LINEBELOW", (0, 0), (-1, 0), 0.4, "black"),
    ("LINEBELOW", (0, -1), (-1, -1), 0.9, "black"),
    ("FONT", *EVERYTHING, "STIX", 8.5, 10),
    ("VALIGN", *EVERYTHING, "TOP"), ("TOPPADDING", *EVERYTHING, 1),
    ("BOTTOMPADDING", *EVERYTHING, 2), ("LEFTPADDING", *EVERYTHING, 4),
    ("RIGHTPADDING", *EVERYTHING, 3),
]  # fmt: skip
SPANNED = (("SPAN",), ("ALIGN", "LEFT"))


def text(words: str, style: ParagraphStyle = BODY) -> Flowable:
    """Return a paragraph of plain text."""
    return Paragraph(escape(words), style)


def heading(words: str) -> list[Flowable]:
    """Return a heading that does not end a page."""
    return [CondPageBreak(90), text(words, HEADING)]


def numbered(kind: str, caption: str) -> Flowable:
    """Return a caption with the next number of its kind."""
    return Paragraph(f"<b>{kind} <seq id='{kind}'/>.</b> {escape(caption)}", CAPTION)


def table(caption: str, frame: DataFrame, left: int = 1, last: int = 30) -> list[Flowable]:
    """Return a numbered table with horizontal rules only, ``left`` columns flush left.

    A cell is broken into lines of 30 characters, in the ``last`` column of so many. The second cell
    of a row that has no third takes the width of all others. A table without rows is left out.
    """
    if frame.empty:
        return []
    limits = [30] * (frame.shape[1] - 1) + [last]
    rules, rows = [*RULED, ("ALIGN", (left, 0), (-1, -1), "RIGHT")], frame.fillna("").astype(str)
    rows = rows.to_numpy().tolist()
    for number, row in enumerate(rows, start=1):
        if alone := not any(row[2:]):
            rules += [(kind, (1, number), (-1, number), *how) for kind, *how in SPANNED]
        row[:] = [
            textwrap.fill(cell, 100 if alone else limit)
            for cell, limit in zip(row, limits, strict=True)
        ]
    heads = [textwrap.fill(name, 17) for name in frame]
    body = Table([heads, *rows], style=rules, spaceAfter=9, repeatRows=1, hAlign="LEFT")
    return [CondPageBreak(70), numbered("Table", caption), body]


class Figure(Table):
    """A numbered figure of pictures side by side."""

    def __init__(self, caption: str, *paths: Path):
        width = (WIDTH - 37) / len(paths)
        pictures = [Image(path, width, 400, kind="proportional") for path in paths]
        rows = [[numbered("Figure", caption)], [Table([pictures])]]
        super().__init__(rows, spaceAfter=9, hAlign="LEFT")


class Report(SimpleDocTemplate):
    """A document whose pages are filled: what follows a figure without room goes before it."""

    def handle_flowable(self, flowables: list[Flowable]) -> None:
        """Place the first flowable, or the next that is no figure."""
        if isinstance(flowables[0], Figure):
            if self.frame.add(flowables[0], self.canv):
                del flowables[0]
                return
            others = (i for i, part in enumerate(flowables) if not isinstance(part, Figure))
            flowables.insert(0, flowables.pop(next(others, 0)))
        super().handle_flowable(flowables)

    def afterPage(self) -> None:
        """Draw the number at the foot of a page."""
        self.canv.setFont("STIX", 9)
        self.canv.drawCentredString(A4[0] / 2, 30, str(self.page))


def write_pdf(path: Path, parts: Iterable[Flowable]) -> None:
    """Lay the parts out on A4, and write the file whole."""
    for name, file in (("STIX", "STIXGeneral.ttf"), ("STIX-Bold", "STIXGeneralBol.ttf")):
        pdfmetrics.registerFont(ttfonts.TTFont(name, Path(get_data_path(), "fonts/ttf", file)))
    pdfmetrics.registerFontFamily("STIX", bold="STIX-Bold")
    setSequencer(Sequencer())  # tables and figures are numbered from 1
    margins = dict.fromkeys(("leftMargin", "rightMargin", "topMargin", "bottomMargin"), 54)
    document = Report(pdf := BytesIO(), pagesize=A4, title=path.stem, **margins)
    document.build(list(parts))
    write_bytes(path, pdf.getvalue())
