"""Genotypes that lack one flow of another, to measure the worth of each flow."""

from __future__ import annotations

from dataclasses import replace

from darts.genotype import Genotype

WITHOUT = "without "


def without_each_flow(genotype: Genotype) -> dict[str, Genotype]:
    """Return a genotype without each of its flows, by names such as ``without box.1 -> cls.1``."""
    found = {}
    for left_out in genotype.flows:
        name = f"{WITHOUT}{left_out.source} -> {left_out.target}"
        flows = tuple(flow for flow in genotype.flows if flow != left_out)
        found[name] = replace(genotype, name=name, flows=flows, provenance={})
    return found


def file_name(name: str) -> str:
    """Return a name for files, such as ``without-box.1-to-cls.1``."""
    return name.replace(" -> ", "-to-").replace(" ", "-")
