"""A latent as a page reads it: few bytes, nothing left to compute."""

import math
from typing import Any

from saekern.features.contexts import Context
from saekern.features.dashboard import Band, Latent


def record(latent: Latent) -> dict[str, Any]:
    """Plain JSON values with short names and four digits a number: what the pages' scripts read."""
    used = max((i + 1 for i, count in enumerate(latent.histogram) if count), default=0)
    return {
        "i": latent.latent,
        "n": latent.active,
        "max": short(latent.largest),
        "mean": short(latent.mean),
        "h": latent.histogram[:used],
        "w": latent.bin_width,
        "norm": short(latent.norm),
        "ec": short(latent.encoder_cosine),
        "up": [[token.text, short(token.logit)] for token in latent.promoted],
        "down": [[token.text, short(token.logit)] for token in latent.suppressed],
        "near": [[neighbour.latent, short(neighbour.cosine)] for neighbour in latent.similar],
        "other": [
            {"mutual": mutual, "list": [[neighbour.latent, short(neighbour.cosine)] for neighbour in found]}
            for found, mutual in zip(latent.partners, latent.mutual, strict=True)
        ],
        "bands": [_band(band) for band in latent.bands],
    }


def _band(band: Band) -> dict[str, Any]:
    return {
        "q": band.quarter,
        "low": short(band.low),
        "high": short(band.high),
        "texts": [_context(context) for context in band.contexts],
    }


def _context(context: Context) -> list[Any]:
    """[focus, code, pieces, {piece: code}]. One string where every piece is one character, but not half of one, as
    halves would join; only codes > 0."""
    single = all(len(piece) == 1 and not "\ud800" <= piece <= "\udfff" for piece in context.pieces)
    known = {str(i): short(value) for i, value in enumerate(context.values) if value}
    return [context.focus, short(context.value), "".join(context.pieces) if single else context.pieces, known]


def short(value: float | None) -> float | None:
    """Four digits: what a reader can use, in a third of the bytes."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")
