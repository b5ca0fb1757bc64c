"""Have transformers read a folder, and run nothing that lies there.

A folder may bring code of its own: ``auto_map`` in its configurations names it, and transformers
asks on standard input whether to run it, unless it is told. Nothing else here has it read a folder.
"""

from pathlib import Path
from typing import Any

from support.errors import UserError


def read_pretrained(auto: type, folder: Path, **settings) -> Any:
    """Return what one of transformers' Auto classes reads in a folder, of transformers' classes."""
    return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **settings)


def check_needs_no_code(config: dict, folder: Path) -> None:
    """Refuse a model that transformers knows by the code of its folder alone.

    A model that it knows by itself is loaded as that, whatever ``auto_map`` stands beside.
    """
    if "auto_map" not in config:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if (model_type := str(config.get("model_type"))) not in CONFIG_MAPPING:
        raise UserError(
            f"{folder}: {model_type} cannot be used here: it needs code of its own "
            "(auto_map in config.json), which is never run; choose a base that transformers knows"
        )
