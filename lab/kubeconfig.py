"""Kubeconfig files with a bearer token."""

from pathlib import Path

import yaml


def write(file: Path, url: str, authority: Path, user: str, token: str, namespace: str = "default") -> Path:
    """Write a kubeconfig that only its owner may read, in one step; its path."""
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "kreflex-lab",
        "clusters": [{"name": "kreflex-lab", "cluster": {"server": url, "certificate-authority": str(authority)}}],
        "users": [{"name": user, "user": {"token": token}}],
        "contexts": [
            {
                "name": "kreflex-lab",
                "context": {"cluster": "kreflex-lab", "user": user, "namespace": namespace},
            }
        ],
    }
    draft = file.with_name(file.name + ".new")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600)
    draft.write_text(yaml.safe_dump(content, sort_keys=False))
    return draft.replace(file)
