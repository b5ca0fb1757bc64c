"""What the story needs and is not the story: a subject a file.

Everything here that reads a file, an option or the machine raises `errors.UserError` for what the
user can mend, in one line that names the file and the remedy; no docstring says so again.
"""
