"""No flag of a worker's command is taken and ignored without a note."""

import ast
import re

import pytest

from repository import ROOT
from video2world_preprocess import agibot, demo, download, embeddings, latents, prepared, videos
from video2world_trainer import evaluate, inference, sweep

COMMANDS = {
    module.__name__: module
    for module in (
        agibot,
        demo,
        download,
        embeddings,
        evaluate,
        inference,
        latents,
        prepared,
        sweep,
        videos,
    )
}


def read_of_args(package):
    """Names that any module of the package reads of parsed flags, plainly or by getattr."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                found.add(node.attr)
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_read(name):
    package = "trainer" if "trainer" in name else "preprocess"
    read = read_of_args(package) | read_of_args("preprocess") | read_of_args("common")
    if name == inference.__name__:  # its table is in test_inference.py
        read |= {*inference.NOT_INCLUDED, *inference.WITHOUT_EFFECT, "negative_prompt"}
    flags = {action.dest for action in COMMANDS[name].parser()._actions} - {"help"}
    assert flags - read == set()


OF_THE_HUB = "--repo_id a/b --revision main --keep_tar"
OF_SPLITTING = (
    "--window-size 4 --min-last-window 5 --min_frames 9 --workers 1 --val_episode_ids 3 "
    "--dataset_dir d --caption_file c --shards 2 --shard 0"
)


@pytest.mark.parametrize(
    ("mode", "flags", "why"),
    [
        ("--delete-only", f"{OF_THE_HUB} {OF_SPLITTING} --local", "with --delete-only"),
        ("--split-only", f"{OF_THE_HUB} --local", "with --split-only"),
        ("--prepare --local", OF_THE_HUB, "with --local"),
        ("--local", OF_SPLITTING, "without --prepare or --split-only"),
        ("--prepare --local", None, ""),
        ("--split-only", None, ""),
        ("--delete-only", None, ""),
        ("--local", None, ""),
    ],
)
def test_agibots_flags_that_a_mode_does_not_read_are_noted(
    tmp_path, monkeypatch, capsys, mode, flags, why
):
    monkeypatch.chdir(tmp_path)
    agibot.main([*mode.split(), *(flags or "").split()])
    noted = re.findall(r"note: (--\S+) has no effect (.*)", capsys.readouterr().out)
    wanted = {word for word in (flags or "").split() if word.startswith("--")}
    assert set(noted) == {(flag, why) for flag in wanted}


def test_downloads_flags_that_tiny_does_not_read_are_noted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--fps", "10", "--resolution", "480", "720", "--natten", "--natten_only", "--dry-run"]
    assert download.main(["--model_sizes", "Tiny", *flags]) == 0
    noted = re.findall(r"note: (--\S+) has no effect for Tiny", capsys.readouterr().out)
    assert noted == ["--fps", "--resolution", "--natten", "--natten_only"]
    assert download.main(["--model_sizes", "Tiny", "--dry-run"]) == 0
    assert "note:" not in capsys.readouterr().out
    assert download.main(["--model_sizes", "2B", *flags]) == 0
    assert "note:" not in capsys.readouterr().out
