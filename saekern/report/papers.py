"""A study's findings beside the published ones, as Markdown: what docs/papers.md is made from."""

from collections.abc import Sequence

from saekern.report.published import PUBLISHED
from saekern.report.results import Results
from saekern.report.section import Section
from saekern.report.text import number, percent

HEAD = """\
# Beside the papers

What is published is of larger models and other SAEs, so that order and sign can agree, and values cannot. The right
column is what the report says, word for word.

"""


def beside_papers(results: Results, sections: Sequence[Section]) -> str:
    """The facts of the run, and a line for every experiment."""
    live = results.stability["raw"]["live"]
    facts = [f"{name}: {value}" for name, value in results.run["facts"].items()]
    facts.append(f"Time: {sum(results.run['seconds'].values()) / 60:.0f} minutes of steps")
    facts.append(
        f"All seeds: {percent(live['stable'])} of live latents stable, {percent(live['unstable'])} unstable, mean p "
        f"{number(live['mean_probability'], 3)}; of random dictionaries "
        f"{number(results.stability['null']['random']['match_rate']['mean'], 4)}"
    )
    lines = ["| question | published | here |", "|---|---|---|"]
    lines += [f"| {s.title} | {PUBLISHED.get(s.name, '–')} | {s.verdict} |" for s in sections]
    return HEAD + "".join(f"- {fact}\n" for fact in facts) + "\n" + "\n".join(lines) + "\n"
