"""The options that a deployment sets for its runs."""

from pathlib import Path

import yaml

from prefect_imagegen.app.config.option_table import GROUPS
from prefect_imagegen.app.config.options import RunOptions

FILE = Path(__file__).parents[2] / "deployments" / "prefect.yaml"


def test_options_of_deployments_stand_in_groups() -> None:
    """A deployment gives options in their groups, since the UI's form shows, and lets people change, only those."""
    deployments = yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]
    given = [options for each in deployments if (options := (each.get("parameters") or {}).get("options"))]
    assert given
    for options in given:
        assert options.keys() <= GROUPS.keys()
        assert RunOptions(**options) != RunOptions()
