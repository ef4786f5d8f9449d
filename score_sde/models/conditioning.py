"""What a score network may be told besides x and the noise level: one contract for all networks.

A condition is None or a dict with any of

    label    `(batch,)` integers in [0, classes); any other, as −1, says "no label"
    vector   `(batch, vector_features)`
    tokens   `(batch, length, token_features)`, and optionally mask `(batch, length)`, True where a token counts
    image    `(batch, *space, image_channels)`, concatenated to x on channels; resized where its size is not that of x
    augment  `(batch, augment_features)`, how the sample was augmented, zeros for not at all (Karras et al. 2022)
    drop     `(batch,)` True where the sample is to have no condition, whatever the others say

A network takes those whose setting is not 0, and what is missing is the same as what is dropped: the label's null
row, a learnt null vector, tokens of which only a learnt null token counts, an image of zeros, no augmentation. So one
network serves with and without a condition, as classifier-free guidance needs (Ho & Salimans 2022).
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from score_sde.errors import Checks, UserError
from score_sde.models import initializers
from score_sde.models.layers import Dtype, across, dense, embedding, parameter
from score_sde.typing import Condition, Data, Params

# A condition's key to the setting that allows it.
SETTING = {
    "label": "classes",
    "vector": "vector_features",
    "tokens": "token_features",
    "image": "image_channels",
    "augment": "augment_features",
}
# What the parts of a condition hold, where not any numbers.
KINDS = {"label": (jnp.integer, "integers"), "mask": (jnp.bool_, "booleans"), "drop": (jnp.bool_, "booleans")}
ANY = -1  # a side of any length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """Settings that all networks share. classes: number of labels. The other four: see the module. 0 is none of it."""

    classes: int = 0
    vector_features: int = 0
    token_features: int = 0
    image_channels: int = 0
    augment_features: int = 0

    @property
    def has_features(self) -> bool:
        """Whether the network takes a condition that joins the embedding of the noise level."""
        return self.classes + self.vector_features + self.augment_features > 0

    @property
    def learns_log_variance(self) -> bool:
        """Whether the network has a `log_variance`; see `functional.Network`."""
        return False

    @property
    def learns_step_variance(self) -> bool:
        """Whether the network returns the variances of reverse steps beside its prediction."""
        return False

    @property
    def projects(self) -> bool:
        """Whether `project` moves them."""
        return False

    def project(self, params: Params) -> Params:
        """The parameters, moved to where the network keeps them; most leave them anywhere."""
        return params

    def check_conditions(self, check: Checks) -> None:
        """Notes what is wrong with these settings."""
        for setting in SETTING.values():
            value = getattr(self, setting)
            check.that(0 <= value <= 10**6, f"{setting} must lie in [0, 1e6], not {value}")

    def check_condition(self, condition: Condition, shape: tuple[int, ...]) -> None:
        """Raises UserError where a network with these settings cannot take the condition beside x of `shape`."""
        if condition is None:
            return
        shapes = self._shapes(condition, shape)
        with Checks() as check:
            for name, value in sorted(condition.items()):
                if name not in shapes:
                    valid = "mask needs tokens" if name == "mask" else f"valid: {', '.join(SETTING)}, mask, drop"
                    check.that(False, f"unknown condition {name} ({valid})")
                    continue
                setting, wanted, given = SETTING.get(name), shapes[name], jnp.shape(value)
                if setting is not None and getattr(self, setting) == 0:
                    check.that(False, f"a network with {setting}=0 takes no condition {name!r}")
                    continue
                fits = len(given) == len(wanted) and all(a in (b, ANY) for a, b in zip(wanted, given, strict=True))
                check.that(fits, f"the condition {name!r} must be of shape {_written(wanted)}, not {given}")
                kind, kinds = KINDS.get(name, (jnp.number, "numbers"))
                right = jnp.issubdtype(jnp.result_type(value), kind)
                check.that(right, f"the condition {name!r} must be {kinds}, not {jnp.result_type(value)}")

    def _shapes(self, condition: dict[str, Any], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shape of each part of the condition beside x of `shape`, `ANY` where it may be any; see the module."""
        batch, space = shape[0], len(shape) - 2
        tokens = condition.get("tokens")
        return {
            "label": (batch,),
            "vector": (batch, self.vector_features),
            "tokens": (batch, ANY, self.token_features),
            **({} if tokens is None else {"mask": (batch, *jnp.shape(tokens)[1:2])}),
            "image": (batch, *(ANY for _ in range(space)), self.image_channels),
            "augment": (batch, self.augment_features),
            "drop": (batch,),
        }


def _written(shape: tuple[int, ...]) -> str:
    return f"({', '.join('any' if side == ANY else str(side) for side in shape)})"


class ConditionEmbedding(nnx.Module):
    """The condition's parts in the form that a network works with.

    features: width of the noise embedding. label_init: initialiser of the labels' table, where not `embedding`'s.
    """

    def __init__(
        self,
        settings: Conditions,
        features: int,
        *,
        label_init: nnx.Initializer | None = None,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.settings, self.dtype = settings, dtype
        if settings.classes:
            self.label = embedding(settings.classes + 1, features, init=label_init, dtype=dtype, rngs=rngs)
        if settings.vector_features:
            self.null_vector = parameter(jnp.zeros(settings.vector_features), "channels")
            self.vector = dense(settings.vector_features, features, dtype=dtype, rngs=rngs)
        if settings.augment_features:
            self.augment = dense(settings.augment_features, features, bias=False, dtype=dtype, rngs=rngs)
        if settings.token_features:
            value = initializers.normal()(rngs.params(), (settings.token_features,))
            self.null_token = parameter(value, "channels")

    def features(self, condition: Condition, batch: int) -> Float[Array, "batch features"] | None:
        """Label, vector and augmentation in one; None for a network that takes none of these."""
        keep, parts = kept(condition, batch), []
        if self.settings.classes:
            label = condition["label"] if _has(condition, "label") else jnp.full(batch, -1)
            known = keep & (label >= 0) & (label < self.settings.classes)
            parts.append(self.label(jnp.where(known, label + 1, 0)))  # row 0 is that of no label
        if self.settings.vector_features:
            null = jnp.broadcast_to(self.null_vector[...][None], (batch, self.settings.vector_features))
            vector = null if not _has(condition, "vector") else jnp.where(keep[:, None], condition["vector"], null)
            parts.append(self.vector(vector))
        if self.settings.augment_features:
            none = jnp.zeros((batch, self.settings.augment_features))
            augment = none if not _has(condition, "augment") else jnp.where(keep[:, None], condition["augment"], none)
            parts.append(self.augment(augment))
        return functools.reduce(jnp.add, parts) if parts else None

    def add_to(self, embedding: Float[Array, "batch features"], condition: Condition) -> Float[Array, "batch features"]:
        """The embedding of the noise level, and these features."""
        told = self.features(condition, len(embedding))
        return embedding if told is None else embedding + told.astype(embedding.dtype)

    def tokens(
        self, condition: Condition, batch: int
    ) -> tuple[Float[Array, "batch length features"], Bool[Array, "batch length"]]:
        """The tokens after the null token, which always counts, and which of them count."""
        null = jnp.broadcast_to(self.null_token[...][None, None], (batch, 1, self.settings.token_features))
        null, counts = null.astype(self.dtype), jnp.ones((batch, 1), bool)
        if not _has(condition, "tokens"):
            return null, counts
        tokens = condition["tokens"]
        mask = condition.get("mask", jnp.ones(tokens.shape[:2], bool)) & kept(condition, batch)[:, None]
        # What does not count must not even be multiplied by a weight of zero: it may hold anything, also NaN.
        tokens = jnp.where(mask[..., None], tokens, jnp.zeros_like(tokens)).astype(self.dtype)
        return jnp.concatenate([null, tokens], axis=1), jnp.concatenate([counts, mask], axis=1)

    def with_image(self, x: Data, condition: Condition) -> Data:
        """x with the condition's image beside its channels, where the network takes one."""
        if not self.settings.image_channels:
            return x
        image = jnp.zeros((*x.shape[:-1], self.settings.image_channels), x.dtype)
        if _has(condition, "image"):
            given = condition["image"]
            size = (len(given), *x.shape[1:-1], given.shape[-1])
            image = jax.image.resize(given, size, "bilinear").astype(x.dtype)
            image = jnp.where(across(kept(condition, len(x))[:, None], x.ndim), image, jnp.zeros_like(image))
        return jnp.concatenate([x, image], axis=-1)


def kept(condition: Condition, batch: int) -> Bool[Array, "batch"]:
    """Which samples keep their condition."""
    return jnp.ones(batch, bool) if not _has(condition, "drop") else ~condition["drop"]


def _has(condition: Condition, name: str) -> bool:
    return condition is not None and name in condition


def check_unet(
    network: str, shape: tuple[int, ...], levels: int, attention_resolutions: tuple[int, ...]
) -> tuple[int, ...]:
    """The heights of a U-Net for images, each half of the one before.

    Raises UserError unless `shape` is (height, width, channels) that halves so, and attention is at some of them.
    """
    check_image(network, shape, 2 ** (levels - 1))
    heights = tuple(shape[0] // 2**level for level in range(levels))
    unknown = [height for height in attention_resolutions if height not in heights]
    if unknown:
        raise UserError(
            f"{network}: attention_resolutions {unknown} are none of the heights {list(heights)} it works at"
        )
    return heights


def check_image(network: str, shape: tuple[int, ...], factor: int) -> None:
    """Raises UserError unless `shape` is (height, width, channels) with sides that `factor` divides."""
    if len(shape) != 3:
        raise UserError(f"{network} takes images (height, width, channels), not samples of shape {shape}")
    check_sides(network, shape[:2], factor)


def check_sides(network: str, sides: tuple[int, ...], factor: int) -> None:
    """Raises UserError, which names the nearest, unless `factor` divides the sides."""
    if any(side % factor for side in sides):
        near = "x".join(str(max(factor, round(side / factor) * factor)) for side in sides)
        given = "x".join(map(str, sides))
        raise UserError(
            f"{network} with these settings needs sides divisible by {factor}, not {given}; the nearest is {near}"
        )
