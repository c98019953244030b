"""v2w doctor: what the archive holds, and that no secret is in it."""

import json
import zipfile

import pytest

from video2world_operator.cli import main as cli
from video2world_operator.cli.main import main
from video2world_operator.cli.redact import REDACTED, redact

# made up here, so that no scanner of the repository finds them
HF = "hf_" + "aB3dE6gH" * 4
JWT = ".".join(("eyJhbGciOiJSUzI1NiIsImtpZCI6IiJ9", "eyJpc3MiOiJrdWJlcm5ldGVzIn0", "c2lnbmF0dXJl"))
AWS = "AKIA" + "IOSFODNN7" + "EXAMPLE"
KEY = "-----BEGIN RSA {0}-----\nMIIEow\nabc\n-----END RSA {0}-----".format("PRIVATE " + "KEY")
SECRETS = {
    f"using token {HF} of the Hub": HF,
    f"Authorization: Bearer {JWT}": JWT,
    f"aws_access_key_id = {AWS}": AWS,
    f"key:\n{KEY}\n": "MIIEow",
    "https://me:s3cr3t@example.com/a": "s3cr3t",  # pragma: allowlist secret
    "https://b.s3.amazonaws.com/a?X-Amz-Signature=deadbeef01&x=1": "deadbeef01",
    "HF_TOKEN=topsecret": "topsecret",  # pragma: allowlist secret
    '{"api_key": "topsecret"}': "topsecret",  # pragma: allowlist secret
    "    - name: WANDB_API_KEY\n      value: topsecret\n": "topsecret",
    "password: 'top secret'": "top secret",  # pragma: allowlist secret
}


@pytest.mark.parametrize("text", SECRETS)
def test_what_looks_like_a_secret_is_removed(text):
    clean = redact(text)
    assert SECRETS[text] not in clean
    assert REDACTED in clean


@pytest.mark.parametrize(
    "text",
    [
        "84480 tokens, iteration 100, loss 0.0934",
        "huggingFaceTokenSecret:\n  name: huggingface",
        "https://huggingface.co/datasets/my-team/cups",
        "the video tokenizer is in checkpoints/tokenizer",
        "spec.credentials: leave it out",
        '{"event": "progress", "stage": "train", "iteration": 5}',
    ],
)
def test_other_text_is_kept(text):
    assert redact(text) == text


def test_known_secrets_are_removed_whatever_their_form():
    assert redact("it is qwertz!", ["qwertz", ""]) == f"it is {REDACTED}!"


@pytest.fixture
def volume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "volume/.video2world/demo"
    (folder / "logs").mkdir(parents=True)
    state = {"status": {"phase": "Failed", "stage": "train", "message": "Pod failed."}}
    (folder / "state.json").write_text(json.dumps(state))
    lines = [*SECRETS, "Traceback (most recent call last):", "ValueError: of the worker"]
    (folder / "logs/train-1-0.log").write_text("\n".join(lines))
    return tmp_path


def test_the_archive_of_a_local_run(volume, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "quite-unlike-a-token")
    assert main(["doctor", "demo", "-o", "it.zip"]) == 0
    listed = capsys.readouterr().out
    with zipfile.ZipFile(volume / "it.zip") as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist()}
    assert set(files) == {
        "README.txt",
        "explain.txt",
        "logs/train-1-0.log",
        "state.json",
        "versions.json",
    }
    for name in files:
        assert name in listed or name == "README.txt"
    assert "ValueError: of the worker" in files["logs/train-1-0.log"]
    assert json.loads(files["versions.json"])["packages"]["torch"]
    whole = "\n".join(files.values())
    assert "quite-unlike-a-token" not in whole
    for secret in SECRETS.values():
        assert secret not in whole


def test_without_a_name_it_describes_the_machine(volume):
    assert main(["doctor"]) == 0
    with zipfile.ZipFile("v2w-doctor-machine.zip") as archive:
        assert "versions.json" in archive.namelist()


def test_an_unknown_run_is_a_mistake_not_a_defect(volume, capsys):
    assert main(["doctor", "other"]) == 2
    assert "no run of this name" in capsys.readouterr().err


def test_a_defect_of_v2w_names_the_command(monkeypatch, capsys):
    def fails(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(cli, "_call", fails)
    assert main(["status", "demo", "--volume", "."]) == 1
    said = capsys.readouterr().err
    assert "RuntimeError: a defect" in said
    assert "`v2w doctor demo` gathers" in said
