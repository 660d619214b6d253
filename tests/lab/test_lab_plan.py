"""What the lab's configuration and stages consist of."""

from pathlib import Path

import pytest
import yaml

from lab import audit, monitoring, nodes
from lab.errors import LabError
from lab.stack import Plan


def test_an_unknown_part_is_refused_with_the_known_ones() -> None:
    with pytest.raises(LabError, match="no part kwak: choose of control-plane, kwok"):
        Plan(parts=("kwak",))


def test_every_part_stands_on_the_control_plane() -> None:
    assert Plan(parts=("kwok",)).has("control-plane")


def test_reads_are_logged_on_demand_only() -> None:
    levels = [yaml.safe_load(audit.policy(reads=reads))["rules"][3]["level"] for reads in (False, True)]
    assert levels == ["None", "Metadata"]


def test_each_stage_has_a_name_of_its_own_and_the_libraries() -> None:
    stages = [document for document in yaml.safe_load_all(nodes.stages()) if document["kind"] == "Stage"]
    names = [stage["metadata"]["name"] for stage in stages]
    assert len(set(names)) == len(names)
    for stage in stages:
        (match,) = stage["spec"]["selector"]["matchExpressions"]
        assert "def fault:" in match["jq"]["key"]


def test_the_shipped_routes_keep_their_receivers_and_get_the_lab_s_patience() -> None:
    shipped = {
        "route": {"receiver": "people", "routes": [{"receiver": "killer", "group_wait": "5s"}]},
        "receivers": [
            {"name": "killer", "webhook_configs": [{"url": "http://in-cluster/", "max_alerts": 9}]},
            {"name": "people"},
        ],
    }
    config = monitoring.alertmanager_config({"killer": "http://127.0.0.1:1"}, Path("token"), shipped)
    shown = {"authorization": {"type": "Bearer", "credentials_file": "token"}}
    hook = {"url": "http://127.0.0.1:1/", "max_alerts": 9, "http_config": shown}
    assert config["receivers"][0]["webhook_configs"] == [hook]
    assert config["route"]["routes"][0]["group_wait"] == "1s"


def test_a_receiver_that_does_not_run_is_not_called() -> None:
    shipped = {
        "route": {"receiver": "a"},
        "receivers": [{"name": "a", "webhook_configs": [{"url": "http://in-cluster/"}]}],
    }
    assert monitoring.alertmanager_config({}, Path("token"), shipped)["receivers"] == [{"name": "a"}]


def test_rules_are_evaluated_as_often_as_the_lab_scrapes(tmp_path: Path) -> None:
    files = monitoring.write_rules(tmp_path / "rules")
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    assert groups
    assert not any("interval" in group for group in groups)
