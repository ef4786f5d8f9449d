"""Config to objects: the only place that reads a ConfigDict.

A config file sets what its experiment is about; each section's defaults and types are those of the dataclass that
it configures, in the tables below. Overrides from the command line come last. Everything is checked here, before
anything is compiled, and all problems are named at once.
"""

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from score_sde import schema
from score_sde.data import SOURCES, Source
from score_sde.denoiser import Parameterisation
from score_sde.distributed.mesh import MeshSettings, check_batch_size
from score_sde.errors import UserError, closest
from score_sde.evaluation.extractors import EXTRACTORS
from score_sde.evaluation.extractors import Settings as Extractor
from score_sde.evaluation.metrics import Settings as MetricSettings
from score_sde.experiment.base import Experiment
from score_sde.experiment.settings import Compare, Evaluation, Likelihood, Planning, Sampling
from score_sde.experiment.workdir import Workdir
from score_sde.losses import OBJECTIVES, TIMES, WEIGHTINGS, TimeOptions
from score_sde.models import CLASSIFIERS, NETWORKS
from score_sde.rng import SEEDS
from score_sde.samplers import SOLVERS, Sampler
from score_sde.schema import Text
from score_sde.sde import AUGMENTED, PROCESSES, Options, Process
from score_sde.training.classifier import ClassifierTraining
from score_sde.training.loop import Training
from score_sde.training.optimiser import Optimiser
from score_sde.training.profiling import ProfileSettings

# Sections that are one dataclass, and sections whose key chooses a row of a table.
SETTINGS: dict[str, type] = {
    "parameterisation": Parameterisation,
    "optimiser": Optimiser,
    "training": Training,
    "sampling": Sampling,
    "likelihood": Likelihood,
    "evaluation": Evaluation,
    "metrics": MetricSettings,
    "compare": Compare,
    "mesh": MeshSettings,
    "profile": ProfileSettings,
    "plan": Planning,
}

SAME = "training"  # sampling_sde.name for the process that the network was trained with


@dataclasses.dataclass(frozen=True, kw_only=True)
class SameProcess:
    """Sampling with the process of the training."""


class Table(NamedTuple):
    """A kind of which the section's `key` chooses a row.

    options: settings beside those of the row; its `apply` makes the object from the row's. default: the row where the
    section chooses none; "" where it must.
    """

    key: str
    rows: dict[str, Any]
    options: type | None = None
    default: str = ""


TABLES: dict[str, Table] = {
    "data": Table("source", SOURCES),
    "sde": Table("name", {**PROCESSES, **AUGMENTED}, Options),
    "model": Table("name", NETWORKS),
    "objective": Table("name", OBJECTIVES, default="denoising"),
    "weighting": Table("name", WEIGHTINGS, default="sigma2"),
    "times": Table("name", TIMES, TimeOptions, default="uniform"),
    "classifier": Table("name", CLASSIFIERS, ClassifierTraining, default="wide_resnet"),
    "sampling_sde": Table("name", {SAME: SameProcess, **PROCESSES}, Options, default=SAME),
}
NAMED = ("samplers", "extractors")  # sections of sections
SECTIONS = ("seed", *NAMED, *SETTINGS, *TABLES)
PLACED = ("mesh", "data", "model", "sampling_sde")  # sections whose object the experiment has in another form
# What stands beside the samplers in the figures of a metric, and so cannot be the name of one.
RESERVED = ("real", "noise", "title", "better", "metric", "extractor", "against", "n")


def load_config(argument: str) -> dict[str, Any]:
    """The content of the ConfigDict that `FILE` or `FILE:argument` makes. Raises UserError where it makes none."""
    name, _, variant = argument.partition(":")
    path = Path(name)
    if not path.is_file():
        near = difflib.get_close_matches(str(path), [str(file) for file in path.parent.glob("*.py")], n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"--config={argument}: there is no file {path}{hint}")
    spec = importlib.util.spec_from_file_location("score_sde_config", path)
    if spec is None or spec.loader is None:
        raise UserError(f"--config={argument}: {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config(variant) if variant else module.get_config()
        if not isinstance(config, ml_collections.ConfigDict):
            raise UserError(f"--config={argument}: get_config() must return a ConfigDict, not {type(config).__name__}")
        values = config.to_dict()
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise UserError(f"--config={argument}: {type(error).__name__}: {error}") from error
    return values


def options(cls: type, texts: dict[str, str], mode: str) -> Any:
    """A mode's own options from the command line. Raises UserError that names every problem."""
    problems: list[str] = []
    built = schema.build(cls, {key: Text(text) for key, text in texts.items()}, f"--{mode}", problems)
    if problems:
        raise UserError("; ".join(problems))
    return built


def build(
    config: dict[str, Any], overrides: dict[str, str], workdir: Path | None, command: str, *, planned: bool = False
) -> Experiment:
    """The experiment. config: plain data, from `load_config`. overrides: dotted key to text. workdir: None where
    nothing is to be written. planned: for the devices of `plan.topology`, and not for those here.

    Raises UserError that names every problem.
    """
    problems: list[str] = []
    raw = _merged(config, overrides, problems)
    objects: dict[str, Any] = {name: schema.build(cls, raw[name], name, problems) for name, cls in SETTINGS.items()}
    resolved: dict[str, Any] = {"seed": _seed(raw["seed"], problems)}
    for name in TABLES:
        objects[name], resolved[name] = _row(name, raw[name], problems)
    chosen = objects["sampling"].samplers if objects["sampling"] is not None else ()
    samplers, resolved["samplers"] = _samplers(raw["samplers"], chosen, problems)
    to_compare = objects["compare"].samplers if objects["compare"] is not None else ()
    compared, _ = _samplers(raw["samplers"], to_compare, problems)
    looking = objects["evaluation"].extractors if objects["evaluation"] is not None else ()
    extractors, resolved["extractors"] = _extractors(raw["extractors"], looking, objects["data"], problems)
    if problems:
        raise UserError("config: " + "; ".join(dict.fromkeys(problems)))
    for name in SETTINGS:
        resolved[name] = schema.plain(objects[name])
    mesh = objects["mesh"].build(objects["plan"].devices(objects["mesh"].slices) if planned else None)
    for section in ("training",) if planned else ("training", "sampling", "likelihood", "compare"):
        check_batch_size(mesh, objects[section].batch_size, f"{section}.batch_size")
    part = objects["training"].batch_size // objects["training"].accumulate
    check_batch_size(mesh, part, "training.batch_size/training.accumulate")
    sampling_sde = _sampling_sde(objects)
    return Experiment(
        config=resolved,
        command=command,
        home=None if workdir is None else Workdir(workdir),
        seed=resolved["seed"],
        source=objects["data"],
        architecture=objects["model"],
        samplers=samplers,
        compared=compared,
        extractors=extractors,
        without_grid=frozenset(
            name for name in compared if not {"grid", "times"} & raw["samplers"].get(name, {}).keys()
        ),
        **{name: objects[name] for name in (*SETTINGS, *TABLES) if name not in PLACED},
        sampling_sde=sampling_sde,
        mesh=mesh,
    )


def _merged(config: dict[str, Any], overrides: dict[str, str], problems: list[str]) -> dict[str, Any]:
    """The file's sections with the overrides put in. Choosing another row of a table drops the file's settings of
    the row it replaces."""
    merged: dict[str, Any] = {"seed": 0}
    for section in (*SETTINGS, *TABLES, *NAMED):
        value = config.get(section, {})
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            problems.append(f"{section} must be a section of named keys, not {value!r}")
            value = {}
        merged[section] = dict(value)
    for section in NAMED:
        merged[section] = _sections(section, merged[section], problems)
    merged["seed"] = config.get("seed", 0)
    problems += [f"unknown key {key} ({closest(key, SECTIONS)})" for key in config if key not in SECTIONS]
    for section, table in TABLES.items():
        merged[section] = _with_argument(section, merged[section], problems)
        chosen = overrides.get(f"{section}.{table.key}")
        if chosen is not None and _named(table, chosen)[0] != merged[section].get(table.key):
            merged[section] = {}
    for dotted, text in overrides.items():
        first, *rest = dotted.split(".")
        if first == "seed" and not rest:
            merged["seed"] = Text(text)
        elif first in NAMED and len(rest) == 2:
            merged[first].setdefault(rest[0], {})[rest[1]] = Text(text)
        elif first in SECTIONS and first not in ("seed", *NAMED) and len(rest) == 1:
            merged[first][rest[0]] = Text(text)
        else:
            problems.append(f"unknown key {dotted} ({closest(dotted, _known_keys())})")
    for section in TABLES:
        given = [key for key in merged[section] if f"{section}.{key}" in overrides]
        merged[section] = _with_argument(section, merged[section], problems, given)
    return merged


def _named(table: Table, text: Any) -> tuple[Any, str, str]:
    """(row, the setting of it that ARGUMENT names, ARGUMENT) of a text ROW:ARGUMENT; "" where there is none."""
    name, colon, argument = text.partition(":") if isinstance(text, str) else (text, "", "")
    field = getattr(table.rows.get(name), "ARGUMENT", "") if colon else ""
    return (name, field, argument) if field else (text, "", "")


def _with_argument(
    section: str, values: dict[str, Any], problems: list[str], given: Iterable[str] | None = None
) -> dict[str, Any]:
    """The section with what stands after the colon of its row put where it belongs. given: the keys that may not say it
    once more, by default all."""
    table = TABLES[section]
    name, field, argument = _named(table, values.get(table.key))
    if not field:
        return values
    if field in (values if given is None else given):
        problems.append(f"{section}.{table.key}={values[table.key]} and {section}.{field} say the same; leave one")
    return {**values, table.key: name, field: Text(argument)}


def _sections(section: str, values: dict[str, Any], problems: list[str]) -> dict[str, dict[str, Any]]:
    """The sections within a section."""
    wrong = [name for name, value in values.items() if not isinstance(value, dict)]
    problems += [f"{section}.{name} must be a section, not {values[name]!r}" for name in wrong]
    return {name: {} if name in wrong else dict(value) for name, value in values.items()}


def _known_keys() -> list[str]:
    keys = ["seed", "samplers.NAME.solver", *(f"samplers.NAME.{key}" for key in schema.fields_of(Sampler))]
    keys += [f"extractors.{name}.{key}" for name, cls in EXTRACTORS.items() for key in schema.fields_of(cls)]
    keys += [f"{section}.{key}" for section, cls in SETTINGS.items() for key in schema.fields_of(cls)]
    return keys + [f"{section}.{table.key}" for section, table in TABLES.items()]


def _sampling_sde(objects: dict[str, Any]) -> Process:
    chosen = objects["sampling_sde"]
    try:
        return chosen.apply(objects["sde"]) if isinstance(chosen, Options) else chosen
    except UserError as error:
        raise UserError(f"config: sampling_sde: {error}") from error


def _row(section: str, values: dict[str, Any], problems: list[str]) -> tuple[Any, dict[str, Any]]:
    """The object that a section chooses, and its settings as plain data."""
    table = TABLES[section]
    values = dict(values)
    name = values.pop(table.key, table.default or None)
    if not isinstance(name, str) or name not in table.rows:
        near = closest(str(name).partition(":")[0], table.rows)
        problems.append(f"{section}.{table.key}: unknown {name!r} ({near})")
        return None, {}
    classes = [table.rows[name], *([table.options] if table.options else [])]
    known = [table.key, *(field for cls in classes for field in schema.fields_of(cls))]
    unknown = [each for each in values if each not in known]
    problems += [f"unknown key {section}.{each} ({closest(each, known)})" for each in unknown]
    parts: list[Any] = []
    for cls in classes:
        own = {each: values[each] for each in values if each in schema.fields_of(cls)}
        parts.append(schema.build(cls, own, section, problems))
    if unknown or any(part is None for part in parts):
        return None, {}
    plain = {table.key: name} | {key: value for part in parts for key, value in schema.plain(part).items()}
    row, *options = parts
    if isinstance(row, SameProcess):
        return options[0], plain  # applied to the training's process, once that is known
    try:
        return (options[0].apply(row) if options else row), plain
    except UserError as error:
        problems.append(f"{section}: {error}")
        return None, {}


def _seed(value: Any, problems: list[str]) -> int:
    try:
        seed = schema.convert(value, int)
    except UserError as error:
        problems.append(f"seed: {error}")
        return 0
    if seed not in SEEDS:
        problems.append(f"seed must lie in [0, 2**32), not {seed}")
    return seed


def _samplers(
    sections: dict[str, dict[str, Any]], chosen: tuple[str, ...], problems: list[str]
) -> tuple[dict[str, Sampler], dict[str, Any]]:
    """The samplers to run, by name, and their settings as plain data.

    A name without a section of its own, or without `solver`, is a solver's.
    """
    samplers: dict[str, Sampler] = {}
    resolved: dict[str, Any] = {}
    for name in dict.fromkeys((*chosen, *sections)):
        if not name.isidentifier():
            problems.append(f"samplers: {name!r} is no name; use letters, digits and _ (it becomes a file's name)")
            continue
        if name in RESERVED:
            problems.append(f"samplers: {name!r} is what something else is called in the report; use another name")
            continue
        values = dict(sections.get(name, {}))
        solver_name = str(values.pop("solver", name))
        if solver_name not in SOLVERS:
            known = closest(solver_name, SOLVERS.keys() | sections.keys() - {name})
            problems.append(
                f"unknown sampler {name!r} ({known})"
                if solver_name == name
                else f"samplers.{name}.solver: unknown {solver_name!r} ({known})"
            )
            continue
        sampler, settings = _sampler(solver_name, values, f"samplers.{name}", problems)
        if sampler is not None and name in chosen:
            samplers[name] = sampler
            resolved[name] = {"solver": solver_name, **settings}
    return samplers, resolved


def _extractors(
    sections: dict[str, dict[str, Any]], chosen: tuple[str, ...], data: Source | None, problems: list[str]
) -> tuple[dict[str, Extractor], dict[str, Any]]:
    """The extractors to use, by name, and their settings as plain data; those set up beside them are only checked."""
    built: dict[str, Extractor] = {}
    resolved: dict[str, Any] = {}
    for name in dict.fromkeys((*chosen, *sections)):
        if name not in EXTRACTORS:
            problems.append(f"extractors: unknown {name!r} ({closest(name, EXTRACTORS)})")
            continue
        row, given = EXTRACTORS[name], sections.get(name, {})
        if row.LEARNS_FROM is not None and isinstance(data, row.LEARNS_FROM):
            given = {key: getattr(data, key) for key in schema.fields_of(row) if hasattr(data, key)} | given
        settings = schema.build(row, given, f"extractors.{name}", problems)
        if settings is not None and name in chosen:
            built[name], resolved[name] = settings, schema.plain(settings)
    return built, resolved


def _sampler(
    solver_name: str, values: dict[str, Any], where: str, problems: list[str]
) -> tuple[Sampler | None, dict[str, Any]]:
    own, common = schema.fields_of(SOLVERS[solver_name]), schema.fields_of(Sampler)
    known = (*own, *common, "solver")
    unknown = [key for key in values if key not in known]
    problems += [f"unknown key {where}.{key} ({closest(key, known)})" for key in unknown]
    options = {key: value for key, value in values.items() if key in own}
    solver = schema.build(SOLVERS[solver_name], options, where, problems)
    rest = schema.read(Sampler, {key: value for key, value in values.items() if key in common}, where, problems)
    if solver is None or unknown:
        return None, {}
    try:
        sampler = Sampler(solver=solver, **rest)
    except UserError as error:
        problems.append(f"{where}: {error}")
        return None, {}
    return sampler, {**schema.plain(solver), **schema.plain(sampler)}
