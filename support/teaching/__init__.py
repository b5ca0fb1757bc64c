"""Teaching: on which sentences is a student taught, and what does its teacher answer for them?

Sentences that nobody has labelled, edited or written by the base; logits, and hints at every token.
"""

from support.teaching.answers import leading_components, read_hints, saved_tensors
from support.teaching.edits import transfer_sentences
from support.teaching.holding import HELD_OUT, hold_out, linear_discriminant
from support.teaching.written import sentences_of_file, written_sentences

__all__ = [
    "HELD_OUT", "hold_out", "leading_components", "linear_discriminant", "read_hints",
    "saved_tensors", "sentences_of_file", "transfer_sentences", "written_sentences",
]  # fmt: skip
