"""docs/integrations.md, the frameworks that are pinned, and those that the Makefile runs are the same."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "integrations.md").read_text("utf-8")


def test_every_recipe_is_run() -> None:
    recipes = re.findall(r"^## (.+)$", PAGE, re.M)
    (run,) = re.findall(r"^INTEGRATIONS := (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.M)
    assert recipes == run.split() == sorted(path.stem for path in (ROOT / "docs" / "integrations").glob("*.txt"))


def test_every_recipe_says_what_it_prints() -> None:
    for section in PAGE.split("\n## ")[1:]:
        assert len(re.findall(r"^```python\n.*?^```\n```text\n.*?^```$", section, re.M | re.S)) == 1, section[:20]


def test_every_framework_is_pinned() -> None:
    for path in (ROOT / "docs" / "integrations").glob("*.txt"):
        assert all(re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?==[\w.]+", line) for line in path.read_text().split()), path.name
        assert path.stem in path.read_text()
