"""A safe loader of YAML that reads scalars as YAML 1.2 does; apart, so that PyYAML is loaded only to read a file."""

import re
from typing import Any

import yaml

__all__ = ["Loader"]

# The core schema of YAML 1.2, section 10.3.2; and `.` alone is no number.
_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class Loader(yaml.SafeLoader):
    """Builds plain data only; a key twice in a mapping is an error."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # PyYAML's way of taking its own away

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a dict.

        Args:
            node: the mapping.
            deep: whether its values are built at once.

        Returns:
            The dict.

        Raises:
            yaml.constructor.ConstructorError: a key stands there twice.
        """
        seen: set[str] = set()
        for key, _ in node.value:
            name = f"{key.tag} {key.value}"
            if isinstance(key, yaml.ScalarNode) and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value!r} stands there twice; take one of them out", key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _int(loader: Loader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)


def _float(loader: Loader, node: yaml.ScalarNode) -> float:
    text = loader.construct_scalar(node).lower()
    return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _tag, (_pattern, _first) in _SCALARS.items():
    Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), _first)
Loader.add_constructor("tag:yaml.org,2002:int", _int)
Loader.add_constructor("tag:yaml.org,2002:float", _float)
