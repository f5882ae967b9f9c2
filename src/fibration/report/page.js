"use strict";
(() => {
  const dark = matchMedia("(prefers-color-scheme: dark)");

  // Plots

  const clone = (value) => JSON.parse(JSON.stringify(value));

  // Names beside curves are darker than their curves: on a dark page, lighter.
  const lighter = (colour) => {
    const parts = /^#(..)(..)(..)$/.exec(colour);
    if (!parts) return colour;
    return "#" + parts.slice(1).map((part) => {
      const channel = Math.min(255, parseInt(part, 16) / 0.65);
      return Math.round(channel + 0.45 * (255 - channel)).toString(16).padStart(2, "0");
    }).join("");
  };

  // Curves on a dark page: the palette's darkest colours, brighter.
  const BRIGHT = { "#0072b2": "#4ba3e3", "#009e73": "#2bc496", "#d55e00": "#f08040" };
  const brighter = (parts) => {
    for (const part of parts) {
      for (const pen of [part.line, part.marker]) if (pen && BRIGHT[pen.color]) pen.color = BRIGHT[pen.color];
    }
    return parts;
  };

  // Small multiples: as many columns as fit beside one another with their names.
  const columnsOf = (figure, width) => {
    const widest = Math.max(140, ...figure.layout.annotations.map((note) => 6.4 * note.text.length + 12));
    return Math.max(1, Math.min(figure.panels, Math.floor((width - 60) / widest), 6));
  };
  const legendLines = (figure, width) => {
    const names = figure.data.filter((trace) => trace.showlegend).map((trace) => trace.name.length);
    const each = 52 + 7 * Math.max(0, ...names);
    return Math.ceil(names.length / Math.max(1, Math.floor((width - 80) / each)));
  };
  const arrange = (figure, layout, width) => {
    const panels = figure.panels;
    const columns = columnsOf(figure, width);
    const rows = Math.ceil(panels / columns);
    const [each, above, below, top] = [panels > 1 ? 150 : 270, 44, 56 + 20 * legendLines(figure, width), 52];
    const inner = rows * each + (rows - 1) * above;
    layout.height = inner + top + below;
    Object.assign(layout.margin, { t: top, b: below });
    const gap = 0.03;
    const wide = (1 - gap * (columns - 1)) / columns;
    for (let k = 0; k < panels; k++) {
      const [row, column] = [Math.floor(k / columns), k % columns];
      const [x, y] = ["xaxis", "yaxis"].map((name) => layout[name + (k ? k + 1 : "")]);
      const high = 1 - row * (each + above) / inner;
      x.domain = [column * (wide + gap), Math.min(1, column * (wide + gap) + wide)];
      y.domain = [Math.max(0, high - each / inner), high];
      x.showticklabels = k + columns >= panels;
      y.showticklabels = column === 0;
      if (!x.showticklabels) x.title = { text: "" };
      if (column) y.title = { text: "" };
    }
    return layout;
  };

  const themed = (figure, asDark, width) => {
    const layout = clone(figure.layout);
    if (figure.panels) arrange(figure, layout, width);
    if (!asDark) return layout;
    const [ink, grid] = ["#e6e6e3", "#34383c"];
    Object.assign(layout, { paper_bgcolor: "#1c1f22", plot_bgcolor: "#1c1f22", font: { ...layout.font, color: ink } });
    brighter(layout.shapes || []);
    layout.modebar = { bgcolor: "rgba(0,0,0,0)", color: "#9a9a9a", activecolor: ink };
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) Object.assign(layout[name], { linecolor: ink, tickcolor: ink, gridcolor: grid });
    }
    for (const note of layout.annotations || []) {
      if (note.font && note.font.color) note.font.color = note.font.color === "#222222" ? ink : lighter(note.font.color);
    }
    return layout;
  };

  const drawn = [];
  const draw = (one, asDark) => {
    const width = one.place.clientWidth;
    const layout = themed(one.figure, asDark, width);
    if (one.figure.panels) one.place.style.height = layout.height + "px";
    one.width = width;
    const data = clone(one.figure.data);
    Plotly.react(one.place, asDark ? brighter(data) : data, layout, one.figure.config);
  };
  const redraw = (asDark) => drawn.forEach((one) => draw(one, asDark));

  const download = (one, format) => {
    // On paper the page is light, whatever the screen.
    const layout = themed(one.figure, false, one.place.clientWidth);
    const size = { width: one.place.clientWidth, height: layout.height || one.place.clientHeight };
    const title = { text: one.figure.title, x: 0, xref: "paper", font: { size: 15 } };
    const margin = { ...layout.margin, t: layout.margin.t + 30 };
    const image = { data: clone(one.figure.data), layout: { ...layout, ...size, title, margin }, config: one.figure.config };
    Plotly.downloadImage(image, { format, filename: one.figure.config.toImageButtonOptions.filename, scale: 2, ...size });
  };

  for (const place of document.querySelectorAll(".plot")) {
    const one = { place, figure: JSON.parse(document.getElementById(place.id + "-data").textContent) };
    drawn.push(one);
    draw(one, dark.matches);
    const links = place.parentElement.querySelector(".downloads");
    if (links.querySelector("a")) continue;
    for (const format of ["png", "svg"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "Download " + format.toUpperCase();
      button.setAttribute("aria-label", button.textContent + ": " + one.figure.heading);
      button.addEventListener("click", () => download(one, format));
      links.append(button);
    }
  }
  dark.addEventListener("change", () => redraw(dark.matches));
  addEventListener("beforeprint", () => { if (dark.matches) redraw(false); });
  addEventListener("afterprint", () => { if (dark.matches) redraw(true); });
  addEventListener("resize", () => {
    for (const one of drawn) {
      if (one.figure.panels && one.width !== one.place.clientWidth) draw(one, dark.matches);
    }
  });

  // Tables

  const HIGH = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const NUMBER = /^([-+]?)((?:\d[\d,]*)?\.?\d+(?:e[-+]?\d+)?)(?: × 10(⁻?[⁰¹²³⁴⁵⁶⁷⁸⁹]+))?(?: (?:%|s|→.*))?$/;
  const MISSING = new Set(["", "–", "not a number"]);
  const collator = new Intl.Collator(undefined, { numeric: true });

  // A number as pages write it: 46,800 or −2.6 × 10⁻⁵ or 12 % or ∞; NaN for anything else.
  const numeric = (text) => {
    text = text.replace(/−/g, "-").replace(/\u00a0/g, " ");
    if (text === "∞" || text === "-∞") return text === "∞" ? Infinity : -Infinity;
    const found = NUMBER.exec(text);
    if (!found) return NaN;
    const power = found[3] ? Number([...found[3]].map((c) => (c === "⁻" ? "-" : HIGH.indexOf(c))).join("")) : 0;
    return Number(found[1] + found[2].replace(/,/g, "") + (power ? "e" + power : ""));
  };

  const compare = (a, b) => {
    if (typeof a === "number" && typeof b === "number") return a < b ? -1 : a > b ? 1 : 0;
    return collator.compare(String(a), String(b));
  };

  const keys = (rows, column) => {
    const texts = rows.map((row) => row.cells[column].textContent.trim());
    const numbers = texts.map(numeric);
    const allNumbers = texts.every((text, i) => MISSING.has(text) || !Number.isNaN(numbers[i]));
    return texts.map((text, i) => (MISSING.has(text) ? null : allNumbers ? numbers[i] : text));
  };

  const sortable = (table, rows) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        const values = keys(rows, column);
        const order = rows.map((_, i) => i).sort((i, j) => {
          // What is missing comes last, either way; ties stay in the order of the page.
          if (values[i] === null || values[j] === null) return (values[i] === null) - (values[j] === null) || i - j;
          return (down ? -1 : 1) * compare(values[i], values[j]) || i - j;
        });
        table.tBodies[0].append(...order.map((i) => rows[i]));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
      });
    });
  };

  const filterable = (table, rows, title) => {
    const tools = document.createElement("div");
    const label = document.createElement("label");
    const box = document.createElement("input");
    const count = document.createElement("output");
    tools.className = "tools";
    Object.assign(box, { type: "search", autocomplete: "off", spellcheck: false });
    box.setAttribute("aria-label", "Filter the rows of: " + title);
    label.append("Filter ", box);
    tools.append(label, count);
    const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent).join(" ").toLowerCase());
    const show = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        shown += !row.hidden;
      });
      count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} rows`;
    };
    for (const heard of ["input", "change"]) box.addEventListener(heard, show);
    show();
    table.closest(".wide").before(tools);
  };

  for (const table of document.querySelectorAll("table.columns")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 2) continue;
    sortable(table, rows);
    if (rows.length > 5) filterable(table, rows, table.closest("section").querySelector("h2").textContent);
  }

  // A link to what is folded opens it.
  for (const link of document.querySelectorAll('main a[href^="#"]')) {
    link.addEventListener("click", () => {
      const folded = document.getElementById(link.hash.slice(1))?.closest("details");
      if (folded) folded.open = true;
    });
  }
})();
