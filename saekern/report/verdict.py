"""The quality floor: is this dictionary good enough for its stability to mean anything?"""

from typing import Any, NamedTuple

FLOOR_RECOVERED = 0.9
FLOOR_DEAD = 0.2


class Verdict(NamedTuple):
    name: str
    passed: bool | None  # None: not measured
    value: str
    sentence: str


def verdicts(evaluation: dict[str, Any]) -> list[Verdict]:
    """Three lines: EV above PCA's with K components, CE recovered ≥ 0.9, dead ≤ 20 %. The worst seed decides each."""
    seeds = evaluation["seeds"]
    k = evaluation["k"]
    ev, pca = min(seed["ev"] for seed in seeds), evaluation["pca_ev"]
    dead = max(seed["dead"] for seed in seeds)
    lines = [
        Verdict(
            "Explained variance",
            ev > pca,
            f"{ev:.3f}",
            f"The worst seed explains {ev:.3f} of the variance; PCA with {k} components explains {pca:.3f}.",
        )
    ]
    recovered = [seed["recovered"] for seed in seeds if seed.get("recovered") is not None]
    if recovered:
        worst = min(recovered)
        sentence = f"The worst seed recovers {worst:.3f} of the cross-entropy; the floor is {FLOOR_RECOVERED}."
        lines.append(Verdict("Cross-entropy recovered", worst >= FLOOR_RECOVERED, f"{worst:.3f}", sentence))
    else:
        sentence = "The rows came without a language model to splice the reconstruction into."
        lines.append(Verdict("Cross-entropy recovered", None, "not measured", sentence))
    sentence = f"In the worst seed {dead:.1%} of the latents never fire; the floor is {FLOOR_DEAD:.0%}."
    lines.append(Verdict("Dead latents", dead <= FLOOR_DEAD, f"{dead:.1%}", sentence))
    return lines
