// Small things of a page: folded code, parts that scroll, and links to what is folded away.
document.addEventListener("DOMContentLoaded", () => {
  // A part that scrolls on its own is reached by the keyboard, too.
  const reach = () => {
    for (const part of document.querySelectorAll(".bd-article :is(pre, .riembn-table, .riembn-plot, .math, mjx-container, .pst-scrollable-table-container)")) {
      const scrolls = part.scrollWidth > part.clientWidth + 1;
      if (scrolls && !part.hasAttribute("tabindex")) {
        part.tabIndex = 0;
        part.dataset.scrolls = "";
      } else if (!scrolls && "scrolls" in part.dataset) {
        part.removeAttribute("tabindex");
        delete part.dataset.scrolls;
      }
    }
  };
  reach();
  addEventListener("resize", reach);
  addEventListener("load", reach);
  addEventListener("load", () => window.MathJax?.startup?.promise?.then(reach)); // formulas are set by now
  document.addEventListener("toggle", reach, true);

  // A link to a part that is folded away unfolds it.
  const unfold = () => {
    const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (!target) return;
    const next = target.id === "origin" ? target.closest("p")?.nextElementSibling || target.nextElementSibling : target;
    const folded = next?.closest("details") || next?.querySelector?.("details") || (next?.matches?.("details") && next);
    if (folded) folded.open = true;
    target.scrollIntoView();
  };
  addEventListener("hashchange", unfold);
  unfold();

  // One button for all folded code, remembered from page to page.
  const line = document.querySelector(".about-page");
  const cells = [...document.querySelectorAll(".bd-article .cell details.hide")];
  if (line && cells.length) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "all-code";
    const put = (open) => {
      for (const cell of cells) cell.open = open;
      button.textContent = open ? "hide code of figures" : "show all code";
      button.setAttribute("aria-pressed", String(open));
    };
    let open = false;
    try {
      open = localStorage.getItem("riembn-code") === "open";
    } catch {} // a page opened as a file may not remember
    put(open);
    button.addEventListener("click", () => {
      open = !open;
      put(open);
      try {
        localStorage.setItem("riembn-code", open ? "open" : "");
      } catch {}
    });
    line.append(" · ", button);
  }
});
