"use strict";
// Small buttons at every figure (SVG, PNG) and table (CSV). Files are made here, as blobs: nothing is fetched.
const Export = (() => {
  const NS = "http://www.w3.org/2000/svg";
  const PRESENTED = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-size", "font-family"]; // what .bars takes from the style sheet

  // A picture that stands alone: no CSS variables, no currentColor, no style sheet; in the colours of the light page.
  function picture(svg) {
    const root = document.documentElement;
    root.classList.add("light"); // read and taken off in one go, so that nobody sees it
    const style = getComputedStyle(svg), copy = svg.cloneNode(true);
    if (svg.classList.contains("bars")) {
      const [from, to] = [svg, copy].map((one) => [...one.querySelectorAll("rect, line, text")]);
      from.forEach((element, i) => {
        const own = getComputedStyle(element);
        for (const name of PRESENTED) to[i].style.setProperty(name, own.getPropertyValue(name));
      });
    }
    const { width, height } = svg.viewBox.baseVal;
    const scale = /pt$/.test(svg.getAttribute("width") ?? "") ? 4 / 3 : 2; // points, or the page's own small bars
    copy.setAttribute("xmlns", NS);
    copy.setAttribute("width", String(Math.round(width * scale)));
    copy.setAttribute("height", String(Math.round(height * scale)));
    const text = new XMLSerializer().serializeToString(copy)
      .replace(/var\((--[\w-]+)\)/g, (_, name) => style.getPropertyValue(name).trim() || "#000000")
      .replace(/currentColor/gi, style.color);
    root.classList.remove("light");
    return { text, width: Math.round(width * scale), height: Math.round(height * scale) };
  }

  const svgFile = async (svg) => new Blob([picture(svg).text], { type: "image/svg+xml" });

  // At twice the size, on white. The image comes from a data: address, which the page's policy allows.
  async function pngFile(svg) {
    const { text, width, height } = picture(svg);
    const image = new Image();
    image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = 2 * width;
    canvas.height = 2 * height;
    const pen = canvas.getContext("2d");
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(image, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve, reject) =>
      canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("no picture came out"))), "image/png"));
  }

  const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  const csv = (rows) => rows.map((row) => row.map((cell) => quoted(String(cell))).join(",") + "\n").join("");
  const csvFile = async (table) => csvBlob([...table.rows].map((row) => [...row.cells].map((cell) => cell.textContent)));
  // The mark at the start tells spreadsheets that the file is UTF-8.
  const csvBlob = (rows) => new Blob(["\ufeff" + csv(rows)], { type: "text/csv;charset=utf-8" });

  function save(blob, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    dispatchEvent(new CustomEvent("exported", { detail: { name, blob } }));
  }

  function button(name, extension, make) {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = extension.toUpperCase();
    made.title = `Save ${name}.${extension}`;
    made.addEventListener("click", async () => save(await make(), `${name}.${extension}`));
    return made;
  }

  // A name from the figure's id, else from the section's and the number in it.
  function nameOf(element) {
    const figure = element.closest("figure[id]"), section = element.closest("section[id], [data-name]");
    if (figure) return figure.id;
    const prefix = section ? section.dataset.name || section.id.replace(/^part-/, "") : "report";
    const alike = [...(section ?? document).querySelectorAll(element.tagName)];
    return alike.length > 1 ? `${prefix}-${alike.indexOf(element) + 1}` : prefix;
  }

  function attach(root) {
    const row = (place, ...buttons) => {
      const line = document.createElement("div");
      line.className = "export";
      line.append(...buttons);
      place.append(line);
    };
    for (const svg of root.querySelectorAll("figure svg")) {
      const name = nameOf(svg);
      row(svg.closest("figure"), button(name, "svg", () => svgFile(svg)), button(name, "png", () => pngFile(svg)));
    }
    for (const table of root.querySelectorAll(".scroll > table")) {
      const line = button(nameOf(table), "csv", () => csvFile(table));
      const place = document.createElement("div");
      table.parentElement.after(place);
      row(place, line);
    }
  }

  return { attach, save, csvBlob, svgFile, pngFile, csvFile };
})();
