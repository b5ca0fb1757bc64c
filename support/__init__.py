"""What the story needs and is not the story: rooms, each with a subject, and what serves all.

Everything here that reads a file, an option or the machine raises `errors.UserError` for what the
user can mend: one line that names the place and the remedy. No docstring says so again.
"""

from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
VERSION = "1.0.0"
