// Traffic over time: what is kept of it, and how it is drawn. One sample a second, both directions.
"use strict";

const SAMPLES = 60;
const PLOT_HEIGHT = 24;
const SVG = "http://www.w3.org/2000/svg";

// Rates of the last minute, made of counters that only rise.
class Traffic {
  constructor() {
    this.ins = new Array(SAMPLES).fill(0);
    this.outs = new Array(SAMPLES).fill(0);
    this.before = null; // counters and time of the sample before
  }

  // `counters`: bytes in and out so far; `now`: in milliseconds.
  sample(bytesIn, bytesOut, now) {
    const before = this.before;
    const seconds = before ? Math.max((now - before.now) / 1000, 0.001) : 1;
    // A supervisor that was restarted counts from 0 again.
    const rate = (is, was) => (before && is >= was ? (is - was) / seconds : 0);
    this.push(rate(bytesIn, before?.bytesIn), rate(bytesOut, before?.bytesOut));
    this.before = { bytesIn, bytesOut, now };
  }

  push(rateIn, rateOut) {
    this.ins.push(rateIn);
    this.outs.push(rateOut);
    this.ins.shift();
    this.outs.shift();
  }

  get rateIn() { return this.ins.at(-1); }
  get rateOut() { return this.outs.at(-1); }
  get peak() { return Math.max(...this.ins, ...this.outs); }
}

// An area for what comes out of containers, a line for what goes in.
class Plot {
  constructor(svg) {
    this.svg = svg;
    this.flat = false;
    svg.setAttribute("viewBox", `0 0 ${SAMPLES - 1} ${PLOT_HEIGHT}`);
    [this.area, this.line] = ["out", "in"].map((name) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("class", name);
      svg.append(path);
      return path;
    });
  }

  draw(traffic) {
    const peak = traffic.peak;
    if (!peak) {
      if (this.flat) return;
      this.flat = true;
      this.area.setAttribute("d", "");
      this.line.setAttribute("d", "");
      this.svg.setAttribute("aria-label", "No traffic in the last minute");
      return;
    }
    this.flat = false;
    // Little traffic stays little to look at.
    const top = Math.max(peak, 1000);
    const y = (rate) => (PLOT_HEIGHT - 1 - (rate / top) * (PLOT_HEIGHT - 3)).toFixed(1);
    const points = (rates) => rates.map((rate, x) => `${x} ${y(rate)}`).join("L");
    this.area.setAttribute("d", `M0 ${PLOT_HEIGHT}L${points(traffic.outs)}L${SAMPLES - 1} ${PLOT_HEIGHT}Z`);
    this.line.setAttribute("d", `M${points(traffic.ins)}`);
    this.svg.setAttribute("aria-label", `Traffic of the last minute, at most ${size(peak)} a second`);
  }
}

function size(count) {
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (count < 999.5) return `${count < 9.95 && unit !== "B" ? count.toFixed(1) : Math.round(count)} ${unit}`;
    count /= 1000;
  }
  return `${Math.round(count)} TB`;
}
