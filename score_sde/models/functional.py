"""The one place where an nnx module is split and merged: networks leave `models` as pure functions."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol, cast

import jax
from flax import nnx
from jaxtyping import Array, Float

from score_sde.errors import UserError
from score_sde.models.initializers import Drawn, Draws
from score_sde.typing import Condition, Data, Params, PerSample, WithVariance


class Builder(Protocol):
    """A frozen dataclass of settings that builds an nnx module."""

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises UserError where the module cannot take samples of `shape`."""

    def build(self, shape: tuple[int, ...], rngs: nnx.Rngs) -> Any:
        """The module for samples of `shape`."""


class Labelled(Builder, Protocol):
    """What a row of `models.CLASSIFIERS` is. Its module is called as `module(x, noise_condition, *, train, rng)`."""

    @property
    def classes(self) -> int:
        """How many labels the network takes, 0 where it takes none, or tells apart."""
        ...


class Settings(Labelled, Protocol):
    """What a row of `models.NETWORKS` is.

    Its module is called as `module(x, noise_condition, condition, *, train, rng)`.
    """

    @property
    def augment_features(self) -> int:
        """Numbers that it is told of how a sample was augmented; 0 for none."""
        ...

    @property
    def learns_log_variance(self) -> bool:
        """Whether its module has a `log_variance(noise_condition)`."""
        ...

    @property
    def learns_step_variance(self) -> bool:
        """Whether its module returns the variances of reverse steps beside its prediction, `WithVariance`."""
        ...

    @property
    def projects(self) -> bool:
        """Whether `project` moves the parameters."""
        ...

    def project(self, params: Params) -> Params:
        """See `Network.project`."""
        ...

    def check_condition(self, condition: Condition, shape: tuple[int, ...]) -> None:
        """Raises UserError where the network cannot take the condition beside x of `shape`."""


def new_params(settings: Builder, shape: tuple[int, ...], key: jax.Array) -> Params:
    """The parameters of a newly built module: a nested dict of float32 arrays. Traceable."""
    draws = Draws()
    nnx.eval_shape(lambda: _module(settings, shape, draws))
    return nnx.to_pure_dict(nnx.state(_module(settings, shape, draws.drawn(key)), nnx.Param))


def _module(settings: Builder, shape: tuple[int, ...], draws: Draws | Drawn) -> Any:
    return settings.build(shape, cast(nnx.Rngs, draws))  # all that layers ask of one is `params()`


def with_params(settings: Builder, shape: tuple[int, ...], params: Params) -> Any:
    """The module with `params` in it; its own initial values are never computed."""
    abstract = nnx.eval_shape(lambda: _module(settings, shape, Draws()))
    definition, state = nnx.split(abstract)
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(definition, state)


Path = tuple[str | int, ...]  # in the nested dict of the parameters


class Parameter(NamedTuple):
    """What is known of a parameter without its value. axes: its logical axes, see `layers`; one name for each."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    trainable: bool


def parameters_of(settings: Builder, shape: tuple[int, ...]) -> dict[Path, Parameter]:
    """Every parameter by its path, computing nothing."""
    abstract = nnx.eval_shape(lambda: _module(settings, shape, Draws()))
    flat = nnx.to_flat_state(nnx.state(abstract, nnx.Param))
    of = lambda variable: Parameter(tuple(variable.shape), variable.axes, variable.trainable)
    return {_path(keys): of(variable) for keys, variable in flat}


def _path(keys: Iterable[Any]) -> Path:
    return tuple(key if isinstance(key, int) else str(key) for key in keys)


@dataclasses.dataclass(frozen=True)
class Functional:
    """A network as pure functions of its parameters, a nested dict of float32 arrays. Subclasses add `apply`."""

    settings: Any
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not all(side >= 1 for side in self.shape):
            raise UserError(f"samples must be at least 1 long on every axis, not of shape {self.shape}")
        self.settings.check_shape(self.shape)

    def init(self, key: jax.Array) -> Params:
        """New parameters. Traceable, so that they can be created sharded."""
        return new_params(self.settings, self.shape, key)

    def parameters(self) -> dict[Path, Parameter]:
        """Every parameter by its path, computing nothing."""
        return parameters_of(self.settings, self.shape)

    def size(self) -> int:
        """The number of parameters, those fixed by design included, as papers count them."""
        return sum(math.prod(each.shape) for each in self.parameters().values())


@dataclasses.dataclass(frozen=True)
class Network(Functional):
    """A score network."""

    settings: Settings

    def apply(
        self,
        params: Params,
        x: Data,
        noise_condition: PerSample,
        condition: Condition,
        *,
        train: bool,
        rng: jax.Array | None,
    ) -> Data | WithVariance:
        """The network's output; see `score_sde.typing.NetworkApply`. Raises UserError for a wrong condition."""
        self.settings.check_condition(condition, x.shape)
        module = with_params(self.settings, self.shape, params)
        return module(x, noise_condition, condition, train=train, rng=rng)

    def project(self, params: Params) -> Params:
        """The parameters, moved after an update to where the network keeps them: most leave them where they are."""
        return self.settings.project(params)

    @property
    def log_variance(self) -> Callable[[Params, PerSample], PerSample] | None:
        """(params, noise_condition) → u, the learned logarithm of the loss's variance; None where it learns none."""
        if not self.settings.learns_log_variance:
            return None
        module = functools.partial(with_params, self.settings, self.shape)
        return lambda params, noise_condition: module(params).log_variance(noise_condition)


@dataclasses.dataclass(frozen=True)
class Classifier(Functional):
    """A noise-conditional classifier, of which `settings` is a row of `models.CLASSIFIERS` with its settings."""

    settings: Labelled

    def apply(
        self, params: Params, x: Data, noise_condition: PerSample, *, train: bool, rng: jax.Array | None
    ) -> Float[Array, "batch classes"]:
        """The logits of the labels of x at its noise level; see `NetworkApply` for train and rng."""
        module = with_params(self.settings, self.shape, params)
        return module(x, noise_condition, train=train, rng=rng)


@dataclasses.dataclass(frozen=True)
class FeatureNetwork(Functional):
    """A network that makes features of images, by which sets of images are compared, and tells their classes apart."""

    settings: Builder

    def apply(
        self, params: Params, x: Float[Array, "batch height width channels"]
    ) -> tuple[Float[Array, "batch features"], Float[Array, "batch classes"]]:
        """Features and logits, float32."""
        return with_params(self.settings, self.shape, params)(x)
