"""What hatchling does besides packing a wheel: the compiled parts go into it, and it is one of its platform."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).resolve().parent))
import build_native  # beside this file, which is no package


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles, and adds the libraries."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before packing; ``version`` is ``editable`` where the tree itself is put on the path."""
        root = Path(self.root)
        made = build_native.build(root)
        if version != "editable":
            build_data["pure_python"], build_data["infer_tag"] = False, True
            build_data["force_include"].update({str(one): str(one.relative_to(root)) for one in made})
