"""The page about single latents: what is in it, that texts stay texts, and that it works in a browser."""

import html
import json
import re

import pytest
import torch
from browser import CHROMIUM, browse, console
from hand_cache import DirectSAE, sentences, write_cache

from saekern.features import Unembedding, dashboard
from saekern.report.features_page import density_bins, features_page

HOSTILE = "</script><img src=x onerror=alert(1)><!--&lt;\u202e\t'\""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """300 latents, of which 7 fires in hostile text, 1 is dead, 2 fires most often, 3 most strongly."""
    size = len(HOSTILE.encode())
    rows = torch.zeros(2 * size, 300)
    rows[:, 0] = 0.5
    rows[: size // 2, 2] = 1.5
    rows[size:, 2] = 1.25
    rows[3, 3] = 99
    rows[1:size, 7] = torch.arange(1.0, size)
    rows[size + 1, 8:] = 2
    folder = tmp_path_factory.mktemp("page")
    plain = "needle in hay".ljust(size)
    cache = write_cache(folder / "cache", sentences(HOSTILE, plain), rows, hook="blocks.0.<hook>")
    lens = Unembedding(torch.randn(300, 256), None, False)
    others = {'<b>"other"</b>': torch.eye(300)[5:]}
    made = dashboard(
        DirectSAE(300), cache, torch.arange(300), name="<i>hand</i>", unembedding=lens, others=others, before=60
    )
    path = folder / "features.html"
    path.write_text(features_page(made), encoding="utf-8")
    return path


def data_of(page):
    return re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1]


def test_texts_stay_texts(page):
    """Planted: "<" left in the data; caught. Planted: a name not escaped; caught."""
    text = page.read_text(encoding="utf-8")
    outside = text.replace(data_of(page), "")
    assert "<img" not in text
    assert "<!--" not in text
    assert "<i>hand" not in text
    assert "<b>&quot;" not in text
    assert "<hook>" not in text
    assert html.escape("Latents of <i>hand</i>") in outside
    latent = json.loads(data_of(page))["latents"][7]
    focus, value, pieces, codes = latent["bands"][0]["texts"][0]
    assert "".join(pieces) == HOSTILE
    assert codes[str(focus)] == value == latent["max"]


def test_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href)=["'](?!data:,|#)""", text.replace(data_of(page), ""))
    assert "default-src 'none'" in text
    assert "://" not in text.replace("http://www.w3.org/2000/svg", "").replace(data_of(page), "")


def test_density_bins():
    """Planted: density 1 in a bin of its own beyond 100 %; caught."""
    found = density_bins([1000, 999, 100, 99, 1, 0, 0], 1000)
    assert len(found["bins"]) == 15
    assert found["edges"][0] == pytest.approx(1e-3)
    assert found["edges"][-1] == 1
    assert found["bins"][-1] == 2
    assert found["bins"][10] == 1  # 0.1 opens its bin
    assert found["bins"][9] == 1
    assert sum(found["bins"]) == 5
    assert density_bins([0], 10)["bins"] == [0]


CLICKS = """
<script>
addEventListener("load", () => {
  const out = {}, $ = (id) => document.getElementById(id);
  const numbers = () => [...document.querySelectorAll("#list b")].map((entry) => Number(entry.textContent));
  const enter = (id, value, kind) => { $(id).value = value; $(id).dispatchEvent(new Event(kind)); };
  out.start = [numbers().length, $("more").hidden, document.querySelector("main h2").textContent];
  $("more").click(); out.more = [numbers().length, $("more").hidden];
  enter("sort", "n", "change"); out.density = [numbers().slice(0, 2), $("order").textContent];
  enter("sort", "max", "change"); out.max = numbers()[0];
  $("order").click(); out.ascending = [numbers()[0], $("order").textContent];
  $("live").click(); out.live = [numbers().includes(1), $("count").textContent];
  $("live").click();
  enter("sort", "i", "change");
  enter("search", "29", "input"); out.number = numbers();
  enter("search", "NEEDLE", "input"); out.text = numbers().includes(2) && !numbers().includes(3);
  enter("search", "no such text", "input"); out.none = [numbers(), $("count").textContent];
  enter("search", "", "input");
  location.hash = "7";
  addEventListener("hashchange", () => {
    out.hostile = [document.querySelector("main h2").textContent, document.querySelectorAll("img").length,
      document.querySelectorAll(".contexts li").length > 0, document.querySelector(".context").textContent];
    out.heat = getComputedStyle(document.querySelector(".focus")).getPropertyValue("--v");
    out.wide = document.documentElement.scrollWidth - innerWidth;
    out.current = document.querySelector("#list [aria-current] b").textContent;
    document.querySelector(`#list a[data-i="1"]`).click();
    setTimeout(() => {
      out.dead = [document.querySelector(".badge").textContent, document.querySelectorAll(".contexts").length];
      dispatchEvent(new KeyboardEvent("keydown", { key: "j" }));
      setTimeout(() => {
        out.key = document.querySelector("main h2").textContent;
        document.documentElement.dataset.out = JSON.stringify(out);
      }, 50);
    }, 50);
  }, { once: true });
});
</script>
"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.mark.chromium
@needs_chromium
def test_clicks(page, tmp_path):
    """Planted: numbers sorted as text; caught. Planted: innerHTML for pieces; caught (an image, and the console)."""
    path = tmp_path / "page.html"
    path.write_text(page.read_text(encoding="utf-8").replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    process = browse(tmp_path / "profile", "--virtual-time-budget=3000", "--dump-dom", path.as_uri())
    assert console(process) == []
    assert "data-errors" not in process.stdout[:400]
    out = json.loads(html.unescape(re.search(r'data-out="([^"]*)"', process.stdout[:5000])[1]))
    assert out["start"] == [200, False, "Latent 0"]
    assert out["more"] == [300, True]
    assert out["density"] == [[0, 2], "descending"]
    assert out["max"] == 3
    assert out["ascending"] == [1, "ascending"]
    assert out["live"] == [False, "296 of 300"]
    assert out["number"] == [29, *range(290, 300)]
    assert out["text"]
    assert out["none"] == [[], "0 of 300"]
    name, images, shown, text = out["hostile"]
    assert (name, images, shown) == ("Latent 7", 0, True)
    assert text == HOSTILE.replace("\u202e", "U+202E").replace("\t", "⇥")
    assert float(out["heat"]) == 1
    assert out["wide"] <= 0
    assert out["current"] == "7"
    assert out["dead"] == ["dead", 0]
    assert out["key"] == "Latent 2"


@pytest.mark.chromium
@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (400, False), (1280, True)])
def test_screenshot(page, tmp_path, width, dark):
    picture = tmp_path / "screenshot.png"
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    browse(tmp_path / "profile", *theme, f"--window-size={width},2000", f"--screenshot={picture}", page.as_uri() + "#7")
    imread = pytest.importorskip("matplotlib.image").imread
    pixels = imread(picture)[..., :3]
    assert pixels.shape[:2] == (2000, width)
    assert pixels.std() > 0.05  # not one colour
    assert (pixels[0, 0].mean() < 0.3) == dark  # the paper
