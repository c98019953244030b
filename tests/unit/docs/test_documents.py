"""The claims of README, CONTRIBUTING and the pages about the code are true."""

import ast
import re
import sys
import tomllib

import pytest

from repository import ROOT
from video2world_common.experiments import EXPERIMENTS
from video2world_operator.api.conditions import Type
from video2world_operator.api.validation import parse
from video2world_preprocess.videos import VIDEO_SUFFIXES
from video2world_trainer.generation import batch_file
from video2world_trainer.model.presets import PRESETS
from video2world_trainer.training.config import TrainConfig, as_overrides
from video2world_trainer.training.config_parser import read_config

README = (ROOT / "README.md").read_text()
ORIGINAL = (ROOT / "docs/original.md").read_text()
FOLDERS = ("common", "operator", "preprocess", "trainer")
PACKAGES = {"video2world_operator", "video2world_preprocess", "video2world_trainer"}


def imports(folder):
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names


@pytest.mark.parametrize("folder", FOLDERS)
def test_contributing_lists_the_packages_that_are_imported(folder):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (row,) = (line for line in text.splitlines() if line.startswith(f"| `{folder}/`"))
    _, _, package, allowed, _ = row.split("|")
    named = set(re.findall(r"`(\w+)`", allowed))
    own = re.findall(r"`(video2world_\w+)`", package)
    assert imports(folder) - set(own) == named - {"torch"} | ({"torch"} & imports(folder))
    if folder == "operator":
        assert not imports(folder) & {"torch", *PACKAGES} - set(own)
        assert "never torch, never the workers" in allowed


PATH_ROOTS = [ROOT, *(ROOT / folder / f"video2world_{folder}" for folder in FOLDERS)]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_path_of_the_map_exists(page):
    """Paths are relative to the repository, or to one of its packages."""
    named = set(re.findall(r"`([\w./-]+(?:\.(?:py|md|toml)|/))`", (ROOT / page).read_text()))
    assert len(named) > 15
    missing = [one for one in named if not any((root / one).exists() for root in PATH_ROOTS)]
    assert missing == []


def test_the_architecture_page_lists_every_layer():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contracts = settings["tool"]["importlinter"]["contracts"]
    page = (ROOT / "docs/architecture.md").read_text()
    rows = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("| `"))
    listed = set(re.findall(r"`(\w+)`", rows))
    for contract in contracts:
        if "containers" in contract:
            layers = re.findall(r"\w+", " ".join(contract["layers"]))
            assert set(layers) <= listed, contract["name"]


def test_every_path_of_the_repository_that_a_page_names_exists():
    tops = "benchmarks|charts|common|docs|manifests|operator|preprocess|tests|tools|trainer"
    pattern = re.compile(rf"`((?:{tops})/[\w./-]+)`")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = {(page.name, one) for page in pages for one in pattern.findall(page.read_text())}
    assert len(named) > 40
    assert {one for one in named if not (ROOT / one[1]).exists()} == set()


def test_the_cluster_page_lists_every_condition():
    page = (ROOT / "docs/cluster.md").read_text()
    text = page[page.index("Conditions, for `kubectl wait`") :]
    assert set(re.findall(r"`([A-Z][A-Za-z]+)`", text)) == {str(one) for one in Type}


def test_the_data_page_lists_the_file_types_that_are_read():
    text = (ROOT / "docs/data.md").read_text().replace("\n", " ")
    (named,) = re.findall(r"`(\.mp4 [.\w ]+)` are read", text)
    assert set(named.split()) == set(VIDEO_SUFFIXES)


def test_readme_is_short():
    assert len(README.splitlines()) <= 150


def resource(**training):
    size = training.pop("size")
    return parse(
        {
            "apiVersion": "video2world.dev/v1alpha1",
            "kind": "Video2WorldPostTrain",
            "metadata": {"name": "a"},
            "spec": {"model": {"size": size}, "dataset": {"agibot": {}}, "training": training},
        }
    ).spec


@pytest.mark.parametrize("size", ["2B", "14B"])
def test_defaults_are_the_guides_but_for_geometry_and_rope(size):
    """README: every other field has the guide's default; but for two."""
    name = next(n for n in EXPERIMENTS if f"_{size.lower()}_" in n and not n.endswith("fps"))
    plain = resource(size=size, iterations=5)
    guide = resource(size=size, iterations=5, experiment=name)
    properties = (
        "nodes",
        "processes_per_node",
        "context_parallel",
        "rope_ratios",
        "learning_rate",
        "warmup_iterations",
        "num_frames",
        "video_size",
    )
    different = {one for one in properties if getattr(plain, one) != getattr(guide, one)}
    different |= {f"model.{n}" for n, v in guide.model if v != getattr(plain.model, n)}
    different |= {f"training.{n}" for n, v in guide.training if v != getattr(plain.training, n)}
    different -= {"training.experiment", "training.job_name", "model.rope_ratio"}
    same = plain.context_parallel == guide.context_parallel
    assert same
    different.discard("training.context_parallel_size")
    assert different == {"model.geometry"} | ({"rope_ratios"} if size == "2B" else set())
    assert (guide.model.geometry, plain.model.geometry) == ("Stretch", "Crop")
    if size == "2B":
        assert (guide.rope_ratios, plain.rope_ratios) == ((2.0, 2.0, 1.0), (3.0, 3.0, 1.0))


def test_the_inference_page_lists_the_batch_keys():
    page = (ROOT / "docs/inference.md").read_text()
    table = page[page.index("## Many samples at once") : page.index("Another key is named")]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert named == {*batch_file.NUMBERS, *batch_file._TEXTS}


def test_settings_named_on_the_page_of_the_original_exist():
    settings = as_overrides(TrainConfig())
    for name in re.findall(r"`((?:scheduler|optimizer|model\.config)\.[\w.]+)", ORIGINAL):
        assert name in settings, name
    for value in re.findall(r"`((?:scheduler|model\.config)\.\S+=\S+)`", ORIGINAL):
        read_config(["job.name=x", value])
    assert {PRESETS[size].f_min for size in ("2B", "14B")} == {0.0}
    assert TrainConfig().loss_weight == "flow"


def test_claims_that_were_wrong_do_not_come_back():
    texts = [path.read_text() for path in (ROOT / "docs").glob("*.md")] + [README]
    for wrong in (
        "runs on one GPU, without",
        "(`--natten`) is refused",
        "every other field has the guide's default.",
        "14B on several GPUs (the lease ended)",
    ):
        assert not any(wrong in " ".join(text.split()) for text in texts), wrong
