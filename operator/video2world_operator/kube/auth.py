"""Load the address and credentials of a cluster with the official Kubernetes client."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client import Configuration
from kubernetes.aio.config.incluster_config import SERVICE_TOKEN_FILENAME, load_incluster_config
from kubernetes.aio.config.kube_config import ConfigNode, KubeConfigLoader, KubeConfigMerger

from video2world_operator.api.errors import NO_CLUSTER
from video2world_operator.kube.errors import LoginFailed

__all__ = ["Connection", "from_kubeconfig", "login"]

DEFAULT_KUBECONFIG = "~/.kube/config"


@dataclass(frozen=True)
class Connection:
    """How to reach an API server: the library's settings, and the namespace used by default."""

    configuration: Configuration
    namespace: str = "default"


async def login() -> Connection:
    """Load the pod's service account, else the kubeconfig.

    The library reads a service account's token from disk again every minute. Everything else that
    expires is renewed by calling this function again once the API server answers 401.

    Raises:
        LoginFailed: there is neither, or the credentials cannot be used.
    """
    if Path(SERVICE_TOKEN_FILENAME).exists():
        return _from_service_account()
    paths = os.environ.get("KUBECONFIG") or DEFAULT_KUBECONFIG
    found = [path for path in paths.split(os.pathsep) if path and Path(path).expanduser().exists()]
    if not found:
        if os.environ.get("KUBECONFIG"):
            raise LoginFailed(f"the kubeconfig cannot be used (no such file: {paths})")
        raise LoginFailed(NO_CLUSTER)
    try:
        merger = KubeConfigMerger(os.pathsep.join(found))
        # an OIDC provider may replace the refresh token, which is then needed next time
        return await _load(merger.config, persist=lambda _: merger.save_changes())
    except LoginFailed:
        raise
    except Exception as error:
        # the library does not check the structure of the file before it uses it
        malformed = isinstance(error, (AttributeError, KeyError, TypeError))
        reason = "it is not a kubeconfig" if malformed else " ".join(str(error).split())
        raise LoginFailed(f"the kubeconfig cannot be used ({reason})") from error


async def from_kubeconfig(config: Mapping[str, Any]) -> Connection:
    """Load the parsed kubeconfig ``config``, in which paths are absolute.

    Raises:
        LoginFailed: its credential plugin returned no credentials.
    """
    return await _load(ConfigNode("kubeconfig", config))


def _from_service_account() -> Connection:
    configuration = _configuration()
    try:
        load_incluster_config(configuration)
        configuration.proxy = _proxy_of(configuration.host)
        namespace = Path(SERVICE_TOKEN_FILENAME).with_name("namespace")
        return Connection(configuration, namespace.read_text().strip() or "default")
    except Exception as error:
        raise LoginFailed(f"the pod's service account cannot be used ({error})") from error


async def _load(config: ConfigNode, persist: Any = None) -> Connection:
    configuration = _configuration()
    # without a base path, relative paths are resolved against the kubeconfig they stand in
    loader = KubeConfigLoader(config, config_base_path=None, config_persister=persist)
    context = loader.current_context["context"]
    await loader.load_and_set(configuration)
    configuration.proxy = configuration.proxy or _proxy_of(configuration.host)
    plugin = _credential_plugin(config, context.get("user"))
    if plugin and not (configuration.api_key or configuration.cert_file):
        # the library only logs why, and would continue as an anonymous user
        raise LoginFailed(f"the kubeconfig's credential plugin returned no credentials: {plugin}")
    return Connection(configuration, context.get("namespace") or "default")


def _credential_plugin(config: ConfigNode, name: str | None) -> str:
    """Return the command of the exec plugin of the user ``name``; empty if it has none."""
    if name is None:
        return ""
    entry = config["users"].get_with_name(name).value
    return str(((entry.get("user") or {}).get("exec") or {}).get("command", ""))


def _configuration() -> Configuration:
    return Configuration(
        connection_pool_maxsize=0,  # unlimited: every watch holds a connection
        client_session_kwargs={"trust_env": False},  # see _proxy_of
    )


def _proxy_of(server: str) -> str | None:
    """Return the environment's proxy for ``server`` (HTTPS_PROXY, NO_PROXY), if there is one.

    aiohttp would look it up in a thread for every request, and read ~/.netrc for credentials.
    """
    url = urlsplit(server)
    if url.hostname is None or proxy_bypass(url.netloc):
        return None
    return getproxies().get(url.scheme)
