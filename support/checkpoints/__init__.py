"""Checkpoints: what stands in a saved model's folder, and how does it leave the project?

LoRA adapters in PEFT's own format, students, and exports (export.py).
"""

from support.checkpoints.adapters import (
    adapter_fingerprint,
    find_own_base,
    read_adapter,
    teacher_fingerprint,
    write_adapter,
)
from support.checkpoints.students import (
    kind_of,
    read_decision,
    read_max_length,
    read_student,
    save_student,
)

__all__ = [
    "adapter_fingerprint", "find_own_base", "kind_of", "read_adapter", "read_decision",
    "read_max_length", "read_student", "save_student", "teacher_fingerprint", "write_adapter",
]  # fmt: skip
