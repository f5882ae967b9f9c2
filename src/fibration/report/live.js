"use strict";
// Asks the server that sent this page every few seconds whether anything changed, and then takes over what did. The
// place that is scrolled to, zoomed plots, sorted and filtered tables and opened lists stay as they are.
// It stands before the other scripts of the page, the last of which fills plots and tables and is run again.
(() => {
  const PAUSE = 3000;
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const banner = () => document.getElementById("live");

  // What the page's script listens to at the window it would listen to once more each time: the old ears are closed.
  // Plotly's own, which it has for each plot, stay.
  let ears = new AbortController();
  for (const kind of [window, MediaQueryList.prototype]) {
    const listen = kind.addEventListener;
    kind.addEventListener = function (name, heard, options) {
      if (all(".plot").some((plot) => plot._responsiveChartHandler === heard)) return listen.call(this, name, heard, options);
      const given = typeof options === "object" && options !== null ? options : { capture: Boolean(options) };
      return listen.call(this, name, heard, { signal: ears.signal, ...given });
    };
  }

  // With the same `uirevision` as before a plot that is drawn again keeps its zoom and what its legend hides.
  const keepZoom = (root) => {
    for (const data of all(".plot ~ script[type='application/json']", root)) {
      const figure = JSON.parse(data.textContent);
      figure.layout.uirevision = "live";
      data.textContent = JSON.stringify(figure);
    }
  };
  document.addEventListener("DOMContentLoaded", () => { next = setTimeout(look, PAUSE); });
  keepZoom(document);

  const titled = (one) => one.closest("figure, section")?.querySelector("h2")?.textContent ?? "";
  const called = (one) => `${one.tagName} ${titled(one)} ${one.getAttribute("aria-label") ?? one.textContent}`;
  const heads = (table) => all("thead th", table);

  // Each gives a function that brings back, on the new page, what a reader did to the old one.
  const keepers = [
    () => {
      const open = new Set(all("details[open] > summary").map(called));
      const shut = new Set(all("details:not([open]) > summary").map(called));
      return () => all("details > summary").forEach((one) => {
        if (open.has(called(one))) one.parentElement.open = true;
        else if (shut.has(called(one))) one.parentElement.open = false;
      });
    },
    () => {
      const sorted = new Map(all("table").map((one) => [
        titled(one),
        heads(one).map((head) => head.getAttribute("aria-sort")),
      ]));
      return () => all("table").forEach((one) => {
        (sorted.get(titled(one)) ?? []).forEach((order, column) => {
          const button = order && heads(one)[column]?.querySelector("button");
          if (!button) return;
          button.click();
          if (order === "descending") button.click();
        });
      });
    },
    () => {
      const words = new Map(all("main input").map((one) => [called(one), one.value]));
      return () => all("main input").forEach((one) => {
        if (!words.get(called(one))) return;
        one.value = words.get(called(one));
        one.dispatchEvent(new Event("input"));
      });
    },
    () => {
      const places = new Map(all(".wide, #live ul").map((one, i) => [`${i} ${titled(one)}`, [one.scrollLeft, one.scrollTop]]));
      const [x, y] = [scrollX, scrollY];
      return () => {
        all(".wide, #live ul").forEach((one, i) => {
          [one.scrollLeft, one.scrollTop] = places.get(`${i} ${titled(one)}`) ?? [0, 0];
        });
        scrollTo({ left: x, top: y, behavior: "instant" });
      };
    },
    () => {
      const active = document.activeElement;
      const name = active && active !== document.body ? called(active) : null;
      const [from, to] = [active?.selectionStart, active?.selectionEnd];
      return () => {
        const again = name && all("a, button, input, summary, pre, [tabindex]").find((one) => called(one) === name);
        if (!again) return;
        again.focus({ preventScroll: true });
        if (from !== undefined && from !== null) again.setSelectionRange?.(from, to);
      };
    },
  ];

  const take = (text) => {
    const fresh = new DOMParser().parseFromString(text, "text/html");
    const [main, top] = [fresh.querySelector("main"), fresh.getElementById("live")];
    if (main.querySelector(".plot") && !window.Plotly) return location.reload();
    keepZoom(fresh);
    const restore = keepers.map((keeper) => keeper());
    ears.abort();
    ears = new AbortController();
    for (const place of all(".plot", main)) {
      const old = document.getElementById(place.id);
      if (old && titled(old) === titled(place)) place.replaceWith(old);
    }
    for (const gone of all("main .plot")) Plotly.purge(gone);
    banner().replaceWith(top);
    document.querySelector("main").replaceWith(main);
    const [old, script] = [all("body > script").at(-1), document.createElement("script")];
    script.textContent = old.textContent;
    old.replaceWith(script);
    restore.forEach((one) => one());
  };

  const ask = async () => {
    const reply = await fetch(banner().dataset.status, { cache: "no-store" });
    if (reply.status === 403) return "The server refuses: open the address that it printed when it was started.";
    if (reply.status === 404) return "The store no longer holds this.";
    if (!reply.ok) return "The store cannot be read at the moment.";
    const said = await reply.json();
    if (said.state !== banner().dataset.state) {
      const part = await fetch(location.pathname + "?part=main", { cache: "no-store" });
      if (part.ok) take(await part.text());
    }
    document.getElementById("live-time").textContent = new Date().toLocaleTimeString();
    return said.text;
  };

  let next = 0;
  let busy = false;
  const look = async () => {
    clearTimeout(next);
    const begin = performance.now();
    if (!document.hidden && !busy) {
      busy = true;
      let text = "The server does not answer. This is what it said last.";
      try {
        text = await ask();
      } catch (error) {
        if (!(error instanceof TypeError)) console.error(error);  // fetch fails with a TypeError
      }
      busy = false;
      const told = document.getElementById("live-told");
      if (told.textContent !== text) told.textContent = text;  // what does not change is not read aloud
    }
    next = setTimeout(look, Math.max(PAUSE, 5 * (performance.now() - begin)));
  };
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
})();
