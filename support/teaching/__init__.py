"""Teaching: on which sentences is a student taught, and what does its teacher answer for them?

Sentences that nobody has labelled, edited or written by the base (written.py, which is imported
where a base writes); logits, and hints at every token.
"""

from support.teaching.answers import leading_components, teacher_answers
from support.teaching.edits import edited_sentences

__all__ = ["edited_sentences", "leading_components", "teacher_answers"]
