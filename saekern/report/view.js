"use strict";
// What the two pages about single latents share: numbers, texts, contexts, bars.
const View = (() => {
  // Texts of models go through textContent and setAttribute alone, so that markup in them stays text.
  function make(tag, attributes = {}, ...children) {
    const svg = ["svg", "rect", "line", "text"].includes(tag);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  const percent = (share) => {
    if (share === 0) return "0 %";
    const value = 100 * share;
    return (value >= 1 ? value.toFixed(1) : value >= 0.001 ? value.toPrecision(2) : value.toExponential(0)) + " %";
  };
  const number = (value) => {
    if (value === null) return "–";
    const size = Math.abs(value);
    return size !== 0 && (size < 0.001 || size >= 100000) ? value.toExponential(2) : String(Number(value.toPrecision(3)));
  };
  const cosine = (value) => (value === null ? "–" : value.toFixed(3));

  // What would not show or would rearrange its neighbours becomes a mark: the rule of saekern/report/text.py.
  const HIDDEN = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;
  const NAMED = { "\n": "⏎", "\t": "⇥", "\r": "␍", "\x7f": "␡" };
  function mark(character) {
    if (NAMED[character]) return NAMED[character];
    const code = character.codePointAt(0);
    return code < 32 ? String.fromCodePoint(0x2400 + code) : "U+" + code.toString(16).toUpperCase().padStart(4, "0");
  }
  function readable(text) {
    const nodes = [];
    let plain = "";
    for (const character of text) {
      if (HIDDEN.test(character)) {
        if (plain) nodes.push(plain);
        plain = "";
        nodes.push(make("i", {}, mark(character)));
      } else plain += character;
    }
    if (plain) nodes.push(plain);
    return nodes;
  }

  function context([focus, value, pieces, codes], largest) {
    const line = make("code", { class: "context" });
    Array.from(pieces).forEach((piece, i) => {
      const code = codes[i];
      if (code === undefined && i !== focus) return line.append(...readable(piece));
      const span = make("span", { class: i === focus ? "hit focus" : "hit", title: `activation ${number(code ?? 0)}` });
      span.style.setProperty("--v", Math.max(0, Math.min(1, (code ?? 0) / largest)).toFixed(3));
      span.append(...readable(piece));
      line.append(span);
    });
    return make("li", {}, make("span", { class: "value" }, number(value)), line);
  }

  function preview(latent) {
    const band = latent.bands[0];
    if (!band) return [];
    const [focus, , pieces] = band.texts[0];
    const list = Array.from(pieces);
    const hit = make("mark", {}, ...readable(list[focus]));
    return [...readable(list.slice(Math.max(0, focus - 16), focus).join("")), hit,
      ...readable(list.slice(focus + 1, focus + 8).join(""))];
  }

  // Bars from the bottom, with labels under both ends. heights: numbers; titles: what each bar says.
  function bars(heights, titles, labels, accent = -1) {
    const width = 320, height = 90, step = width / heights.length, most = Math.max(1, ...heights);
    const svg = make("svg", { class: "bars", viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": labels.name });
    heights.forEach((count, i) => {
      const size = count ? Math.max(1, (height - 4) * count / most) : 0;
      const bar = make("rect", { x: i * step, y: height - size, width: Math.max(0.5, step - 1), height: size });
      if (i === accent) bar.setAttribute("class", "accent");
      bar.append(document.createElementNS("http://www.w3.org/2000/svg", "title"));
      bar.firstChild.textContent = titles[i];
      svg.append(bar);
    });
    svg.append(make("line", { x1: 0, x2: width, y1: height + 0.5, y2: height + 0.5 }));
    svg.append(make("text", { x: 0, y: height + 14 }, labels.left));
    svg.append(make("text", { x: width, y: height + 14, "text-anchor": "end" }, labels.right));
    return svg;
  }

  function histogram(latent) {
    const titles = latent.h.map((count, i) => `${number(i * latent.w)} to ${number((i + 1) * latent.w)}: ${count} rows`);
    return make("figure", {}, bars(latent.h, titles, {
      name: "Histogram of activations", left: "0", right: number(latent.h.length * latent.w),
    }), make("figcaption", {}, `Activations in the ${latent.n.toLocaleString("en")} rows where it fires`));
  }

  const QUARTERS = ["Weakest quarter", "Second quarter", "Third quarter", "Strongest quarter"];
  function bands(latent) {
    return latent.bands.map((band) => make("section", { class: "band" },
      make("h3", {}, band.q === null ? "Strongest" : QUARTERS[band.q], make("span", { class: "soft" },
        ` ${number(band.low)} to ${number(band.high)}`)),
      make("ol", { class: "contexts" }, ...band.texts.map((text) => context(text, latent.max)))));
  }

  return { make, percent, number, cosine, readable, preview, bars, histogram, bands };
})();
