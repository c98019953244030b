"""The CRD: generated, structural, bounded, and not drifted from the models."""

import pytest
import yaml

from video2world_operator.api.constants import STAGES
from video2world_operator.api.crd_schema import build
from video2world_operator.codegen.crd import PATH, main, render


def version():
    return build()["spec"]["versions"][0]


def root():
    return version()["schema"]["openAPIV3Schema"]


def nodes(schema, path=""):
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}.*")


def at(path):
    return dict(nodes(root()))[path]


def test_file_has_not_drifted():
    assert PATH.read_text(encoding="utf-8") == render(), "run `make generate`"
    assert main(["--check"]) == 0


def test_drift_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("video2world_operator.codegen.crd.PATH", tmp_path / "crd.yaml")
    monkeypatch.setattr(
        "video2world_operator.codegen.crd.CHART_PATH", tmp_path / "chart" / "crd.yaml"
    )
    assert main(["--check"]) == 1
    assert "run make generate" in capsys.readouterr().err
    assert main([]) == 0
    assert main(["--check"]) == 0
    assert yaml.safe_load((tmp_path / "crd.yaml").read_text()) == build()


@pytest.mark.parametrize(("path", "schema"), list(nodes(root())), ids=lambda v: str(v)[:60])
def test_structural(path, schema):
    assert not {"$ref", "oneOf", "allOf", "title", "const", "discriminator"} & set(schema)
    if schema.get("x-kubernetes-int-or-string"):
        assert schema["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        return
    assert "anyOf" not in schema
    assert schema["type"] in ("object", "array", "string", "integer", "number", "boolean")
    if schema["type"] == "array":
        assert schema["x-kubernetes-list-type"] in ("atomic", "map", "set")
        assert schema["maxItems"] <= 1024
    if schema["type"] == "object" and path not in ("", ".metadata"):
        known = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
        assert known & set(schema)
        assert not {"properties", "additionalProperties"} <= set(schema)
    if path.startswith(".spec") and schema["type"] == "string" and "enum" not in schema:
        assert schema["maxLength"] <= 4096
    if schema["type"] in ("integer", "number") and path.startswith(".spec"):
        assert "enum" in schema or {"minimum", "maximum"} <= set(schema)
    for name in schema.get("required", []):
        assert name in schema["properties"]


def test_every_field_is_described():
    for path, schema in nodes(root()):
        named = path.startswith((".spec", ".status")) and path[-1] not in "]*"
        assert not named or schema.get("description", "").endswith("."), path


def test_defaults_fit_their_types():
    kinds = {
        "string": str,
        "integer": int,
        "boolean": bool,
        "array": list,
        "object": dict,
        "number": (int, float),
    }
    for path, schema in nodes(root()):
        if "default" in schema:
            assert isinstance(schema["default"], kinds[schema["type"]]), path
            assert "enum" not in schema or schema["default"] in schema["enum"], path


def test_lists_that_several_writers_share_are_maps():
    conditions = at(".status.conditions")
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]
    assert at(".status.stages")["x-kubernetes-list-map-keys"] == ["name"]
    for path in (".status.conditions", ".status.stages"):
        (key,) = at(path)["x-kubernetes-list-map-keys"]
        assert key in at(f"{path}[]")["required"]


def test_columns_show_scalars_that_exist():
    paths = dict(nodes(root()))
    columns = version()["additionalPrinterColumns"]
    assert [c["name"] for c in columns if c["priority"] == 0] == [
        "Phase",
        "Stage",
        "Progress",
        "ETA",
        "Restarts",
        "Age",
    ]
    assert [c["name"] for c in columns if c["priority"]] == [
        "Loss",
        "Validation",
        "Checkpoint",
        "Nodes",
        "Message",
    ]
    for column in columns:
        if column["name"] != "Age":
            assert paths[column["jsonPath"]]["type"] == column["type"]
    assert version()["subresources"] == {"status": {}}


def test_rules():
    rules = [r for _, s in nodes(root()) for r in s.get("x-kubernetes-validations", [])]
    assert all(r["message"] and r["rule"] for r in rules)
    (rule,) = (r for r in at(".spec")["x-kubernetes-validations"] if "fieldPath" in r)
    assert "exists_one" in rule["rule"]
    for stage in STAGES:
        (rule,) = at(f".spec.stages.{stage}.env[].name")["x-kubernetes-validations"]
        assert "PET_" in rule["rule"]
    for path in (".spec.dataset.videos.path", ".spec.inference.samples[].input"):
        assert "'..'" in at(path)["x-kubernetes-validations"][0]["rule"]
