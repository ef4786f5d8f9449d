"""README, CONTRIBUTING and docs/: their links lead somewhere, their commands are understood, their tables are whole."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from score_sde import build
from score_sde.command_line import parse
from score_sde.evaluation.metrics import METRICS
from score_sde.experiment import ALONE, MODES
from score_sde.models import CLASSIFIERS, NETWORKS
from tests import program
from tests.sources import write

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    path.name: path.read_text(encoding="utf-8") for path in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
}
NOT_THERE = ("FILE[:ARGUMENT]", "my_config.py")  # what a user puts in their place


def headings(text):
    """The anchors that GitHub gives them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    folder = ROOT if (ROOT / name).exists() else ROOT / "docs"
    prose = re.sub(r"```.*?```|`[^`]*`", "", DOCUMENTS[name], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = folder / file if file else folder / name
        assert target.exists(), link
        assert not anchor or anchor in headings(target.read_text(encoding="utf-8")), link


COMMANDS = [
    line.strip()
    for text in DOCUMENTS.values()
    for line in text.replace("\\\n", " ").splitlines()
    if re.match(r"\s*python main\.py .*--config=", line) and not any(name in line for name in NOT_THERE)
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, tmp_path, monkeypatch):
    """Mode, config, keys and values; nothing is run."""
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command, comments=True)[2:]
    flags, overrides, own = parse(arguments, None, MODES, ALONE)
    options = MODES[flags.mode].options
    if options is not None:
        build.options(options, own, flags.mode)
    config, _, argument = flags.config.partition(":")
    if argument.endswith(".json"):  # of the user's own
        assert Path(config).is_file()
        return
    if flags.mode == "plan":  # for devices that are not here, and with a compiler that need not be
        overrides = {key: value for key, value in overrides.items() if not key.startswith("mesh.")}
    experiment = build.build(build.load_config(flags.config), overrides, tmp_path, command)
    assert experiment.network.shape == experiment.sde.state_shape(experiment.source.shape)  # which it refuses otherwise


def test_own_data_in_five_lines(tmp_path, monkeypatch):
    """All that is checked before anything is computed, in a workdir that both commands share."""
    section = DOCUMENTS["data.md"].partition("## Own data in five lines\n")[2].partition("```\n\n")[0]
    commands = re.findall(r"^python main\.py (.*)$", section.replace("\\\n", " "), re.MULTILINE)
    assert len(commands) == 2
    for n in range(200):
        write(tmp_path / "my_images" / ("cats", "dogs")[n % 2], {f"{n}.png": np.full((20, 30, 3), n, np.uint8)})
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for mode in ("all", "sample"):
        reached = MODES[mode]._replace(run=lambda *_: None, needs_checkpoint=lambda _: False)
        monkeypatch.setitem(MODES, mode, reached)
    for command in commands:
        assert program.main(shlex.split(command)) == 0


def rows(header):
    """The names in the first column of the table of docs/models.md that begins with `header`."""
    _, _, after = DOCUMENTS["models.md"].partition(f"| `{header}` |")
    lines = after.partition("\n\n")[0].splitlines()[2:]
    return [line.split("|")[1].strip(" `") for line in lines]


@pytest.mark.parametrize(("header", "table"), [("model.name", NETWORKS), ("classifier.name", CLASSIFIERS)])
def test_every_network_is_in_the_document(header, table):
    names = rows(header)
    assert len(names) == len(set(names))
    assert set(names) == set(table)


def test_the_networks_files_are_there():
    for name in re.findall(r"`(\w+\.py)`", "".join(DOCUMENTS["models.md"].partition("## Published sizes")[:1])):
        assert (ROOT / "score_sde" / "models" / name).is_file(), name


def test_every_metric_is_in_the_document():
    for table in DOCUMENTS["evaluation.md"].partition("## Metrics\n")[2].split("| metric ")[:3]:
        names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
        assert sorted(names) == sorted(METRICS)
