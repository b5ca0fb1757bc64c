"""Teaching: on which sentences is a student taught, and what does its teacher answer for them?

Sentences that nobody has labelled, edited or written by the base; logits, and hints at every token.
"""

from support.teaching.answers import Basis, principal_components, read_hints, saved_tensors
from support.teaching.edits import transfer_sentences
from support.teaching.written import written_sentences

__all__ = [
    "Basis", "principal_components", "read_hints", "saved_tensors", "transfer_sentences",
    "written_sentences",
]  # fmt: skip
