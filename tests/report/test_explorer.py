"""The latent explorer and the exports: what is in the page, how large it gets, and that clicks do what they say."""

import base64
import html
import json
import re

import numpy as np
import pytest
from browser import CHROMIUM, browse, console

from saekern import report
from saekern.report.explorer import NONE, explorer_data
from saekern.report.page import page as make_page


def unpacked(text, kind):
    return np.frombuffer(base64.b64decode(text), kind)


def test_arrays_survive_the_way_into_the_page(written):
    """Planted: kinds numbered in another order; caught. Planted: cosines in the place of margins; caught."""
    results = report.load(written)
    data, found = explorer_data(results), results.explorer
    p = results.arrays["probability"][0]
    np.testing.assert_array_equal(unpacked(data["p"], "<f4"), p.astype("f4"))
    np.testing.assert_array_equal(unpacked(data["chosen"], "<i4"), found["chosen"])
    for name, array in (("partner_cosine", found["partner_cosine"]), ("margin", found["margin"])):
        np.testing.assert_allclose(unpacked(data[name], "<i2").reshape(array.shape) / 1e4, array, atol=5.1e-5)
    kind = unpacked(data["kind"], "u1")
    assert (kind == 0).sum() == np.isnan(p).sum()
    assert ((kind == 1) == results.arrays["stable"][0].astype(bool)).all()
    assert ((kind == 3) == results.arrays["unstable"][0].astype(bool)).all()
    assert data["labels"] == [str(i) for i in range(1, 8)]
    assert data["lower"] is None  # results of an earlier version
    assert data["texts"]


def test_no_cosine_is_not_a_number(written):
    results = report.load(written)
    results.explorer["margin"][0, 0] = np.nan
    assert unpacked(explorer_data(results)["margin"], "<i2")[0] == NONE


def test_studies_of_earlier_versions_have_no_explorer(results_folder, tmp_path):
    folder = results_folder(tmp_path, latents=64)
    (folder / "results" / "explorer.json").unlink()
    page = make_page(report.load(folder), [])
    assert 'id="explorer"' not in page
    assert "Methods" in page


def test_page_of_96_large_seeds_stays_small(results_folder, tmp_path):
    """F = 16384, S = 96, 2,000 latents with 95 partners and eight contexts of 45 characters, each with a code."""
    folder = results_folder(tmp_path, seeds=96, latents=16384)
    random = np.random.default_rng(1)
    synthetic_explorer = results_folder.__globals__["explorer"]
    synthetic_explorer(folder / "results", random, 96, 16384, "x" * 20, chosen=2000)
    path = folder / "results" / "explorer.json"
    found = json.loads(path.read_text())
    codes = {str(i): 0.1234 for i in range(45)}
    context = [32, 0.1234, "the text around a token, and then some more."[:45], codes]
    bands = [{"q": None, "low": 0.1234, "high": 0.1234, "texts": [context] * 4}]
    bands += [{"q": q, "low": 0.1234, "high": 0.1234, "texts": [context]} for q in range(4)]
    for record in found["latents"]:
        record |= {"bands": bands, "h": [1234] * 32}
    path.write_text(json.dumps(found))
    size = len(make_page(report.load(folder), []).encode())
    assert 5e6 < size < 15e6


CLICKS = """
<script>
addEventListener("load", async () => {
  const out = { saved: [] }, $ = (id) => document.getElementById(id), one = (where) => document.querySelector(where);
  const heading = () => one("#latent h3").firstChild.textContent;
  const pump = setInterval(() => {}, 2); // virtual time would end before pictures are decoded, which takes real time
  const wait = (time) => new Promise((done) => setTimeout(done, time));
  const numbers = () => [...document.querySelectorAll("#list b")].map((entry) => Number(entry.textContent));
  const enter = (id, value, kind) => { $(id).value = value; $(id).dispatchEvent(new Event(kind)); };
  const badge = () => one("#latent .badge").textContent;
  try {
    out.start = [numbers().length, $("more").hidden];
    $("more").click(); out.more = numbers().length;
    out.first = badge();
    enter("sort", "firing", "change"); out.frequent = numbers()[0];
    $("order").click(); out.rare = numbers()[0];
    enter("sort", "i", "change"); out.number = numbers().slice(0, 2);
    for (const kind of ["stable", "between", "unstable", "dead", "shown"]) {
      enter("kind", kind, "change"); out[kind] = Number($("count").textContent.split(" ")[0]);
    }
    enter("search", "FOCUS, a", "input"); out.text = numbers();
    enter("search", "no such text", "input");
    out.none = [numbers().length, one("#list .none") !== null];
    enter("search", "", "input"); enter("kind", "all", "change");
    enter("search", "51", "input"); out.search = numbers(); enter("search", "", "input");
    enter("sort", "p", "change"); $("order").click(); $("more").click(); $("more").click();
    enter("kind", "all", "change");
    location.hash = "latent-" + out.text[0]; await wait(50);
    out.heading = heading();
    out.hostile = [document.querySelectorAll("img, script[src]").length, one(".context").textContent];
    out.partners = [...document.querySelectorAll(".partners tbody tr")]
      .map((row) => [...row.cells].map((cell) => cell.textContent));
    out.near = document.querySelectorAll("#latent .near a").length;
    $("latent").dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
    out.key = heading() !== out.heading;
    location.hash = "latent-" + out.text[0]; await wait(50);
    out.wide = [document.documentElement.scrollWidth - innerWidth, document.body.scrollWidth - innerWidth];
    const toggle = one(".contents-of-page button");
    const display = (element) => getComputedStyle(element).display, contents = one(".contents-of-page ol");
    out.contents = [display(toggle), display(contents)];
    toggle.click();
    out.contents.push(display(contents));
    out.wide.push(document.documentElement.scrollWidth - innerWidth);
    toggle.click();

    addEventListener("exported", async ({ detail: { name, blob } }) => {
      const text = name.endsWith("png") ? "" : await blob.text();
      const bytes = new Uint8Array(await blob.arrayBuffer());
      const left = /currentColor|var\\(/.test(text), lines = text.split("\\n").length;
      out.saved.push([name, blob.type, blob.size, [...bytes.slice(0, 4)], left, lines]);
    });
    const buttons = [...document.querySelectorAll(".export button"), $("table")];
    for (const button of buttons) { button.click(); await wait(60); }
    for (let i = 0; i < 1000 && out.saved.length < buttons.length; i++) await wait(50);
    out.buttons = buttons.length;
    out.light = document.documentElement.className;
    const svg = await (await Export.svgFile(one("#latent figure svg"))).text();
    out.bars = [/fill: rgb/.test(svg), /xmlns/.test(svg), svg.includes("class=\\"level\\"")];
    const ink = await (await Export.svgFile(one("#ecdf svg"))).text();
    out.ink = ink.includes("rgb(16, 20, 24)");
    const picture = await createImageBitmap(await Export.pngFile(one("#ecdf svg")));
    out.size = [picture.width, picture.height];
  } catch (error) { out.error = String(error.stack); }
  clearInterval(pump);
  document.documentElement.dataset.out = JSON.stringify(out);
});
</script>
"""
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


@pytest.mark.chromium
@needs_chromium
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (500, False)])
def test_clicks(written, tmp_path, width, dark):
    """Headless windows are at least 500 wide; test_narrow has 400.

    Planted: dead latents first when sorted; the dark page's colours, or currentColor, in an export; all caught."""
    path = tmp_path / "page.html"
    text = (written / "report.html").read_text(encoding="utf-8")
    path.write_text(text.replace("</body>", CLICKS + "</body>"), encoding="utf-8")
    theme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    window = f"--window-size={width},1000"
    process = browse(tmp_path / "profile", *theme, window, "--virtual-time-budget=300000", "--dump-dom", path.as_uri())
    assert console(process) == []
    assert "data-errors" not in process.stdout[:400]
    found = re.search(r'data-out="([^"]*)"', process.stdout[:100_000])
    out = json.loads(html.unescape(found[1]))
    assert "error" not in out, out["error"]
    results = report.load(written)
    p, firing = results.arrays["probability"][0], results.arrays["firing"][0]
    chosen, records = results.explorer["chosen"], results.explorer["records"]
    assert out["start"] == [200, False]
    assert out["more"] == 400
    assert out["first"] == "stable"
    assert out["frequent"] == firing.argmax()
    assert firing[out["rare"]] == 0
    assert out["number"] == [0, 1]
    arrays = results.arrays
    stable, unstable, dead = (
        int(x) for x in (arrays["stable"][0].sum(), arrays["unstable"][0].sum(), np.isnan(p).sum())
    )
    counts = [stable, len(p) - stable - unstable - dead, unstable, dead, len(chosen)]
    assert [out[name] for name in ("stable", "between", "unstable", "dead", "shown")] == counts
    assert out["text"] == [record["i"] for record in records if record["bands"]]
    assert out["none"] == [0, True]
    assert out["search"] == [51, *range(510, 512)]
    latent = out["text"][0]
    assert out["heading"] == f"Latent {latent} "
    assert out["hostile"][0] == 0
    assert "<script>alert('x')</script>" in out["hostile"][1]
    if not np.isnan(p[latent]):
        row = results.explorer["partner_cosine"][0]
        assert [line[2] for line in out["partners"]] == [f"{round(float(c) * 1e4) / 1e4:.3f}" for c in row]
    assert out["near"] == 2
    assert out["key"]
    assert max(out["wide"]) <= 0
    assert out["contents"] == (["none", "block", "block"] if width == 1280 else ["flex", "none", "block"])
    check_saved(out)


def check_saved(out):
    saved = {name: rest for name, *rest in out["saved"]}
    assert len(saved) == len(out["saved"]) == out["buttons"] > 15
    for name, (kind, size, head, left, lines) in saved.items():
        assert not left, name
        assert size > 20, name
        if name.endswith("png"):
            assert (kind, head) == ("image/png", [0x89, 0x50, 0x4E, 0x47])
            assert size > 500
        elif name.endswith("csv"):
            assert head[:3] == [0xEF, 0xBB, 0xBF]
            assert lines > 2
        else:
            assert kind == "image/svg+xml"
    assert {"ecdf.svg", "ecdf.png", "seeds.csv", "latents.csv"} <= set(saved)
    assert saved["latents.csv"][4] == 512 + 2
    assert out["light"] == ""
    assert out["bars"] == [True, True, True]
    assert out["ink"]
    assert out["size"][0] == 2 * round(6.2 * 96)  # inches at twice 96 dots


NARROW = """<!doctype html><title>frame</title><iframe id="f" src="PAGE" width="400" height="3000"></iframe><script>
addEventListener("load", () => { const d = document.getElementById("f").contentDocument, w = d.documentElement;
  document.documentElement.dataset.out = JSON.stringify([w.clientWidth, w.scrollWidth, d.body.scrollWidth]); });
</script>"""


@pytest.mark.chromium
@needs_chromium
def test_narrow(written, tmp_path):
    """400 pixels: nothing is wider than the window. Planted: tables that do not scroll; caught."""
    frame = tmp_path / "frame.html"
    frame.write_text(NARROW.replace("PAGE", (written / "report.html").as_uri()), encoding="utf-8")
    process = browse(tmp_path / "profile", "--allow-file-access-from-files", "--dump-dom", frame.as_uri())
    width, page, body = json.loads(html.unescape(re.search(r'data-out="([^"]*)"', process.stdout)[1]))
    assert 380 <= width <= 400
    assert page <= width
    assert body <= width
