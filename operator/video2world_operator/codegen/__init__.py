"""Generate the CRD, RBAC manifests and reference pages."""
