"""Find the address and credentials of a cluster."""

from __future__ import annotations

import logging

import kopf

from video2world_operator.api.errors import NO_CLUSTER
from video2world_operator.kube.errors import LoginFailed

__all__ = ["login"]

log = logging.getLogger(__name__)


def login() -> kopf.ConnectionInfo:
    """Address and credentials: the pod's service account, else the kubeconfig.

    Raises:
        LoginFailed: there is neither.
    """
    settings = kopf.OperatorSettings()
    try:
        info = kopf.login_with_service_account(settings=settings)
        info = info or kopf.login_with_kubeconfig(settings=settings)
        if info and not (
            info.token or info.username or info.certificate_path or info.certificate_data
        ):
            # an exec plugin or another provider, which the official client understands
            info = kopf.login_via_client(logger=log, settings=settings) or info
    except ImportError:
        raise LoginFailed(
            "the kubeconfig names a credential plugin, which needs the official client:"
            " pip install 'video2world[cluster]'"
        ) from None
    except (OSError, ValueError, KeyError, kopf.LoginError) as error:
        raise LoginFailed(f"the kubeconfig cannot be used ({error})") from None
    if info is None:
        raise LoginFailed(NO_CLUSTER)
    return info
