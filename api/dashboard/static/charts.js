// Charts of a job's numbers by step. Plotly is loaded when there is something to draw.

import { number } from "./format.js";

const MAX_POINTS = 4000;
const AXIS = { gridcolor: "#e3eaed", linecolor: "#b7c5cb", zeroline: false, automargin: true };
const LAYOUT = {
  font: { family: "system-ui, sans-serif", size: 13, color: "#33474f" },
  margin: { l: 52, r: 16, t: 8, b: 40 },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  hovermode: "x unified",
  legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
};
const CONFIG = { displayModeBar: false, responsive: true };

/** Points of one number by step. When a later attempt goes back to an earlier step, its points replace the old ones. */
export class Series {
  steps = [];
  values = [];
  _stride = 1;
  _skipped = 0;

  add(step, value) {
    while (this.steps.length && this.steps.at(-1) >= step) {
      this.steps.pop();
      this.values.pop();
    }
    this._skipped += 1;
    if (this._skipped < this._stride) return;
    this._skipped = 0;
    this.steps.push(step);
    this.values.push(value);
    if (this.steps.length > MAX_POINTS) this._thin();
  }

  /** Every second point goes, also of those that are still to come. */
  _thin() {
    this.steps = this.steps.filter((_, index) => index % 2 === 0);
    this.values = this.values.filter((_, index) => index % 2 === 0);
    this._stride *= 2;
  }
}

export class JobCharts {
  constructor(plotlyUrl) {
    this._url = plotlyUrl;
    this._series = { loss: new Series(), eval_loss: new Series(), learning_rate: new Series(), tokens_per_second: new Series() };
  }

  add(metrics) {
    for (const { step, values } of metrics) {
      for (const [name, series] of Object.entries(this._series)) {
        if (values[name] !== undefined && values[name] !== null) series.add(step, values[name]);
      }
    }
  }

  async draw() {
    const Plotly = await loadPlotly(this._url);
    const { loss, eval_loss: evalLoss, learning_rate: rate, tokens_per_second: speed } = this._series;
    for (const id of ["loss-chart", "speed-chart", "speed-title"]) document.getElementById(id).hidden = false;
    document.getElementById("chart-note").hidden = true;
    const losses = [
      buildTrace("loss", loss, { color: "#0b6570", width: 2 }),
      { ...buildTrace("eval loss", evalLoss, { color: "#b4540a", width: 2, dash: "dot" }), mode: "lines+markers" },
    ];
    await Plotly.react("loss-chart", losses, buildLayout({ yaxis: { ...AXIS, title: title("loss") } }), CONFIG);
    document.getElementById("loss-chart").ariaLabel = `Loss by step${describe(loss)}`;
    const speeds = [
      buildTrace("learning rate", rate, { color: "#0b6570", width: 1.5 }),
      { ...buildTrace("tokens/s", speed, { color: "#6b4fa0", width: 1.5 }), yaxis: "y2" },
    ];
    const axes = {
      yaxis: { ...AXIS, title: title("learning rate"), exponentformat: "power", rangemode: "tozero" },
      yaxis2: { ...AXIS, title: title("tokens/s"), tickmode: "auto", nticks: 4, overlaying: "y", side: "right", showgrid: false, rangemode: "tozero" },
    };
    await Plotly.react("speed-chart", speeds, buildLayout(axes), CONFIG);
  }
}

function buildTrace(name, { steps, values }, line) {
  return { type: "scatter", mode: steps.length > 1 ? "lines" : "lines+markers", name, x: [...steps], y: [...values], line };
}

function buildLayout(axes) {
  return { ...LAYOUT, xaxis: { ...AXIS, title: title("step") }, ...axes };
}

function describe({ steps, values }) {
  return steps.length ? `: ${steps.length} points, the last is ${number(values.at(-1))} at step ${steps.at(-1)}` : "";
}

function title(text) {
  return { text, font: { size: 12 } };
}

let plotly = null;

function loadPlotly(url) {
  plotly ??= new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = url;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => {
      plotly = null;
      reject(new Error("the chart library did not load"));
    };
    document.head.append(script);
  });
  return plotly;
}
