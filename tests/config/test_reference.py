"""The printed reference is complete, and made from the schema and the objectives' docstrings."""

from __future__ import annotations

import dataclasses
import re

from pydantic import BaseModel

from aapa.anchor import Anchor
from aapa.engine.recipe import Recipe, recipe_reference
from aapa.engine.recipe.reference import WIDTH, attribute_docs
from aapa.engine.recipe.validation import table_type
from aapa.objectives import OBJECTIVES, PRESETS
from aapa.schedules import Schedule


def rows(text: str) -> dict[str, dict[str, str]]:
    """Rows of the reference by section and key, wrapped lines joined."""
    sections: dict[str, dict[str, str]] = {}
    section, key = "", ""
    for line in text.splitlines():
        header = re.match(r"\[+([a-z_. ]+)\]+", line)
        row = re.match(r"  ([a-z_0-9]+) (= |\()", line)
        if header:
            section, key = header[1], ""
        elif row:
            key = row[1]
            sections.setdefault(section, {})[key] = line.strip()
        elif line.strip() and key:
            sections[section][key] += " " + line.strip()
    return sections


def flat_models() -> dict[str, type[BaseModel]]:
    found = {name: table_type(field.annotation) for name, field in Recipe.model_fields.items()}
    return {name: model for name, model in found.items() if model is not None}


def test_every_key_is_there_with_its_documentation() -> None:
    sections = rows(recipe_reference())
    for name, model in flat_models().items():
        assert set(sections[name]) == set(model.model_fields), name
        for key, field in model.model_fields.items():
            assert field.description, f"{name}.{key} has no documentation"
            assert "\n" not in field.description, f"{name}.{key}: one line"
            assert field.description in sections[name][key]


def test_every_hyperparameter_is_there_with_its_documentation() -> None:
    text = recipe_reference()
    sections = rows(text)
    places = [("stages.objective", cls) for cls in OBJECTIVES.values()]
    places += [("stages.objective.anchor", Anchor), ("stages.objective.anchor.weight", Schedule)]
    for place, cls in places:
        documents = {name: text for part in cls.__mro__ for name, text in attribute_docs(part.__doc__ or "").items()}
        for field in dataclasses.fields(cls):
            assert documents.get(field.name), f"{cls.__name__}.{field.name} has no documentation"
            assert field.name in sections[place]
    for kind in [*OBJECTIVES, *PRESETS]:
        assert f'kind = "{kind}"' in text


def test_defaults_and_ranges_are_shown() -> None:
    sections = rows(recipe_reference())
    assert sections["model"]["hidden_size"].startswith("hidden_size = 160 ")
    assert sections["model"]["hidden_size"].endswith("(≥ 1)")
    assert sections["model"]["head_dim"].startswith("head_dim (optional) ")
    assert sections["stages"]["steps"].startswith("steps (required) ")
    assert sections["stages"]["adam_beta1"].endswith("(≥ 0, < 1)")
    assert '"constant" | "linear" | "cosine"' in sections["stages"]["decay"]
    assert "function, weight (default 1)" in sections["stages"]["rewards"]


def test_lines_fit() -> None:
    assert max(map(len, recipe_reference().splitlines())) <= WIDTH


def test_attribute_docs() -> None:
    doc = """One.

    Attributes:
        a: first,
            continued. And: not an attribute.
        b, c: both.

    Raises:
        ValueError: not an attribute.
    """
    assert attribute_docs(doc) == {
        "a": "first, continued. And: not an attribute.",
        "b": "both.",
        "c": "both.",
    }
    assert attribute_docs("nothing") == {}
