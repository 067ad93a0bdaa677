"""docs/pictures is what its script draws."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_pictures_are_what_the_script_draws() -> None:
    command = [sys.executable, str(ROOT / "docs" / "build_pictures.py"), "--check"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
