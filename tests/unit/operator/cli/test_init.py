"""v2w init: what it asks, what it writes, and what it refuses."""

import io
import re
import sys

import pytest

from video2world_operator.api.validation import load_resource
from video2world_operator.cli.main import main

SOURCES = {
    "lerobot": ("my-team/Cups_v2", "cups-v2"),
    "videos": ("my-videos", "my-videos"),
    "agibot": ("327, 352", "agibot"),
    "prepared": ("datasets/my set: 1", "my-set-1"),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # no terminal
    return tmp_path


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("size", ["Tiny", "2B", "14B"])
@pytest.mark.parametrize("kind", SOURCES)
def test_the_file_is_valid_and_so_are_its_comments(kind, size, folder):
    location, name = SOURCES[kind]
    assert main(["init", "--data", kind, "--location", location, "--size", size]) == 0
    text = (folder / f"{name}.yaml").read_text()
    resource = load_resource(text)
    assert (resource.name, resource.spec.model.size) == (name, size)
    assert getattr(resource.spec.dataset, kind) is not None
    uncommented = re.sub(r"^( +)# ", r"\1", text, flags=re.M)
    assert load_resource(uncommented).spec.training.nodes == 2


def test_what_flags_leave_open_is_asked(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Terminal("lerobot\nteam/cups\ntop\n\n20\n"))
    assert main(["init", "-o", "it.yaml"]) == 0
    asked = capsys.readouterr().out
    assert len(re.findall(r": (?=\w|$)", asked.split("it.yaml is written")[0])) >= 5
    spec = load_resource((folder / "it.yaml").read_text()).spec
    assert (spec.dataset.lerobot.repo_id, spec.dataset.lerobot.camera) == ("team/cups", "top")
    assert (spec.model.size, spec.training.iterations) == ("2B", 20)
    assert spec.training.checkpoint.every_iterations == 20


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "--location is missing, and there is no terminal"),
        (("--data", "rlds", "--location", "a"), "choose one of lerobot, videos"),
        (("--data", "videos", "--location", "../a"), "spec.dataset.videos.path"),
        (("--data", "agibot", "--location", "pick"), "spec.dataset.agibot.taskIDs"),
        (("--location", "a/b", "--iterations", "many"), "spec.training.iterations"),
        (("--location", "a/b", "--size", "7B"), "spec.model.size"),
        (("--location", "a/b", "-o", "no/such/folder.yaml"), "cannot be written"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(flags, words, folder, capsys):
    assert main(["init", *flags]) == 2
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_file_is_only_replaced_if_asked(folder, capsys):
    (folder / "a.yaml").write_text("mine")
    command = ["init", "--location", "team/a"]
    assert main(command) == 2
    assert "a.yaml exists" in capsys.readouterr().err
    assert (folder / "a.yaml").read_text() == "mine"
    assert main([*command, "--force"]) == 0
    assert load_resource((folder / "a.yaml").read_text()).name == "a"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_knows_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("preflight", "--iterations", "suspend"):
        assert word in script
