"""Teaching: on which sentences is a student taught, and what does its teacher answer for them?

Sentences that nobody has labelled, edited or written by the base; logits, and hints at every token.
"""

from support.teaching.answers import leading_components, teacher_answers
from support.teaching.edits import edited_sentences
from support.teaching.holding import HELD_OUT, hold_out
from support.teaching.written import sentences_of_file, written_sentences

__all__ = [
    "HELD_OUT", "edited_sentences", "hold_out", "leading_components",
    "sentences_of_file", "teacher_answers", "written_sentences",
]  # fmt: skip
