"""Examples that run through DVC: a checkout of one in a folder of its own, and commands in it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.test_dvc import stages_of

ROOT = Path(__file__).resolve().parent.parent


def written() -> tuple[str, ...]:
    """What the stages of an example write, beside what is in the repository."""
    return ("caches", "claims", "data", "models", "runs", "evaluations", "report", "dvc.lock")


def stages_as_read(folder: Path, example: str) -> dict[str, Any]:
    """The stages of ``examples/NAME`` as DVC reads them, in a copy without git in ``folder``."""
    place = Path("examples") / example
    shutil.copytree(ROOT / place, folder / place, ignore=shutil.ignore_patterns(*written()))
    shutil.copy(ROOT / ".dvcignore", folder)
    return stages_of(folder)


def checkout(folder: Path, example: str) -> Path:
    """``examples/NAME`` with all that it needs, in a git repository of its own; the folder of the example."""
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("pipeline", ".dvc", f"examples/{example}"):
        ignored = shutil.ignore_patterns("__pycache__", "cache", "tmp", "config.local", *written())
        if name == "pipeline":
            ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shell(folder, "git", "init", "--quiet")
    return folder / "examples" / example


def shell(folder: Path, *command: str) -> str:
    """What a command prints on either stream; its failure fails the test."""
    places = [str(Path(sys.executable).parent), os.environ["PATH"]]
    environment = {**os.environ, "PATH": os.pathsep.join(places), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment |= {"DVC_NO_ANALYTICS": "1", "XDG_CACHE_HOME": str(folder / "xdg")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
