"""The Kubernetes libraries are imported only where a cluster is spoken to."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[4]
EXAMPLE = ROOT / "manifests" / "samples" / "agibot-2b.yaml"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["validate", "-f", str(EXAMPLE)], ["render", "-f", str(EXAMPLE)]]
)
def test_v2w_without_a_cluster_imports_no_kubernetes_library(arguments):
    code = (
        "import sys; from video2world_operator.cli.main import main\n"
        f"try: code = main({arguments!r})\n"
        "except SystemExit as end: code = end.code\n"
        "assert not code, code\n"
        "heavy = {'kopf', 'kubernetes', 'aiohttp'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
