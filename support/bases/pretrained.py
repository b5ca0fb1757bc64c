"""Have transformers read a folder, and run nothing that lies there.

A folder may bring code of its own: ``auto_map`` in its configurations names it, and transformers
asks on standard input whether to run it, unless it is told. Nothing else here has it read a folder.
"""

from pathlib import Path
from typing import Any

from support.errors import UserError


def read_pretrained(auto: type, folder: Path, **settings) -> Any:
    """Return what one of transformers' Auto classes reads in a folder, of transformers' classes."""
    from transformers import dynamic_module_utils

    # A model that has others as its parts makes these without handing on what it was told: then
    # transformers would ask, for so many seconds.
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    return auto.from_pretrained(folder, trust_remote_code=False, local_files_only=True, **settings)


def check_needs_no_code(config: dict, folder: Path) -> None:
    """Refuse a model that transformers knows by the code of its folder alone, or a part of it.

    A model that it knows by itself is loaded as that, whatever ``auto_map`` stands beside.
    """
    if "configuration_files" in config:  # transformers would read one of these in its place
        raise UserError(f"{folder}: config.json names other files to be read; take that entry out")
    parts = [config]
    for part in parts:  # the list grows by the parts inside of each
        parts += [inner for inner in part.values() if isinstance(inner, dict)]
    needs_code = any("auto_map" in part for part in parts[1:])
    if "auto_map" in config and not needs_code:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        needs_code = str(config.get("model_type")) not in CONFIG_MAPPING
    if needs_code:
        raise UserError(
            f"{folder}: {config.get('model_type')} cannot be used here: it needs code of its own "
            "(auto_map in config.json), which is never run; choose a base that transformers knows"
        )
