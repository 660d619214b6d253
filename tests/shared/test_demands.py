"""What a template asks for, read as Kubernetes reads it."""

from decimal import Decimal

import pytest

from kreflex.demands import asks_more, host, named, names, placing, quantity, registry
from tests.releases import a_template


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("100m", "0.1"),
        ("2", "2"),
        ("1.5Gi", "1610612736"),
        ("128Mi", "134217728"),
        ("1k", "1000"),
        ("2e3", "2000"),
        ("1E", "1000000000000000000"),
        ("much", "0"),
    ],
)
def test_reads_quantities(text: str, amount: str) -> None:
    assert quantity(text) == Decimal(amount)


@pytest.mark.parametrize(
    ("image", "where", "repository"),
    [
        ("shop:2", "docker.io", "shop"),
        ("team/shop:2", "docker.io", "team/shop"),
        ("localhost/shop", "localhost", "localhost/shop"),
        ("registry.example.com:5000/team/shop:2", "registry.example.com:5000", "registry.example.com:5000/team/shop"),
        ("ghcr.io/team/shop@sha256:0123", "ghcr.io", "ghcr.io/team/shop"),
    ],
)
def test_tells_where_an_image_comes_from(image: str, where: str, repository: str) -> None:
    assert (host(image), registry(image)) == (where, repository)


def test_finds_every_object_that_a_template_names() -> None:
    projected = [{"secret": {"name": "token", "items": [{"key": "jwt"}]}}, {"configMap": {"name": "ca"}}]
    template = a_template(
        container={"envFrom": [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "login"}}]},
        imagePullSecrets=[{"name": "pull"}],
        volumes=[
            {"name": "a", "projected": {"sources": projected}},
            {"name": "b", "persistentVolumeClaim": {"claimName": "data"}},
            {"name": "c", "secret": {"secretName": "tls"}},
        ],
    )
    assert named(template) == {
        ("ConfigMap", "ca", ""),
        ("ConfigMap", "settings", ""),
        ("PersistentVolumeClaim", "data", ""),
        ("Secret", "login", ""),
        ("Secret", "pull", ""),
        ("Secret", "tls", ""),
        ("Secret", "token", "jwt"),
    }
    assert names(template, "Secret", "token", "jwt")
    assert not names(template, "Secret", "token", "other")
    assert names(template, "Secret", "token")


def test_more_of_anything_is_more() -> None:
    assert asks_more(a_template(container={"resources": {"requests": {"cpu": "1"}}}), a_template())
    small = a_template(container={"resources": {"requests": {"cpu": "1", "memory": "1Gi"}}})
    other = a_template(container={"resources": {"requests": {"cpu": "500m", "memory": "2Gi"}}})
    assert asks_more(other, small)
    assert asks_more(small, other)
    assert not asks_more(small, small)


def test_ports_of_the_host_and_claims_decide_where_a_pod_may_run() -> None:
    template = a_template(
        container={"ports": [{"containerPort": 80, "hostPort": 8080}]},
        nodeSelector={"disk": "ssd"},
        volumes=[{"name": "b", "persistentVolumeClaim": {"claimName": "data"}}],
    )
    assert placing(template) == {"nodeSelector": {"disk": "ssd"}, "hostPorts": [8080], "claims": ["data"]}
    assert placing(a_template()) == {"hostPorts": [], "claims": []}
