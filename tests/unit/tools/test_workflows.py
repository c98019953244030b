"""Workflows only call make targets that exist, with pinned actions and the fewest rights."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

import images
from control_plane import Unavailable, binaries

ROOT = images.ROOT
FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
MAKE = re.compile(r"(?:sudo --preserve-env )?make (\S+)(?: [A-Z]+=[\w.]+)*")
# Actions that prepare a runner; whatever is done is done by a make target.
SET_UP = {"actions/checkout", "actions/setup-python", "actions/setup-go", "actions/cache"}
WRITING = {  # jobs that may write, and what
    ("release.yml", "images"): {"packages": "write", "id-token": "write"},
    ("release.yml", "publish"): {"contents": "write", "packages": "write", "id-token": "write"},
}
# Variables with a token, and the targets that get them.
TOKENS = {
    "REGISTRY_TOKEN": {"publish-image", "publish-index", "publish-chart", "release-verify"},
    "GH_TOKEN": {"github-release"},
}
NOT_LOCAL = {"github-release": "needs gh, and a repository on GitHub"}


def load(path) -> dict[str, Any]:
    found: dict[Any, Any] = yaml.safe_load(path.read_text())
    found["on"] = found.pop(True)  # YAML 1.1 reads the key `on` so
    return found


def steps() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path in WORKFLOWS:
        for name, job in load(path)["jobs"].items():
            for step in job.get("steps", ()):
                yield path.name, name, step


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z0-9-]+):.*## ", text, re.MULTILINE))


def test_each_step_is_a_make_target_or_sets_up_the_runner():
    called = set()
    for workflow, job, step in steps():
        where = f"{workflow}, {job}: {step}"
        if "uses" in step:
            assert step["uses"].partition("@")[0] in SET_UP, where
        else:
            found = MAKE.fullmatch(step["run"])
            assert found, where
            called.add(found[1])
    assert called <= targets()
    assert {"lint", "test", "e2e", "dist", "images", "release-check", "github-release"} <= called


def test_what_a_release_calls_is_tried_on_this_machine():
    """tests/release runs the same targets, but for those that only GitHub can run."""
    tried = "".join(path.read_text() for path in (ROOT / "tests" / "release").glob("*.py"))
    for workflow, _, step in steps():
        if workflow == "release.yml" and "run" in step:
            target = MAKE.fullmatch(step["run"])[1]
            assert target in NOT_LOCAL or f'"{target}"' in tried, target


def test_actions_are_pinned_by_commit_and_say_their_version():
    for path in WORKFLOWS:
        for line in path.read_text().splitlines():
            if "uses:" in line and "./.github/workflows/" not in line:
                assert re.search(r"uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$", line), line


def test_rights_are_the_fewest():
    for path in WORKFLOWS:
        workflow = load(path)
        assert workflow["permissions"] == {}  # no job gets what it does not name
        assert "pull_request_target" not in workflow["on"]
        for name, job in workflow["jobs"].items():
            allowed = {"contents": "read"} | WRITING.get((path.name, name), {})
            assert job["permissions"] == allowed, name
            for step in job.get("steps", ()):
                if step.get("uses", "").startswith("actions/checkout@"):
                    assert step["with"]["persist-credentials"] is False


def test_tokens_reach_only_the_steps_that_need_them_and_are_not_printed():
    for path in WORKFLOWS:
        text = path.read_text()
        assert "secrets." not in text  # the run's own token is enough
        workflow = load(path)
        for scope in (workflow, *workflow["jobs"].values()):
            assert "token" not in str(scope.get("env", "")).lower()
    for _, _, step in steps():
        given = {key for key, value in step.get("env", {}).items() if "token" in str(value)}
        for variable in given:
            assert step["env"][variable] == "${{ github.token }}"
            assert MAKE.fullmatch(step["run"])[1] in TOKENS[variable]
        assert "${{" not in step.get("run", "")  # no text of an event reaches a shell


def test_a_token_is_on_no_command_line_and_in_no_output():
    recipe = (ROOT / "Makefile").read_text()
    assert "TOKEN" not in re.sub(r"##.*", "", recipe)
    for name in ("registry", "signing", "release"):
        source = (ROOT / "tools" / f"{name}.py").read_text()
        for line in source.splitlines():
            assert not ("print(" in line and re.search("token|secret|auth", line)), line


def test_a_release_uses_no_cache():
    """A cache that a pull request could fill must not reach what is published."""
    release = load(FOLDER / "release.yml")
    for job in release["jobs"].values():
        for step in job.get("steps", ()):
            assert not step.get("uses", "").startswith("actions/cache@")
            if step.get("uses", "").startswith("actions/setup-go@"):
                assert step["with"]["cache"] is False


def test_actionlint_finds_nothing():
    try:
        program = binaries.find("actionlint")["actionlint"]
    except Unavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [program, "-shellcheck=", "-pyflakes=", *WORKFLOWS],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
