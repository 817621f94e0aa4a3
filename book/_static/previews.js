// Shows what a link within the book leads to (a term, a formula, a theorem, a source) while it is pointed at.
// What stands on other pages comes from _static/previews-data.js, written when the site is built; nothing is fetched.
document.addEventListener("DOMContentLoaded", () => {
  const base = document.querySelector("script[src*='_static/previews.js']").src.replace(/_static\/previews\.js.*$/, "");
  let data = null;
  const load = () =>
    (data ??= new Promise((done) => {
      const script = document.createElement("script");
      script.src = `${base}_static/previews-data.js`;
      script.onload = () => done(window.riembnPreviews || {});
      script.onerror = () => done({});
      document.head.append(script);
    }));

  let tip = null;
  let asked = null;
  const hide = () => {
    asked = null;
    tip?.remove();
    tip = null;
  };
  async function show(link) {
    asked = link;
    const target = new URL(link.href);
    const page = target.href.slice(base.length).split("#")[0];
    const html = (await load())[`${page}${target.hash}`];
    if (!html || asked !== link) return;
    tip?.remove();
    tip = document.createElement("div");
    tip.className = "riembn-preview";
    tip.id = "riembn-preview";
    tip.setAttribute("role", "tooltip");
    tip.innerHTML = html;
    document.body.append(tip);
    link.setAttribute("aria-describedby", tip.id);
    const box = link.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const below = box.bottom + 6;
    const fits = below + tip.offsetHeight < innerHeight;
    tip.style.left = `${Math.max(8, left) + scrollX}px`;
    tip.style.top = `${(fits ? below : Math.max(8, box.top - tip.offsetHeight - 6)) + scrollY}px`;
    window.MathJax?.typesetPromise?.([tip]);
  }

  for (const link of document.querySelectorAll(".bd-article a.internal[href*='#'], .bd-article a.reference[href*='#']")) {
    const target = new URL(link.href);
    if (!target.href.startsWith(base) || link.closest(".toctree-wrapper, .headerlink, .contents")) continue;
    let timer = null;
    link.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "touch") return;
      timer = setTimeout(() => show(link), 200);
    });
    link.addEventListener("focus", () => link.matches(":focus-visible") && show(link));
    for (const leaving of ["pointerleave", "blur"]) {
      link.addEventListener(leaving, () => {
        clearTimeout(timer);
        link.removeAttribute("aria-describedby");
        hide();
      });
    }
  }
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
});
