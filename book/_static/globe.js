// Draws a sphere that is on the page as a picture once more, so that it can be turned.
// The scene comes from riembn/pages/globe.py, and so does the way it is drawn: keep the two alike.
document.addEventListener("DOMContentLoaded", () => {
  const RADIUS = 200;
  const SVG = "http://www.w3.org/2000/svg";
  const PAPER = "var(--pst-color-background, var(--jp-layout-color0, Canvas))";

  const graticule = [];
  const circle = (point) => Array.from({ length: 61 }, (_, k) => point((k * Math.PI) / 30));
  for (let k = 0; k < 6; k++) {
    const a = (k * Math.PI) / 6;
    graticule.push(circle((t) => [Math.cos(a) * Math.cos(t), Math.sin(a) * Math.cos(t), Math.sin(t)]));
  }
  for (let k = -2; k <= 2; k++) {
    const b = (k * Math.PI) / 6;
    graticule.push(circle((t) => [Math.cos(b) * Math.cos(t), Math.cos(b) * Math.sin(t), Math.sin(b)]));
  }

  const isHidden = ([x, y, z]) => {
    const inside = 1 - x * x - y * y;
    return inside > 0 && z < Math.sqrt(inside) - 0.03;
  };
  const pathOf = (seen) => "M" + seen.map(([x, y]) => `${(RADIUS * x).toFixed(1)} ${(-RADIUS * y).toFixed(1)}`).join("L");
  const paintOf = (what, [plain, css]) => `${what}:${plain};${what}:${css}`;

  class Drawing {
    constructor([azimuth, elevation], scale) {
      const [ca, sa] = [Math.cos((azimuth * Math.PI) / 180), Math.sin((azimuth * Math.PI) / 180)];
      const [ce, se] = [Math.cos((elevation * Math.PI) / 180), Math.sin((elevation * Math.PI) / 180)];
      this.axes = [[-sa, ca, 0], [-se * ca, -se * sa, ce], [ce * ca, ce * sa, se]];
      this.scale = scale;
      this.layers = [0, 1, 2].map(() => document.createElementNS(SVG, "g"));
    }

    see(points) {
      return points.map((p) => this.axes.map((axis) => axis[0] * p[0] + axis[1] * p[1] + axis[2] * p[2]));
    }

    put(layer, tag, attributes, text = "") {
      const made = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
      made.textContent = text;
      this.layers[Number(layer)].append(made);
    }

    line(points, stroke, width, opacity) {
      const seen = this.see(points);
      const hidden = seen.slice(1).map((p, k) => isHidden(p.map((x, i) => (x + seen[k][i]) / 2)));
      for (let first = 0, k = 1; k <= hidden.length; k++) {
        if (k < hidden.length && hidden[k] === hidden[first]) continue;
        const look = `fill:none;${stroke};stroke-width:${width * this.scale};stroke-linecap:round`;
        const style = `${look};opacity:${opacity * (hidden[first] ? 0.3 : 1)}`;
        this.put(!hidden[first], "path", { d: pathOf(seen.slice(first, k + 1)), style });
        first = k;
      }
    }

    item(item) {
      const seen = this.see(item.points);
      const [stroke, fill] = [paintOf("stroke", item.paint), paintOf("fill", item.paint)];
      const end = seen[item.kind === "curve" ? seen.length >> 1 : seen.length - 1];
      const opacity = item.faint ? 0.45 : 1;
      const fade = opacity * (isHidden(end) ? 0.3 : 1);
      if (item.kind === "plane") {
        const style = `${fill};fill-opacity:0.13;${stroke};stroke-opacity:0.5`;
        this.put(seen.reduce((sum, p) => sum + p[2], 0) > 0, "path", { d: pathOf(seen) + "Z", style });
      } else if (item.kind === "point") {
        const inside = item.hollow ? `fill:${PAPER}` : fill;
        const style = `${inside};${stroke};stroke-width:${2 * this.scale};opacity:${fade}`;
        this.put(!isHidden(end), "circle", { cx: RADIUS * end[0], cy: -RADIUS * end[1], r: 5 * this.scale, style });
      } else {
        const share = item.kind === "arrow" ? this.head(seen, `${fill};opacity:${fade}`) : 1;
        const start = item.points[0];
        this.line(item.points.map((p) => p.map((x, i) => start[i] + share * (x - start[i]))), stroke, 2.6, opacity);
      }
      if (item.label) {
        const away = item.kind === "arrow" ? [end[0] - seen[0][0], end[1] - seen[0][1]] : end;
        this.name(item.label, end, item.toward || away, `${fill};opacity:${Math.max(fade, 0.5)}`);
      }
    }

    head(seen, style) {
      const end = seen[seen.length - 1];
      const way = [end[0] - seen[0][0], end[1] - seen[0][1]];
      const length = Math.hypot(...way);
      const size = Math.min(0.075 * this.scale, 0.6 * length);
      if (size < 1e-6) return 1;
      const [ux, uy] = [way[0] / length, way[1] / length];
      const [x, y, wide] = [end[0] - size * ux, end[1] - size * uy, 0.38 * size];
      const corners = [end, [x - wide * uy, y + wide * ux], [x + wide * uy, y - wide * ux]];
      this.put(!isHidden(end), "path", { d: pathOf(corners) + "Z", style });
      return 1 - (0.7 * size) / length;
    }

    name(label, at, away, look) {
      const length = Math.max(Math.hypot(away[0], away[1]), 1e-9);
      const [right, up] = [away[0] / length, away[1] / length];
      const font = 16 * this.scale;
      const x = RADIUS * at[0] + 0.75 * font * right;
      const y = -RADIUS * at[1] - 0.85 * font * up + 0.35 * font;
      const anchor = Math.abs(right) < 0.35 ? "middle" : right > 0 ? "start" : "end";
      const style = `${look};stroke:${PAPER};stroke-width:${0.25 * font}`;
      this.put(2, "text", { x, y, "text-anchor": anchor, "font-size": font, style }, label);
    }
  }

  function turnable(place) {
    const scene = JSON.parse(place.querySelector("script").textContent);
    scene.items.sort((a, b) => (a.kind === "point") - (b.kind === "point")); // dots on top
    const pictures = [...place.querySelectorAll("svg")];
    const ball = pictures[0].querySelectorAll("radialGradient, circle[fill^=url]");
    const svg = document.createElementNS(SVG, "svg");
    const about = { class: "riembn-live", role: "application", tabindex: 0, "aria-label": `${scene.alt} Arrow keys turn it.` };
    for (const [name, value] of Object.entries(about)) svg.setAttribute(name, value);
    let [azimuth, elevation] = scene.view;

    // How far to walk is the reader's choice, where the scene offers it: a dot, and the vector that it carries.
    const slider = document.createElement("input");
    const ORANGE = ["#b85c00", "light-dark(#b85c00, #f0a13a)"];
    const INK = ["#111213", "currentColor"];
    const walked = () => {
      if (!scene.walk || !slider.dataset.moved) return [];
      const k = Number(slider.value);
      const [at, vector] = [scene.walk.points[k], scene.walk.vectors[k]];
      const along = Array.from({ length: 13 }, (_, i) => at.map((x, j) => x + (i / 12) * vector[j]));
      return [
        { kind: "arrow", points: along, label: "", paint: ORANGE, faint: false, toward: null },
        { kind: "point", points: [at], label: "", paint: INK, hollow: false, faint: false, toward: null },
      ];
    };

    const draw = () => {
      const phone = matchMedia("(max-width: 600px)").matches;
      const high = RADIUS * scene.reach;
      const half = RADIUS * (phone ? 1.25 : 1.6);
      svg.setAttribute("viewBox", `${-half} ${-high} ${2 * half} ${2 * high}`);
      svg.style.maxWidth = `${2 * half}px`;
      const drawing = new Drawing([azimuth, elevation], phone ? 1.45 : 1);
      for (const line of graticule) drawing.line(line, "stroke:currentColor", 0.8, 0.17);
      for (const item of [...scene.items, ...walked()]) drawing.item(item);
      const [behind, before, names] = drawing.layers;
      svg.replaceChildren(behind, ...ball, before, names);
    };
    const turn = (right, up) => {
      azimuth -= right;
      elevation = Math.min(89, Math.max(-89, elevation - up));
      draw();
    };

    let last = null;
    svg.addEventListener("pointerdown", (event) => {
      last = event;
      svg.setPointerCapture(event.pointerId);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!last || !event.buttons) return;
      const degrees = 130 / svg.clientWidth;
      turn((event.clientX - last.clientX) * degrees, (last.clientY - event.clientY) * degrees);
      last = event;
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => (last = null));
    svg.addEventListener("keydown", (event) => {
      const way = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] }[event.key];
      if (!way) return;
      event.preventDefault();
      turn(...way);
    });
    svg.addEventListener("dblclick", () => {
      [azimuth, elevation] = scene.view;
      draw();
    });
    matchMedia("(max-width: 600px)").addEventListener("change", draw);

    draw();
    for (const picture of pictures) picture.setAttribute("hidden", "");
    const hint = document.createElement("p");
    hint.textContent = "Drag to turn. Double-click to turn back.";
    place.append(svg, hint);
    if (scene.walk) {
      const label = document.createElement("label");
      const said = document.createElement("output");
      const tell = () => (said.textContent = `${scene.walk.angles[slider.value].toFixed(2)} radians`);
      Object.assign(slider, { type: "range", min: 0, max: scene.walk.points.length - 1, value: 0 });
      slider.addEventListener("input", () => {
        slider.dataset.moved = "yes";
        tell();
        draw();
      });
      tell();
      label.append("Walk ", slider, said);
      place.append(label);
    }
  }

  for (const place of document.querySelectorAll(".riembn-globe")) turnable(place);
});
