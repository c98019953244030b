"""docs/reference is what the code says, and no environment variable is left out of it."""

import re

import pytest

from repository import ROOT
from video2world_operator.api.validation import parse
from video2world_operator.codegen.reference import ENVIRONMENT, FOLDER, main, pages
from video2world_operator.controller.flags import FLAGS
from video2world_operator.plan.plan import make_plan

READ = re.compile(r"""environ(?:\.get|\.setdefault|\.pop)?[\[(]\s*["']([A-Z][A-Z0-9_]+)["']""")
SET = re.compile(r"""env(?:\.setdefault\(|\[)["']([A-Z][A-Z0-9_]+)["']""")


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_the_pages_are_up_to_date(path):
    assert path.read_text() == pages()[path], "run make generate"


def test_check_tells_what_is_out_of_date(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("video2world_operator.codegen.reference.FOLDER", tmp_path / "reference")
    assert main(["--check"]) == 1
    assert "make generate" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0


def known():
    return {variable.name for group in ENVIRONMENT.values() for variable in group}


def documented(name):
    return name in known() or name.startswith(("NCCL_", "FI_"))


def sources():
    for folder in ("common", "operator", "preprocess", "trainer"):
        yield from (path.read_text() for path in (ROOT / folder).rglob("*.py"))


def test_every_variable_that_is_read_or_set_is_listed():
    found = {name for text in sources() for name in (*READ.findall(text), *SET.findall(text))}
    found |= {flag.variable for flag in FLAGS}
    assert {"HF_TOKEN", "V2W_STAGE", "V2W_PORT", "JOB_COMPLETION_INDEX"} <= found  # it does search
    assert {name for name in found if not documented(name)} == set()


def test_every_variable_that_the_plan_sets_is_listed_and_none_beside():
    spec = {
        "model": {"size": "14B"},
        "dataset": {"agibot": {}},
        "training": {"iterations": 5, "interconnect": "EFA"},
        "credentials": {"huggingFaceTokenSecret": {"name": "hf"}},
        "inference": {"samples": [{"input": "a.mp4"}]},
    }
    plan = make_plan(
        parse(
            {
                "apiVersion": "video2world.dev/v1alpha1",
                "kind": "Video2WorldPostTrain",
                "metadata": {"name": "a"},
                "spec": spec,
            }
        )
    )
    env = {
        entry["name"]
        for stage in plan.stages
        for entry in stage.job["spec"]["template"]["spec"]["containers"][0]["env"]
    }
    assert {name for name in env if not documented(name)} == set()
    text = "".join(sources())
    assert {name for name in known() if name.startswith("V2W_") and name not in text} == set()


MARKDOWN = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda p: p.name)
def test_links_between_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_tables_have_the_same_number_of_cells_in_every_row():
    for page in FOLDER.glob("*.md"):
        for block in page.read_text().split("\n\n"):
            rows = [line for line in block.splitlines() if line.startswith("|")]
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) <= 1


def test_every_test_that_the_security_page_names_is_there():
    named = set(re.findall(r"`(tests/[\w/]+\.py)`", (ROOT / "docs" / "security.md").read_text()))
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).is_file()] == []
