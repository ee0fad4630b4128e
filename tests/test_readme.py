"""Every Python example of the README runs as pasted and prints what its comments say."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_examples_are_found() -> None:
    assert len(BLOCKS) == 2
    assert "E2FormerAttention(" in BLOCKS[0]
    assert "E2FormerPotential(" in BLOCKS[1]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.search(r"E2Former\w+", block)[0])
def test_example_runs(block: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = re.findall(r"^print\(.*\)  # (.+)$", block, re.M)
    assert expected
    exec(compile(block, str(README), "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == expected
