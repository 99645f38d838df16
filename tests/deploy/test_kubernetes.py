"""The Kubernetes manifests are restricted as the Pod Security Standards' strictest level asks, and fit together."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "kubernetes"
FILES = ("server.yaml", "site.yaml")
VERSIONS = {"Deployment": "apps/v1", "NetworkPolicy": "networking.k8s.io/v1"}


def objects(file: str) -> list[dict[str, Any]]:
    return [dict(found) for found in yaml.safe_load_all((FOLDER / file).read_text(encoding="utf-8"))]


def pod(file: str) -> dict[str, Any]:
    (deployment,) = (found for found in objects(file) if found["kind"] == "Deployment")
    return dict(deployment["spec"]["template"]["spec"])


@pytest.mark.parametrize("file", FILES)
def test_pods_are_restricted(file: str) -> None:
    spec = pod(file)

    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not spec.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    for container in (*spec["containers"], *spec.get("initContainers", [])):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("file", FILES)
def test_every_mount_has_its_volume_and_every_selector_its_pod(file: str) -> None:
    spec, found = pod(file), objects(file)
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (deployment,) = (entry for entry in found if entry["kind"] == "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    claims = {entry["metadata"]["name"] for entry in found if entry["kind"] == "PersistentVolumeClaim"}

    mounted = {m["name"] for c in (*spec["containers"], *spec.get("initContainers", [])) for m in c["volumeMounts"]}
    assert mounted == volumes.keys()
    named = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
    assert named - claims <= {"dpfpl-images"}  # the site's own
    assert deployment["spec"]["replicas"] == 1
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    for entry in found:
        if entry["kind"] == "NetworkPolicy":
            assert entry["spec"]["podSelector"]["matchLabels"] == labels
            assert set(entry["spec"]["policyTypes"]) == {"Ingress", "Egress"}


def test_s3_what_is_the_agents_is_not_mounted_beside_the_supernode() -> None:
    spec = pod("site.yaml")
    mounts = {c["name"]: {m["name"] for m in c["volumeMounts"]} for c in spec["containers"]}

    assert mounts["agent"] & mounts["supernode"] == {"link"}
    assert spec["shareProcessNamespace"] is False
    (images,) = (m for c in spec["containers"] for m in c["volumeMounts"] if m["name"] == "images")
    assert images["readOnly"] is True
    assert "node-kit" not in mounts["agent"]


@pytest.mark.parametrize("file", FILES)
def test_the_apis_own_types_accept_every_field(file: str) -> None:
    """``make kubernetes-schema`` runs this with the client library, too large for everybody's environment."""
    client = pytest.importorskip("kubernetes.client", reason="make kubernetes-schema installs it for the time")

    for found in objects(file):
        assert found["apiVersion"] == VERSIONS.get(found["kind"], "v1")
        model = getattr(client, f"V1{found['kind']}")
        model.model_validate(found)  # unknown fields and wrong types are errors
        for wrong in ({"specs": {}}, {"metadata": {"name": 5}}, {"metadata": {"name": "x", "lables": {}}}):
            with pytest.raises(ValueError, match="validation error"):
                model.model_validate({**copy.deepcopy(found), **wrong})
