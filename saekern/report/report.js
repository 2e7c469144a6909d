"use strict";
{
  // Marks every figure whose drawing has a size: what the browser test reads.
  addEventListener("load", () => {
    for (const svg of document.querySelectorAll("figure svg")) {
      const box = svg.getBBox();
      if (box.width > 0 && box.height > 0) svg.parentElement.dataset.drawn = "yes";
    }
  });

  Export.attach(document);

  // The contents: folded away where there is no room beside the text.
  const contents = document.querySelector(".contents-of-page"), toggle = contents.querySelector("button");
  const fold = (open) => {
    toggle.setAttribute("aria-expanded", String(open));
    contents.classList.toggle("open", open);
  };
  contents.classList.add("folds");
  toggle.addEventListener("click", () => fold(toggle.getAttribute("aria-expanded") !== "true"));
  contents.addEventListener("click", (event) => { if (event.target.closest("a")) fold(false); });
  addEventListener("keydown", (event) => { if (event.key === "Escape") fold(false); });

  // Which section is being read: the last one that began above the middle of the window.
  const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  const parts = [...links.keys()].map((id) => document.getElementById(id));
  let waiting = false;
  function follow() {
    waiting = false;
    const now = parts.findLast((part) => part.getBoundingClientRect().top < innerHeight / 2) ?? parts[0];
    for (const [id, link] of links) link.toggleAttribute("aria-current", id === now.id);
    toggle.lastElementChild.textContent = links.get(now.id).textContent;
  }
  addEventListener("scroll", () => { if (!waiting) { waiting = true; requestAnimationFrame(follow); } }, { passive: true });
  follow();
}
