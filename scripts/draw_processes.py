"""Draws log_snr(t) of every process, by its defaults: docs/images/processes_log_snr.png. Run from the project's root.

Processes whose lines cannot be told apart share one. Those that end at T ≤ 1 are drawn on the whole of the time axis,
and again with its ends stretched, where most of log_snr is; the others (EDM) on a logarithmic one.
"""

import sys
from pathlib import Path

import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parent.parent))
from score_sde.sde import PROCESSES, SDE

PATH = Path("docs/images/processes_log_snr.png")
HIGHEST, LOWEST = 16, -16
SAME = 0.25  # of log_snr, less than a line's width


def shared_lines(processes: dict[str, SDE], t: np.ndarray) -> dict[str, np.ndarray]:
    """Names to log_snr at t (NaN outside of the process), of processes that agree wherever both exist together."""
    lines: dict[str, np.ndarray] = {}
    for name, sde in processes.items():
        inside = (t >= np.float32(sde.t_min)) & (t <= np.float32(sde.T))
        values = np.where(inside, sde.log_snr(jnp.asarray(np.where(inside, t, sde.T))), np.nan)
        same = [names for names, line in lines.items() if np.nanmax(np.abs(line - values)) < SAME]
        if same:
            lines[f"{same[0]}, {name}"] = lines.pop(same[0])
        else:
            lines[name] = values
    return lines


def main() -> None:
    processes = {name: cls() for name, cls in PROCESSES.items()}
    unit = {name: sde for name, sde in processes.items() if sde.T <= 1}
    rest = {name: sde for name, sde in processes.items() if sde.T > 1}
    ends = np.geomspace(1e-5, 0.5, 400)
    t = np.unique(np.concatenate([[0.0], ends, 1 - ends, [1.0]]).astype(np.float32))
    panels = [(unit, t, "linear", "t"), (unit, t[(t > 0) & (t < 1)], "logit", "t, its ends stretched")]
    if rest:
        start, end = min(sde.t_min for sde in rest.values()), max(sde.T for sde in rest.values())
        panels.append((rest, np.geomspace(start, end, 400).astype(np.float32), "log", "t, logarithmic"))
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(12, 5.4),
        sharey=True,
        width_ratios=[3, 3, 1.3][: len(panels)],
        layout="constrained",
    )
    colours, styles = plt.get_cmap("tab10").colors, ["-", "--", (0, (1, 1))]
    looks: dict[str, int] = {}
    for ax, (group, times, scale, label) in zip(axes, panels, strict=True):
        for names, line in shared_lines(group, times).items():
            number = looks.setdefault(names, len(looks))
            ax.plot(times, line, color=colours[number % 10], linestyle=styles[number % 3], linewidth=2, label=names)
        ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
        ax.set(xscale=scale, ylim=(LOWEST, HIGHEST), xlabel=label)
        ax.grid(color="0.93")
        ax.minorticks_off()
        if scale != "logit":
            ax.legend(fontsize=10, loc="lower left", framealpha=0.95)
    ticks = {1e-5: "10⁻⁵", 1e-4: "10⁻⁴", 1e-3: "0.001", 0.01: "0.01", 0.1: "0.1", 0.5: "½", 0.9: "0.9", 0.99: "0.99"}
    axes[1].set_xticks([*ticks, 0.999], [*ticks.values(), "0.999"])
    axes[1].set_xlim(1e-5, 1 - 4e-4)
    axes[0].set_ylabel(r"$\log(\alpha_t^2/\sigma_t^2)$")
    PATH.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PATH, dpi=110)


if __name__ == "__main__":
    main()
