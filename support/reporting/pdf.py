"""How does the report look on paper? The summary of its sections, without their details."""

import textwrap
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

from matplotlib import get_data_path
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics, ttfonts
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Table

from support.files import write_bytes
from support.reporting.tables import Section

BODY = ParagraphStyle("body", fontName="STIX", fontSize=10, leading=12.5, spaceAfter=5)
CAPTION = ParagraphStyle("caption", BODY, fontSize=9, leading=11, keepWithNext=True)
HEADING = ParagraphStyle("heading", BODY, fontSize=14, leading=20, keepWithNext=True)
WIDTH = 480  # of the text, in points
EVERYTHING = (0, 0), (-1, -1)
RULED = [
    ("LINEABOVE", (0, 0), (-1, 0), 0.9, "black"), ("LINEBELOW", (0, 0), (-1, 0), 0.4, "black"),
    ("LINEBELOW", (0, -1), (-1, -1), 0.9, "black"), ("FONT", *EVERYTHING, "STIX", 8.5, 10),
    ("VALIGN", *EVERYTHING, "TOP"), ("ALIGN", (2, 0), (-1, -1), "RIGHT"),
    ("TOPPADDING", *EVERYTHING, 1), ("BOTTOMPADDING", *EVERYTHING, 2),
    ("LEFTPADDING", *EVERYTHING, 4), ("RIGHTPADDING", *EVERYTHING, 3),
]  # fmt: skip


def flowables(section: Section) -> Iterator[Flowable]:
    """Yield a section's heading, tables, paragraphs and pictures."""
    yield Paragraph(escape(section.heading), HEADING)
    for caption, frame in section.tables:
        if frame.empty:
            continue
        rows = [[*frame], *frame.astype(str).to_numpy().tolist()]
        cells = [[textwrap.fill(cell, 30) for cell in row] for row in rows]
        yield Paragraph(escape(caption), CAPTION)
        yield Table(cells, style=RULED, spaceAfter=9, repeatRows=1, hAlign="LEFT")
    for words in section.texts:
        yield Paragraph(escape(words), BODY)
    for caption, pictures in section.pictures:
        yield Paragraph(escape(caption), CAPTION)
        width = WIDTH / len(pictures)
        yield Table([[Image(BytesIO(png), width, 400, kind="proportional") for png in pictures]])


def write_pdf(path: Path, sections: list[Section]) -> None:
    """Lay the sections out on A4, and write the file whole."""
    font = Path(get_data_path(), "fonts/ttf/STIXGeneral.ttf")
    pdfmetrics.registerFont(ttfonts.TTFont("STIX", font))
    margins = dict.fromkeys(("leftMargin", "rightMargin", "topMargin", "bottomMargin"), 54)
    # "invariant" leaves the date out, so that the same report is the same bytes.
    looks = {"pagesize": A4, "title": path.stem, "invariant": 1}
    document = SimpleDocTemplate(pdf := BytesIO(), **looks, **margins)
    document.build([part for section in sections for part in flowables(section)])
    write_bytes(path, pdf.getvalue())
