// Says which number is under the pointer, or the arrow keys, in a figure with axes.
// The numbers stand beside the drawing (riembn/pages/drawn.py writes them); without this script the figure is complete.
document.addEventListener("DOMContentLoaded", () => {
  const SVG = "http://www.w3.org/2000/svg";
  const NEAR = 28; // pixels of the screen

  const place = (value, [low, high, scale]) =>
    scale === "log"
      ? (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low))
      : (value - low) / (high - low);

  function follow(plot) {
    const told = JSON.parse(plot.querySelector("script").textContent);
    const series = told.series.filter((one) => one.x.length);
    if (!series.length) return;
    const drawings = [...plot.querySelectorAll(":scope > svg")];
    const tip = document.createElement("div");
    tip.className = "riembn-tip";
    tip.hidden = true;
    const said = document.createElement("p");
    said.className = "visually-hidden";
    said.setAttribute("aria-live", "polite");
    const mark = document.createElementNS(SVG, "circle");
    mark.setAttribute("r", 5);
    mark.setAttribute("class", "riembn-mark");
    plot.append(tip, said);
    plot.classList.add("riembn-followed");
    plot.tabIndex = 0;
    plot.setAttribute("role", "group");
    plot.setAttribute("aria-label", "Figure with numbers: arrow keys go from point to point.");

    const shown = () => drawings.findIndex((drawing) => drawing.getClientRects().length);
    const at = (one, k) => {
      const panel = told.drawings[shown()].panels[one.panel];
      const [left, top, right, bottom] = panel.box;
      const [x, y] = [place(one.x[k], panel.x), place(one.y[k], panel.y)];
      return x > -0.01 && x < 1.01 && y > -0.01 && y < 1.01 ? [left + x * (right - left), bottom - y * (bottom - top)] : null;
    };
    const words = (one, k) => {
      const [xLabel, yLabel] = told.axes[one.panel];
      const interval = one.low ? ` (${one.low[k]} to ${one.high[k]})` : "";
      const value = (name) => (one[`${name} words`] ? one[`${name} words`][k] : one[name][k]);
      const part = (label, name, otherwise) => `${label || otherwise} ${value(name)}${interval && (name === "x") === Boolean(one.horizontal) ? interval : ""}`;
      return [one.name, part(xLabel, "x", "x"), part(yLabel, "y", "y")].filter(Boolean);
    };
    const show = (one, k) => {
      const drawing = drawings[shown()];
      const [x, y] = at(one, k);
      const lines = words(one, k);
      tip.replaceChildren(...lines.map((line, n) => {
        const row = document.createElement(n || !one.name ? "span" : "strong");
        row.textContent = line;
        return row;
      }));
      tip.style.borderLeftColor = one.color;
      tip.hidden = false;
      mark.setAttribute("cx", x);
      mark.setAttribute("cy", y);
      mark.style.stroke = one.color;
      drawing.append(mark);
      const matrix = drawing.getScreenCTM();
      const box = plot.getBoundingClientRect();
      const point = new DOMPoint(x, y).matrixTransform(matrix);
      const left = Math.min(Math.max(point.x - box.left + 12, 0), Math.max(box.width - tip.offsetWidth, 0));
      const above = point.y - box.top - tip.offsetHeight - 12;
      tip.style.left = `${left}px`;
      tip.style.top = `${above < 0 ? point.y - box.top + 14 : above}px`;
    };
    const hide = () => {
      tip.hidden = true;
      mark.remove();
    };

    plot.addEventListener("pointermove", (event) => {
      const drawing = drawings[shown()];
      const matrix = drawing.getScreenCTM();
      let best = null;
      for (const one of series) {
        for (let k = 0; k < one.x.length; k++) {
          const spot = at(one, k);
          if (!spot) continue;
          const point = new DOMPoint(...spot).matrixTransform(matrix);
          const away = Math.hypot(point.x - event.clientX, point.y - event.clientY);
          if (away < NEAR && (!best || away < best.away)) best = { away, one, k };
        }
      }
      if (best) show(best.one, best.k);
      else hide();
    });
    plot.addEventListener("pointerleave", hide);
    plot.addEventListener("blur", hide);

    let [which, k] = [0, -1];
    plot.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      const [along, other] = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
      if (!along && !other) return;
      event.preventDefault();
      for (let tries = 0; tries < 5000; tries++) {
        which = (which + other + series.length) % series.length;
        k = other && !along ? Math.min(Math.max(k, 0), series[which].x.length - 1) : k + along;
        k = (k + series[which].x.length) % series[which].x.length;
        if (at(series[which], k)) break;
      }
      if (!at(series[which], k)) return;
      show(series[which], k);
      said.textContent = words(series[which], k).join(", ");
    });
  }

  for (const plot of document.querySelectorAll(".riembn-plot:not(.riembn-globe)")) {
    if (plot.querySelector("script")) follow(plot);
  }
});
