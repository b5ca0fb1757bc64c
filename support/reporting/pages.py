"""How does the report look on paper?"""

from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

from matplotlib import get_data_path
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.pdfbase import pdfmetrics, ttfonts
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import Flowable, Image, Paragraph, SimpleDocTemplate, Table

from support.files import write_bytes

BODY = ParagraphStyle("body", fontName="STIX", fontSize=10, leading=12.5, spaceAfter=5)
CAPTION = ParagraphStyle("caption", BODY, fontSize=9, leading=11, keepWithNext=1)
HEADING = ParagraphStyle("heading", BODY, fontName="STIX-Bold", fontSize=12, keepWithNext=1)
TITLE = ParagraphStyle("title", BODY, fontSize=18, leading=28)
WIDTH = 487  # of the text, in points


def text(words: str, style: ParagraphStyle = BODY) -> Flowable:
    """A paragraph of plain text."""
    return Paragraph(escape(words), style)


def table(caption: str, rows: list[tuple[str, ...]], left: int = 1) -> list[Flowable]:
    """A numbered table with horizontal rules only, ``left`` columns flush left.

    A row that has but two cells ends in a remark, which takes the width of all others.
    """
    everything = (0, 0), (-1, -1)
    rules = [
        ("LINEABOVE", (0, 0), (-1, 0), 0.9, "black"), ("LINEBELOW", (0, 0), (-1, 0), 0.4, "black"),
        ("LINEBELOW", (0, -1), (-1, -1), 0.9, "black"), ("FONT", *everything, "STIX", 8.5, 10),
        ("VALIGN", *everything, "TOP"), ("ALIGN", (left, 0), (-1, -1), "RIGHT"),
        ("TOPPADDING", *everything, 1), ("BOTTOMPADDING", *everything, 2),
        ("LEFTPADDING", *everything, 4), ("RIGHTPADDING", *everything, 3),
    ]  # fmt: skip
    columns = len(rows[0])
    for number, row in enumerate(rows):
        if len(row) == 2 < columns:
            rules += [(kind, (1, number), (-1, number), *how) for kind, *how in SPANNED]
    full = [[*row, *[""] * (columns - len(row))] for row in rows]
    body = Table(full, style=rules, spaceAfter=9, repeatRows=1)
    return [numbered("Table", caption), body]


SPANNED = (("SPAN",), ("ALIGN", "LEFT"))


def figure(caption: str, *paths: Path) -> list[Flowable]:
    """A numbered figure of pictures side by side."""
    pictures = [Image(path, (WIDTH - 37) / len(paths), 400, kind="proportional") for path in paths]
    return [numbered("Figure", caption), Table([pictures], spaceAfter=9)]


def numbered(kind: str, caption: str) -> Flowable:
    """A caption with the next number of its kind."""
    return Paragraph(f"<b>{kind} <seq id='{kind}'/>.</b> {escape(caption)}", CAPTION)


def write_pdf(path: Path, parts: Iterable[Flowable]) -> None:
    """Lay the parts out on A4, and write the file whole."""
    for name, file in (("STIX", "STIXGeneral.ttf"), ("STIX-Bold", "STIXGeneralBol.ttf")):
        pdfmetrics.registerFont(ttfonts.TTFont(name, Path(get_data_path(), "fonts/ttf", file)))
    pdfmetrics.registerFontFamily("STIX", bold="STIX-Bold")
    margins = dict.fromkeys(("leftMargin", "rightMargin", "topMargin", "bottomMargin"), 54)
    document = SimpleDocTemplate(pdf := BytesIO(), pagesize=A4, title=path.stem, **margins)
    document.build(list(parts), onFirstPage=number_page, onLaterPages=number_page)
    write_bytes(path, pdf.getvalue())


def number_page(canvas: Canvas, document: SimpleDocTemplate) -> None:
    """The number at the foot of a page."""
    canvas.setFont("STIX", 9)
    canvas.drawCentredString(A4[0] / 2, 30, str(document.page))
