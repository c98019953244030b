"""What a finished stage is bound to: each change of it is noticed, named, and nothing else is."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from video2world_common.folder_locks import owned_folder
from video2world_common.markers import NOT_DONE, Marker, Provenance, changes, file_stamps
from video2world_common.stage_runner import run_stage

MARKER = Marker("dataset", "h")


def put(path, text="x"):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)


def later(path):
    status = Path(path).stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


@pytest.fixture
def volume(tmp_path, monkeypatch):
    """A volume with a finished stage, whose pod this process is."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"STAGE": "dataset", "RESOURCE": "run", "INPUTS_HASH": "h"}.items():
        monkeypatch.setenv(f"V2W_{name}", value)
    for name in ("a.mp4", "a.txt", "b.mp4"):
        put(f"in/{name}")
    for name in ("w0.mp4", "w1.mp4", "w0.txt"):
        put(f"out/{name}")
    put("data/latents.safetensors")
    made = Provenance.of("in")
    made.files = file_stamps(["captions.jsonl"])
    made.left(["out/w0.mp4", "out/w1.mp4"])
    made.outputs["out"]["w0.txt"] = ""
    made.noted = Provenance.of("data").inputs
    with owned_folder(Path("out"), {"window": 5}, "") as made.owned:
        MARKER.write(made, {"windows": 2})
    return tmp_path


def work_with(window):
    with owned_folder(Path("out"), {"window": window}, ""):
        pass


def by_hand():
    del os.environ["V2W_INPUTS_HASH"]
    work_with(5)


CHANGES = {
    "1 new video: c.mov": lambda: put("in/c.mov"),
    "1 changed caption: a.txt": lambda: put("in/a.txt", "longer"),
    "2 changed videos: a.mp4, b.mp4": lambda: [later("in/a.mp4"), later("in/b.mp4")],
    "1 missing video: b.mp4": lambda: Path("in/b.mp4").unlink(),
    "2 missing videos: a.mp4, b.mp4; 1 missing caption: a.txt": lambda: shutil.rmtree("in"),
    "1 new folder: more/": lambda: put("in/more/x"),
    "1 new video: .hidden.mp4": lambda: put("in/.hidden.mp4"),
    "5 new captions: c0.txt, c1.txt, c2.txt and 2 more": lambda: [
        put(f"in/c{n}.txt") for n in range(5)
    ],
    "1 new file: link": lambda: Path("in/link").symlink_to("nowhere"),
    "1 new video: a\N{REPLACEMENT CHARACTER}[31m.mp4": lambda: put("in/a\x1b[31m.mp4"),
    "1 new file: captions.jsonl": lambda: put("captions.jsonl"),
    "1 missing video: w1.mp4": lambda: Path("out/w1.mp4").unlink(),
    "1 changed video: w1.mp4": lambda: put("out/w1.mp4", "longer"),
    "1 missing caption: w0.txt": lambda: Path("out/w0.txt").unlink(),
    "out was made with other settings since (window 6, here 5)": lambda: work_with(6),
    "out was made again since": lambda: [work_with(6), work_with(5)],
    "out was made again since ": by_hand,
    NOT_DONE: MARKER.remove,
}


@pytest.mark.parametrize(("why", "change"), CHANGES.items(), ids=CHANGES)
def test_a_change_of_what_the_stage_is_bound_to_is_named(volume, why, change):
    assert MARKER.judge().done
    change()
    verdict = MARKER.judge()
    assert not verdict.done
    assert verdict.why == why.strip()
    assert MARKER.read() is None


def test_what_does_not_matter_leaves_the_stage_done(volume, monkeypatch):
    put("out/another.mp4")  # put there by the user
    put("out/w0.txt", "a caption that the user corrected")
    later("out/w0.mp4")  # restored from a backup
    put("in/.partial-x.mp4")
    put("in/.lock")
    put("elsewhere.mp4")
    monkeypatch.setenv("V2W_RESOURCE", "another")
    work_with(5)  # with equal settings
    verdict = MARKER.judge()
    assert (verdict.done, verdict.note) == (True, "")
    assert verdict.why.endswith(" by run")
    assert MARKER.read()["summary"] == {"windows": 2}


def test_changed_data_are_reported_but_do_not_undo_the_work(volume):
    put("data/more.safetensors")
    verdict = MARKER.judge()
    assert verdict.done
    assert verdict.note == "its data changed since: 1 new latents file: more.safetensors"


def test_items_that_failed_are_tried_again(volume):
    MARKER.write(Provenance(failed=["a.mp4"]), {})
    assert MARKER.judge().why == "1 failed before: a.mp4"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '{"outputs": ["out"]}',
        '{"inputs": 1, "finished": 2}',
        "\xff",
        '{"outputs": ["out/w0.mp4"], "finished": "now", "resource": "r", "summary": {}}',
    ],
)
def test_a_damaged_or_incomplete_record_is_not_valid(volume, text):
    MARKER.path.write_text(text, encoding="latin-1")
    verdict = MARKER.judge()
    assert not verdict.done
    assert verdict.why in (
        f"its record {MARKER.path} is damaged",
        NOT_DONE,
    )


def test_in_a_pod_a_record_names_no_files_outside_of_the_volume(volume, tmp_path_factory):
    secret = tmp_path_factory.mktemp("pod")
    put(secret / "token.txt")
    record = json.loads(MARKER.path.read_text())
    MARKER.path.write_text(json.dumps(record | {"inputs": {str(secret): {}}}))
    assert "token" not in MARKER.judge().why


def test_a_file_that_became_readable_is_seen(volume):
    assert MARKER.judge().done  # and all modules are loaded
    Path("in/a.txt").chmod(0o000)
    volume.chmod(0o755)
    root = os.geteuid() == 0  # which may read everything
    if root:
        os.seteuid(1000)
    try:
        assert MARKER.judge().why == "1 changed caption: a.txt"
    finally:
        if root:
            os.seteuid(0)


def test_the_command_prints_verdicts_on_several_stages(volume):
    argv = [sys.executable, "-m", "video2world_common.markers", "dataset=h", "latents=g"]
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    first, second = map(json.loads, said.splitlines())
    assert (first["stage"], first["done"]) == ("dataset", True)
    assert second == {"stage": "latents", "done": False, "why": NOT_DONE, "note": "", "result": {}}


def events(capsys):
    lines = capsys.readouterr().out.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return lines, [(e["stage"], e.get("message")) for e in found if e["event"] == "skipped"]


def test_the_result_of_a_stage_that_is_done_is_repeated(volume, monkeypatch, capsys):
    answer = {"verdict": "Better", "text": "it helped", "event": "failed", "stage": "train"}
    Marker("evaluation", "e").write(Provenance.of("out"), {"clips": 7, "evaluation": answer})
    monkeypatch.setenv("V2W_LATER_STAGES", "evaluation=e")
    assert run_stage(lambda: pytest.fail("it is done"), stage="dataset") == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == answer | {"event": "evaluation", "stage": "evaluation"}
    assert Marker("evaluation", "e").judge().result == answer


def test_later_stages_are_reported_up_to_the_first_that_is_not_done(volume, monkeypatch, capsys):
    Marker("embeddings", "e").write(Provenance.of("out"), {})
    Marker("latents", "l").write(Provenance(outputs={"out": {"gone.safetensors": ""}}), {})
    Marker("train", "t").write(Provenance(noted={"in": {}}), {})
    monkeypatch.setenv("V2W_LATER_STAGES", "embeddings=e,latents=l,train=t")
    assert run_stage(lambda: pytest.fail("it is done"), stage="dataset") == 0
    assert events(capsys)[1] == [("dataset", ""), ("embeddings", "")]
    put("out/gone.safetensors")
    Marker("embeddings", "e").write(Provenance.of("out"), {})
    assert run_stage(lambda: pytest.fail("it is done"), stage="dataset") == 0
    note = "its data changed since: 2 new videos: a.mp4, b.mp4; 1 new caption: a.txt"
    assert events(capsys)[1][2:] == [("latents", ""), ("train", note)]

    # What an earlier stage changes is judged after it has run.
    put("in/c.mp4")

    def work():
        put("out/w2.mp4")
        return Provenance.of("in"), {}

    assert run_stage(work, stage="dataset") == 0
    lines, skipped = events(capsys)
    assert "dataset: run again: 1 new video: c.mp4" in lines
    assert skipped == []


def test_interrupted_work_leaves_no_record(volume):
    put("in/c.mp4")

    def work():
        put("out/c.mp4")
        raise SystemExit(143)

    with pytest.raises(SystemExit):
        run_stage(work, stage="dataset")
    Path("in/c.mp4").unlink()  # as the record had it: but out/c.mp4 is left
    assert not MARKER.judge().done


def test_a_missing_actions_file_is_named_as_such():
    recorded = {f"d/train/{kind}": {"w.safetensors": "9"} for kind in ("actions", "latents")}
    recorded["d/train/actions"]["x.safetensors"] = "9"
    assert changes(recorded, {}, complete=False) == (
        "2 missing actions files: w.safetensors, x.safetensors; "
        "1 missing latents file: w.safetensors"
    )
