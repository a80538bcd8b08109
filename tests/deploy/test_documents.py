"""Documents that can be held against what they speak of."""
import re
import subprocess

import pytest
from conftest import BIN, DEPLOY, ROOT, run

PAGES = sorted(ROOT / name for name in subprocess.run(
    ["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")


def anchors_of(page):
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors_of(there), target


def test_the_api_reference_is_what_the_comments_say():
    done, text = run(ROOT / "proto/api_reference.py", "--check")
    assert done.returncode == 0, text


def test_messages_are_those_that_the_program_writes():
    """Every piece between two ellipses stands in a string of the code, where literals may be broken over lines."""
    sources = [path.read_text() for folder in ("server", "kernels", "client/cpp") for path in (ROOT / folder).rglob("*.cc")]
    code = re.sub(r'"\s*\n\s*"', "", "\n".join(sources))
    literals = "\n".join(re.findall(r'"((?:[^"\\]|\\.)*)"', code))
    tables = (DEPLOY / "TROUBLESHOOTING.md").read_text().split("## Things without")[0]
    cells = [line.split(" | ")[0] for line in tables.splitlines() if line.startswith("| `")]
    assert len(cells) > 30
    for message in re.findall(r"`([^`]+)`", "\n".join(cells)):
        # "x=" and the like are glued together by the code; words are what identifies a message
        for piece in re.findall(r"[A-Za-z][A-Za-z ,'-]{7,}[A-Za-z]", message):
            assert piece in literals, f"{message}: '{piece}' is in no message of the code"


def test_flags_in_the_kits_documents_exist():
    known = {"insecure"}
    programs = [[BIN / "expertd", name] for name in ("serve", "probe", "verify", "inspect", "synth")]
    programs += [[BIN / "expertd-client", name] for name in ("bench", "status")] + [[DEPLOY / "capacity.py"]]
    for program in programs:
        done, text = run(*program, "--help")
        assert done.returncode == 0
        known |= set(FLAG.findall(text))
    for page in (DEPLOY / "TROUBLESHOOTING.md", DEPLOY / "CAPACITY.md", DEPLOY / "prometheus/RUNBOOK.md"):
        assert set(FLAG.findall(page.read_text())) <= known, page


def test_the_capacity_guides_examples_print_what_it_shows():
    examples = re.findall(r"^    (deploy/capacity\.py [^\n]*)\n\n```\n(.*?)```", (DEPLOY / "CAPACITY.md").read_text(), re.M | re.S)
    assert len(examples) == 2
    for command, shown in examples:
        done, text = run(*command.split(), cwd=ROOT)
        assert done.returncode == 0 and text == shown


def test_the_calculator_reads_a_checkpoint_and_refuses_nonsense():
    done, inspected = run(BIN / "expertd", "inspect", ROOT / "tests/data/golden/olmoe", "--json")
    assert done.returncode == 0
    wanted = ["--tokens-per-second", "100", "--batch-rows", "4"]
    done, text = run(DEPLOY / "capacity.py", "--inspect", "-", "--device", "64,80,2", *wanted, input=inspected)
    assert done.returncode == 0 and "devices" in text, text
    for wrong in ([], ["--hidden", "8", "--intermediate", "8", "--experts", "4", "--k", "8", "--layers", "1"]):
        done, text = run(DEPLOY / "capacity.py", *wrong, *wanted)
        assert done.returncode == 1 and text.startswith("deploy/capacity.py: --"), text


def test_log_lines_that_the_runbook_quotes_exist():
    code = "\n".join(path.read_text() for path in (ROOT / "server").rglob("*.cc"))
    quoted = re.findall(r'"([^"]+)"', re.sub(r"`[^`]*`", "", (DEPLOY / "prometheus/RUNBOOK.md").read_text()))
    log_lines = [" ".join(text.split()) for text in quoted if text[0].islower()]
    assert len(log_lines) >= 2
    for line in log_lines:
        assert f'"{line}"' in code, line
