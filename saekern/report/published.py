"""What papers found, to be read beside what a study found. Order and sign can agree; values are of other models."""

GERASIMOV = "Gerasimov et al. 2026, arXiv 2606.12138"
ABLATING = "Brzozowski and Chung 2026, arXiv 2606.02061"
REPLICATION = "replication deenais/sae-stability-pythia70m: ReLU, F = 2,048, 8 billion tokens, 3 seeds"

# Section -> what is published about its question, with the source.
PUBLISHED = {
    "thresholds": "74.5 % of latents stable and 14.3 % unstable; at θ = 0.5, 0.7, 0.9 85.9, 74.5, 56.2 % "
    f"({REPLICATION}). “The boundary remains threshold-dependent” ({GERASIMOV}, through a review).",
    "convergence": f"96 seeds; the distribution of p̂ is argued to converge (Glivenko–Cantelli; {GERASIMOV}).",
    "strict_rule": f"67.6 % by the strict rule where 74.5 % are found by the decoder ({REPLICATION}); 30 % of "
    "latents shared by two SAEs of 131,072 latents on Llama 3 8B (Paulo and Belrose 2025, arXiv 2501.16615). "
    f"Nearest against one-to-one: IoU 0.978 ± 0.001 ({GERASIMOV}, through a review). PW-MCC of TopK 0.80 (Song et al. "
    "2025, arXiv 2505.20254).",
    "excess": "Median best cosine of random dictionaries 0.129 at F = 4,096, D = 768: far below θ = 0.7.",
    "nulls": f"SAEs on a randomly initialised transformer are far less stable than on the trained one ({GERASIMOV}, "
    "through a review; no numbers reachable).",
    "statistics": "Unstable features are dominated by low-frequency surface-form triggers "
    f"({GERASIMOV}). A predictor can reach 0.981 by finding dead latents ({REPLICATION}).",
    "masking": f"Stable features carry most of what matters for reconstruction and prediction ({GERASIMOV}).",
    "subspaces": "Unstable features lie in reproducible low-rank subspaces: those of another seed capture nearly as "
    f"much as the seed's own ({GERASIMOV}).",
    "synthetic": "True features of low rank are recovered as a subspace while single latents are not identifiable "
    f"({GERASIMOV}).",
    "pooling": f"Pools of unique features of many seeds are more stable at the same EV ({GERASIMOV}).",
    "initialisation": "With a shared k-means start the distance before training is zero; without it the archetypal "
    f"constraint gives no stabilisation advantage ({ABLATING}).",
    "notebooks": "Distance of two runs, centred: classic TopK 0.419, RA-SAE 0.245, projection off 0.081, k-means start "
    f"0.072; uncentred 0.283, 0.087, 0.089, 0.076 ({ABLATING}, released notebooks).",
    "trajectories": f"Recommended as the diagnostic, with M(t) beside D(t) ({ABLATING}).",
    "variants": "ReLU with an L1 penalty is the most stable and explains least; TopK the reverse "
    f"({GERASIMOV}, through a review). Longer training is more stable: 66.8 % at 1 billion, 74.5 % at 8 billion tokens "
    f"({REPLICATION}).",
    "archetypal": "Archetypal SAEs are more plausible and identifiable than TopK SAEs (Fel et al. 2025, arXiv "
    "2502.12892).",
    "interpretation": f"Interpretation scores do not tell a trained from a random model, stability does ({GERASIMOV}, "
    "through a review).",
}
