"""A section of the report for each experiment: from its results to words, tables and pictures."""

import dataclasses

from saekern.report.published import PUBLISHED
from saekern.report.results import Results
from saekern.report.section import Section
from saekern.report.sections import (
    archetypal,
    convergence,
    excess,
    initialisation,
    interpretation,
    masking,
    notebooks,
    nulls,
    pooling,
    statistics,
    strict_rule,
    subspaces,
    synthetic,
    thresholds,
    trajectories,
    variants,
)

# Experiment -> its module, in the order of the page. Each has a TITLE and `section(found, results)`.
SECTIONS = {
    "thresholds": thresholds,
    "convergence": convergence,
    "strict_rule": strict_rule,
    "excess": excess,
    "nulls": nulls,
    "statistics": statistics,
    "masking": masking,
    "subspaces": subspaces,
    "synthetic": synthetic,
    "pooling": pooling,
    "initialisation": initialisation,
    "notebooks": notebooks,
    "trajectories": trajectories,
    "variants": variants,
    "archetypal": archetypal,
    "interpretation": interpretation,
}


def sections(results: Results) -> list[Section]:
    """Those of the experiments that the study has run."""
    made = []
    for name, module in SECTIONS.items():
        found = results.experiments.get(name)
        if found is None:
            continue
        if "skipped" in found:
            made.append(Section(name, module.TITLE, f"Not measured: {found['skipped']}."))
        else:
            section = module.section(found, results)
            published = (f"Published: {PUBLISHED[name]}",) if name in PUBLISHED else ()
            made.append(dataclasses.replace(section, notes=(*section.notes, *published)))
    return made
