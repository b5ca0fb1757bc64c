"""Teaching."""

from support.teaching.answers import Basis, principal_components, read_hints, saved_tensors
from support.teaching.edits import transfer_sentences
from support.teaching.written import written_sentences
