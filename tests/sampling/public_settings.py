"""The public settings of a scheduler's config."""

import json


def public(config):
    """The settings in the form of JSON, where tuples are lists."""
    said = {name: value for name, value in config.items() if name[0] != "_"}
    return json.loads(json.dumps(said))
