"use strict";
{
  const { make, percent, number, cosine, readable, preview, bars, histogram, bands } = View;
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const $ = (id) => document.getElementById(id);
  const STEP = 200; // entries of the list at a time: thousands at once take seconds to lay out

  // Arrays come as base64 of little-endian numbers, cosines as int16 in ten-thousandths with −32768 for none.
  function array(name, Kind) {
    if (data[name] === null) return null;
    return new Kind(Uint8Array.from(atob(data[name]), (character) => character.charCodeAt(0)).buffer);
  }
  const p = array("p", Float32Array), centred = array("centred", Float32Array), mean = array("cosine", Float32Array);
  const low = array("lower", Float32Array), high = array("upper", Float32Array), firing = array("firing", Float32Array);
  const kind = array("kind", Uint8Array), chosen = array("chosen", Int32Array);
  const partner = array("partner", Int32Array), partnerCosine = array("partner_cosine", Int16Array);
  const margin = array("margin", Int16Array), mutual = array("mutual", Uint8Array);
  const KINDS = ["dead", "stable", "between", "unstable"], DEAD = 0;
  const others = data.seeds - 1, count = p.length;
  const place = new Map([...chosen].map((latent, at) => [latent, at]));
  const short = (value) => (value === -32768 ? null : value / 10000);
  const known = (value) => (Number.isNaN(value) ? null : value);
  const share = (value) => (Number.isNaN(value) ? "–" : value.toFixed(3));
  let shown = STEP, visible = [], current = null;

  const key = {
    i: (latent) => latent, p: (latent) => p[latent], firing: (latent) => firing[latent], cosine: (latent) => mean[latent],
  };
  const texts = new Map(); // made when first searched
  function text(latent) {
    const at = place.get(latent);
    if (at === undefined) return "";
    if (!texts.has(latent)) {
      const pieces = (data.records[at].bands ?? []).flatMap((band) => band.texts.map((one) => Array.from(one[2]).join("")));
      texts.set(latent, pieces.join("\n").toLowerCase());
    }
    return texts.get(latent);
  }

  function update() {
    const query = $("search").value.toLowerCase(), wanted = query.trim(), of = key[$("sort").value];
    const down = $("order").getAttribute("aria-pressed") === "true" ? -1 : 1, only = $("kind").value;
    visible = [];
    for (let latent = 0; latent < count; latent++) {
      if (only === "shown" ? !place.has(latent) : only !== "all" && KINDS[kind[latent]] !== only) continue;
      if (wanted !== "" && !(/^\d+$/.test(wanted) ? String(latent).startsWith(wanted) : text(latent).includes(query))) continue;
      visible.push(latent);
    }
    // Dead ones have no p: last, whatever the order.
    const value = (latent) => { const found = of(latent); return Number.isNaN(found) ? down * Infinity : found; };
    const second = (a, b) => ($("sort").value === "p" ? down * (mean[a] - mean[b]) || 0 : 0); // p̂ has S values only
    visible.sort((a, b) => { const x = value(a), y = value(b); return x === y ? second(a, b) || a - b : down * (x - y); });
    $("count").textContent = `${visible.length.toLocaleString("en")} of ${count.toLocaleString("en")}`;
    list();
  }

  function list() {
    $("list").replaceChildren(...visible.slice(0, shown).map((latent) => {
      const record = data.records[place.get(latent)];
      const words = record?.bands ? preview(record) : [];
      const line = make("a", { href: `#latent-${latent}`, "data-i": latent }, make("b", {}, String(latent)),
        make("span", {}, kind[latent] === DEAD ? "dead" : `p ${p[latent].toFixed(2)}`),
        make("span", {}, firing ? percent(firing[latent]) : ""), data.texts ? make("code", {}, ...words) : null);
      line.toggleAttribute("aria-current", latent === current);
      return make("li", {}, line);
    }));
    if (!visible.length) $("list").append(make("li", { class: "none" }, "No latent fits."));
    $("more").hidden = visible.length <= shown;
  }

  function facts(latent, record) {
    const dead = kind[latent] === DEAD;
    const lines = [
      ["p̂", dead ? "–" : `${share(p[latent])}, ${Math.round(p[latent] * others)} of ${others}`],
      ["interval of p̂", dead || !low ? null : `${share(low[latent])} to ${share(high[latent])}`],
      ["p̂ centred", share(centred[latent])], ["mean cosine", share(mean[latent])],
      ["fires on", firing ? `${percent(firing[latent])} of rows` : null],
    ];
    if (record && record.n !== undefined) lines.push(["largest", number(record.max)], ["mean where active", number(record.mean)],
      ["decoder norm", number(record.norm)], ["encoder · decoder", cosine(record.ec)]);
    return make("dl", { class: "facts" }, ...lines.filter(([, value]) => value !== null)
      .map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  }

  function partners(at) {
    const rows = [], heights = [], titles = [];
    for (let j = 0; j < others; j++) {
      const k = at * others + j, value = short(partnerCosine[k]);
      const found = value !== null && value >= data.threshold;
      rows.push(make("tr", {}, make("th", { scope: "row" }, data.labels[j]), make("td", {}, partner[k] < 0 ? "–" : String(partner[k])),
        make("td", { class: found ? "found" : "lost" }, cosine(value)), make("td", {}, cosine(short(margin[k]))),
        make("td", {}, mutual[k] ? "yes" : "no")));
      heights.push(Math.max(0, value ?? 0));
      titles.push(`seed ${data.labels[j]}: ${cosine(value)}`);
    }
    const head = ["seed", "latent", "cosine", "margin", "mutual"];
    const table = make("table", { class: "numbers" }, make("thead", {}, make("tr", {},
      ...head.map((name) => make("th", { scope: "col" }, name)))), make("tbody", {}, ...rows));
    const picture = bars(heights, titles, { name: "Cosine with the partner in every other seed",
      left: `seed ${data.labels[0]}`, right: `seed ${data.labels[others - 1]}` });
    const level = 90 - 86 * data.threshold; // bars() is 90 high, 86 of them for 1
    picture.append(make("line", { class: "level", x1: 0, x2: 320, y1: level, y2: level }));
    return make("div", {}, make("h3", {}, "Partners in the other seeds"), make("div", { class: "top" },
      make("figure", {}, picture, make("figcaption", {}, `Cosine with the nearest latent of every other seed; the line is θ = ${data.threshold}`)),
      make("div", {}, make("div", { class: "scroll partners", tabindex: "0" }, table))),
    make("p", { class: "soft small" }, "Bold: at least θ. Margin: cosine less that of the runner-up there. Mutual: that latent's own nearest is this one."));
  }

  function neighbours(record) {
    const items = record.near.map(([other, value]) => make("li", {}, make("a", { href: `#latent-${other}` }, String(other)),
      make("span", { class: "value" }, cosine(value))));
    return make("div", {}, make("h3", {}, "Nearest in its own dictionary"), make("ol", { class: "near" }, ...items));
  }

  function show(latent) {
    current = latent;
    const at = place.get(latent), record = at === undefined ? null : data.records[at], name = KINDS[kind[latent]];
    const heading = make("h3", { class: "name" }, `Latent ${latent} `, make("span", { class: `badge ${name}` }, name));
    const parts = [heading, facts(latent, record)];
    if (record === null) {
      const note = make("p", { class: "note" }, "This page keeps partners and contexts of the latents at both ends of p̂ and of ",
        "some at random; this one is not among them.");
      if (data.command) note.append(" It is shown by ", make("code", { class: "context" }, `${data.command} ${latent}`), ", STUDY being the study's folder.");
      parts.push(note);
    } else {
      if (kind[latent] !== DEAD) parts.push(partners(at));
      parts.push(make("div", { class: "top" }, neighbours(record), record.n ? histogram(record) : ""));
      const said = record.bands?.length ? bands(record) : [];
      const none = record.n === undefined ? "There are no rows, so there is nothing to see it fire on." :
        record.n === 0 ? "It fires on none of these rows." : "The rows came without text, so there are no contexts.";
      parts.push(...(said.length ? said : [make("p", { class: "note" }, none)]));
    }
    $("latent").replaceChildren(...parts);
    $("latent").dataset.name = `latent-${latent}`;
    Export.attach($("latent"));
    for (const link of $("list").querySelectorAll("a")) link.toggleAttribute("aria-current", Number(link.dataset.i) === latent);
  }

  function go(moved) {
    const wanted = /^#latent-(\d+)$/.exec(location.hash), latent = wanted ? Number(wanted[1]) : null;
    if (latent !== null && latent < count) {
      show(latent);
      if (moved) $(matchMedia("(max-width: 50rem)").matches ? "latent" : "explorer").scrollIntoView();
    } else if (current === null && visible.length) show(visible[0]);
  }

  const label = () => {
    $("order").textContent = $("order").getAttribute("aria-pressed") === "true" ? "descending" : "ascending";
    update();
  };
  const press = (down) => { $("order").setAttribute("aria-pressed", String(down)); label(); };
  const reset = () => { shown = STEP; update(); };
  $("search").addEventListener("input", reset);
  $("kind").addEventListener("change", reset);
  $("sort").addEventListener("change", () => press($("sort").value !== "i")); // the largest first, but numbers upwards
  $("order").addEventListener("click", () => press($("order").getAttribute("aria-pressed") !== "true"));
  $("more").addEventListener("click", () => { shown += STEP; list(); });
  $("table").addEventListener("click", () => {
    const rows = visible.map((i) => [i, KINDS[kind[i]], ...[p, centred, mean, firing].map((one) => (one ? known(one[i]) ?? "" : ""))]);
    Export.save(Export.csvBlob([["latent", "kind", "p", "p centred", "mean cosine", "firing"], ...rows]), "latents.csv");
  });
  addEventListener("hashchange", () => go(true));
  $("explorer").addEventListener("keydown", (event) => {
    const step = { j: 1, k: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
    const at = visible.indexOf(current) + step;
    if (visible[at] !== undefined) { history.replaceState(null, "", `#latent-${visible[at]}`); show(visible[at]); }
  });
  label();
  go(false);
}
