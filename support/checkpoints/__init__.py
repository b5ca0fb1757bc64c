"""Checkpoints."""

from support.checkpoints.adapters import (
    adapter_fingerprint,
    find_own_base,
    read_adapter,
    teacher_fingerprint,
    write_adapter,
)
from support.checkpoints.students import kind_of, read_max_length, read_student, save_student
