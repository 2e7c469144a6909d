"use strict";
{
  const { make, percent, number, cosine, readable, preview, bars, histogram, bands: contexts } = View;
  const data = JSON.parse(document.getElementById("data").textContent);
  const byNumber = new Map(data.latents.map((latent) => [latent.i, latent]));
  const $ = (id) => document.getElementById(id);
  const STEP = 200; // entries of the list at a time: thousands at once take seconds to lay out
  let shown = STEP, visible = [], current = null;

  function words(title, list) {
    const most = Math.max(...list.map(([, logit]) => Math.abs(logit)), 1e-9);
    const rows = list.map(([text, logit]) => {
      const cell = make("td", { class: "meter" }, number(logit));
      cell.style.setProperty("--v", (Math.abs(logit) / most).toFixed(3));
      return make("tr", {}, make("td", {}, make("code", { class: "word" }, ...readable(text))), cell);
    });
    return make("div", {}, make("h4", {}, title), make("table", { class: "words" }, make("tbody", {}, ...rows)));
  }

  function neighbours(title, list, own, note) {
    const items = list.map(([other, value]) => {
      const inside = own && byNumber.has(other);
      const name = inside ? make("a", { href: `#${other}` }, String(other)) : String(other);
      return make("li", {}, name, make("span", { class: "value" }, cosine(value)));
    });
    const body = items.length ? make("ol", { class: "near" }, ...items) : make("p", { class: "soft" }, "none");
    return make("div", {}, make("h4", {}, title), body, note ? make("p", { class: "soft small" }, note) : null);
  }

  function show(latent) {
    current = latent.i;
    const dead = latent.n === 0;
    const facts = [
      ["density", percent(latent.n / data.rows)], ["fires in", `${latent.n.toLocaleString("en")} rows`],
      ["largest", number(latent.max)], ["mean", number(latent.mean)], ["decoder norm", number(latent.norm)],
      ["encoder · decoder", cosine(latent.ec)],
    ].map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
    const heading = make("h2", {}, `Latent ${latent.i}`);
    if (dead) heading.append(" ", make("span", { class: "badge" }, "dead"));
    const lens = data.lens || latent.up.length === 0 ? make("p", { class: "soft" }, data.lens ?? "") :
      make("div", { class: "two" }, words("Promotes", latent.up), words("Suppresses", latent.down));
    const around = make("div", { class: "two" }, neighbours("Nearest in this SAE", latent.near, true),
      ...latent.other.map((found, i) => {
        const margin = found.list.length > 1 ? `margin ${cosine(found.list[0][1] - found.list[1][1])}` : "";
        const side = found.list.length ? (found.mutual ? "mutual nearest" : "not mutual") : "";
        return neighbours(`Nearest in ${data.others[i]}`, found.list, false, [side, margin].filter(Boolean).join(", "));
      }));
    const bands = contexts(latent);
    const none = dead ? "It fires in none of these rows, so there is nothing to show." :
      data.texts ? "It has no positive activation here." : "The rows came without text, so there are no contexts.";
    $("latent").replaceChildren(heading, make("dl", { class: "facts" }, ...facts),
      make("div", { class: "top" }, dead ? "" : histogram(latent), make("div", {}, make("h3", {}, "Logit lens"), lens)),
      make("h3", {}, "Neighbours"), around,
      ...(bands.length ? bands : [make("p", { class: "note" }, none)]));
    for (const entry of $("list").children) entry.firstChild.toggleAttribute("aria-current", entry.firstChild.dataset.i === String(current));
  }

  const key = {
    i: (latent) => latent.i, n: (latent) => latent.n, max: (latent) => latent.max,
    near: (latent) => latent.near[0]?.[1] ?? -2, other: (latent) => latent.other[0]?.list[0]?.[1] ?? -2,
  };
  const texts = new Map(); // made when first searched
  function text(latent) {
    if (!texts.has(latent.i)) {
      const pieces = latent.bands.flatMap((band) => band.texts.map((one) => Array.from(one[2]).join("")));
      texts.set(latent.i, [...pieces, ...latent.up.map(([word]) => word)].join("\n").toLowerCase());
    }
    return texts.get(latent.i);
  }

  function update() {
    const query = $("search").value.toLowerCase(), wanted = query.trim(), of = key[$("sort").value];
    const down = $("order").getAttribute("aria-pressed") === "true" ? -1 : 1;
    visible = data.latents.filter((latent) => (!$("live").checked || latent.n > 0) && (wanted === "" ||
      (/^\d+$/.test(wanted) ? String(latent.i).startsWith(wanted) : text(latent).includes(query))));
    visible.sort((a, b) => down * (of(a) - of(b)) || a.i - b.i);
    $("count").textContent = `${visible.length.toLocaleString("en")} of ${data.latents.length.toLocaleString("en")}`;
    list();
  }

  function list() {
    $("list").replaceChildren(...visible.slice(0, shown).map((latent) => {
      const line = make("a", { href: `#${latent.i}`, "data-i": latent.i }, make("b", {}, String(latent.i)),
        make("span", {}, latent.n === 0 ? "dead" : percent(latent.n / data.rows)), make("span", {}, number(latent.max)),
        make("code", {}, ...preview(latent)));
      line.toggleAttribute("aria-current", latent.i === current);
      return make("li", {}, line);
    }));
    $("more").hidden = visible.length <= shown;
  }

  function overview() {
    const { edges, bins } = data.overview;
    const titles = bins.map((count, i) => `${percent(edges[i])} to ${percent(edges[i + 1])} of rows: ${count} latents`);
    $("overview").prepend(bars(bins, titles, { name: "Densities of all latents", left: percent(edges[0]), right: "100 %" }));
    $("overview").lastElementChild.textContent =
      "Density of every latent that fires: the share of rows in which it does, on a logarithmic scale";
  }

  function go(scroll) {
    const latent = byNumber.get(Number(location.hash.slice(1) || NaN)) ?? (current === null ? visible[0] : null);
    if (!latent) return;
    show(latent);
    if (scroll && matchMedia("(max-width: 50rem)").matches) $("latent").scrollIntoView();
  }

  $("search").addEventListener("input", () => { shown = STEP; update(); });
  $("sort").addEventListener("change", () => {
    $("order").setAttribute("aria-pressed", String($("sort").value !== "i")); // the largest first, but numbers upwards
    label();
  });
  $("order").addEventListener("click", () => {
    $("order").setAttribute("aria-pressed", String($("order").getAttribute("aria-pressed") !== "true"));
    label();
  });
  const label = () => {
    $("order").textContent = $("order").getAttribute("aria-pressed") === "true" ? "descending" : "ascending";
    update();
  };
  $("live").addEventListener("change", update);
  $("more").addEventListener("click", () => { shown += STEP; list(); });
  addEventListener("hashchange", () => go(true));
  addEventListener("keydown", (event) => {
    const step = { j: 1, k: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
    const at = visible.findIndex((latent) => latent.i === current) + step;
    if (visible[at]) location.hash = visible[at].i;
  });
  overview();
  label();
  go(false);
}
