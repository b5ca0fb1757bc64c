"""Checkpoints: what stands in a saved model's folder, and how does it leave the project?

LoRA adapters in PEFT's own format (adapters.py), students (students.py), and exports (export.py).
A command imports the one that it needs.
"""
