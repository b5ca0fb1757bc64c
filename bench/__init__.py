"""Measurements. Nothing here is a test; bench/README.md tells what each module shows."""

from support.setup import setup

setup()
