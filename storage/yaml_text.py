"""YAML that people write: read safely, and with each key of a mapping once."""

from typing import Any

import yaml


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses a key that a mapping has twice, of which PyYAML takes the last value."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return the node of a mapping, before others are merged into it."""
        node = super().compose_mapping_node(anchor)
        known: dict[tuple[str, str], yaml.Node] = {}
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        for key in keys:
            first = known.setdefault((key.tag, key.value), key)
            if first is not key:
                lines = [one.start_mark.line + 1 for one in (first, key)]
                raise yaml.composer.ComposerError(None, None, f"'{key.value}' is there twice, in lines {lines}")
        return node


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text.

    Raises:
        yaml.YAMLError: It is not valid YAML, or a mapping has a key twice.
    """
    return yaml.load(text, UniqueKeyLoader)  # noqa: S506 - a safe one
