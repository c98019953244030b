"""What a release consists of: consistent versions, provenance, the kubectl plugin's parts."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

import images
import kubectl_plugin
import kubectl_v2w
import provenance
import release
from video2world_operator.api.validation import load_resource

VERSION = images.version()
WHEN = datetime(2026, 11, 30, tzinfo=UTC)
CHART = yaml.safe_load((images.ROOT / release.CHART / "Chart.yaml").read_text())
HUB = {key.partition("/")[2]: text for key, text in CHART["annotations"].items()}


def test_only_the_changelog_waits_for_the_release() -> None:
    assert release.check(f"v{VERSION}") in ([], [f"CHANGELOG.md has no section `## {VERSION}`"])


def test_a_contradiction_is_named() -> None:
    found = release.check("v9.9.9")
    assert f"the tag is v9.9.9, and pyproject.toml says {VERSION}" in found


def test_notes_are_the_changelogs_section(tmp_path: Path, monkeypatch) -> None:
    text = "# Changelog\n\n## 1.2.0 - 2027-01-01\n### Added\n- A.\n\n## 1.1.0\n- B.\n"
    (tmp_path / "CHANGELOG.md").write_text(text)
    monkeypatch.setattr(images, "ROOT", tmp_path)
    assert release.notes("1.2.0") == "### Added\n- A."
    assert release.notes("1.1.0") == "- B."
    assert release.notes("1.1") == ""


def test_artifact_hub_shows_our_images_and_a_valid_example() -> None:
    shown = {one["image"] for one in yaml.safe_load(HUB["images"])}
    assert shown == {name for part, name in images.names().items() if part != "pause"}
    (example,) = yaml.safe_load(HUB["crdsExamples"])
    assert load_resource(yaml.safe_dump(example)).name == "demo"


def test_provenance_names_commit_base_image_and_command(monkeypatch) -> None:
    for name in ("GITHUB_REF", "GITHUB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    made = provenance.predicate("images", "o/r", WHEN, "images/operator/Dockerfile")
    source, base = made["buildDefinition"]["resolvedDependencies"]
    assert source["uri"] == "git+https://github.com/o/r"
    assert len(source["digest"]["gitCommit"]) == 40
    assert base["digest"]["sha256"] == images.pinned_base().rpartition(":")[2]
    assert made["buildDefinition"]["externalParameters"]["command"] == "make images"
    assert made["runDetails"]["builder"]["id"] == "urn:video2world:workstation"


def test_provenance_on_github_names_the_run(monkeypatch) -> None:
    facts = {"REF": "refs/tags/v1", "RUN_ID": "7", "RUN_ATTEMPT": "2", "WORKFLOW_REF": "w"}
    for name, value in facts.items():
        monkeypatch.setenv(f"GITHUB_{name}", value)
    monkeypatch.setenv("RUNNER_ENVIRONMENT", "github-hosted")
    made = provenance.predicate("dist", "o/r", WHEN)
    assert made["runDetails"] == {
        "builder": {"id": "https://github.com/actions/runner/github-hosted"},
        "metadata": {
            "startedOn": "2026-11-30T00:00:00Z",
            "invocationId": "https://github.com/o/r/actions/runs/7/attempts/2",
        },
    }


def test_the_plugins_command_accepts_the_pythons_of_its_archive() -> None:
    ends = [tuple(map(int, kubectl_plugin.PYTHONS[end].split("."))) for end in (0, -1)]
    assert ends == [kubectl_v2w.OLDEST, kubectl_v2w.NEWEST]


def test_the_plugins_command_runs_and_refuses_other_pythons(tmp_path: Path) -> None:
    source = Path(kubectl_v2w.__file__).read_text()
    main = tmp_path / "lib" / "video2world_operator" / "cli" / "main.py"
    main.parent.mkdir(parents=True)
    main.write_text("def main():\n    print('ran')\n    return 3\n")
    command = tmp_path / "kubectl-v2w"
    command.write_text(source)
    link = tmp_path / "bin"
    link.symlink_to(command)  # as krew installs it

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-S", link], capture_output=True, text=True)

    done = run()
    assert (done.returncode, done.stdout) == (3, "ran\n")
    command.write_text(source.replace("OLDEST, NEWEST = (3, 11)", "OLDEST, NEWEST = (3, 99)"))
    done = run()
    assert done.returncode == 1
    assert done.stderr.startswith("error: kubectl v2w needs Python 3.99 to 3.14 as python3")


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("yaml/__init__.py", True),
        ("yaml/_yaml.cpython-311-x86_64-linux-gnu.so", True),
        ("aiohttp-3.dist-info/METADATA", True),
        ("aiohttp-3.dist-info/licenses/LICENSE.txt", True),
        ("aiohttp-3.dist-info/RECORD", False),
        ("video2world-0.dist-info/direct_url.json", False),
        ("video2world_trainer/train.py", False),
        ("yaml/__pycache__/x.pyc", False),
        ("bin/v2w", False),
    ],
)
def test_the_plugin_leaves_out_what_the_cli_does_not_need(name: str, needed: bool) -> None:
    assert kubectl_plugin._is_needed(name) is needed


def test_a_file_that_differs_between_pythons_is_an_error() -> None:
    files = {"a.py": b"1"}
    kubectl_plugin._merge(files, {"a.py": b"1", "b.so": b"2"})
    assert files == {"a.py": b"1", "b.so": b"2"}
    with pytest.raises(SystemExit, match=r"a\.py differs"):
        kubectl_plugin._merge(files, {"a.py": b"3"})
