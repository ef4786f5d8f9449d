"""Functions of t that a config can hold, and the processes made from them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.errors import UserError
from score_sde.sde import CURVES, VP, Formula, FromLogSNR
from tests.tables import compute

T = np.linspace(0.05, 0.95, 19)


@pytest.mark.parametrize(
    ("text", "function"),
    [
        ("-2 * log(tan(pi * t / 2))", lambda t: -2 * np.log(np.tan(np.pi * t / 2))),
        ("5 - 10*t", lambda t: 5 - 10 * t),
        ("-t**2 / (+1 - t)", lambda t: -(t**2) / (1 - t)),
        ("2 ** -t", lambda t: 2.0**-t),
        ("2**3**2 - 1e3", lambda t: 2.0**9 - 1000 + 0 * t),
        ("sqrt(t) + exp(t) + expm1(t) + log1p(t)", lambda t: np.sqrt(t) + np.exp(t) + np.expm1(t) + np.log1p(t)),
        ("sin(t) + cos(t) - atan(t) * sinh(t)", lambda t: np.sin(t) + np.cos(t) - np.arctan(t) * np.sinh(t)),
        ("cosh(t) / tanh(t) - asinh(t)", lambda t: np.cosh(t) / np.tanh(t) - np.arcsinh(t)),
        ("sigmoid(t) - softplus(t)", lambda t: 1 / (1 + np.exp(-t)) - np.log1p(np.exp(t))),
        ("  7 ", lambda t: 7 + 0 * t),
    ],
)
def test_a_formula_is_what_it_says(text, function):
    with jax.enable_x64(True):
        np.testing.assert_allclose(Formula(text)(jnp.asarray(T)), function(T), rtol=1e-12)
    single = Formula(text)(jnp.asarray(T, jnp.float32))
    assert (single.dtype, single.shape) == (jnp.float32, (19,))
    assert str(Formula.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no formula"),
        ("-t;1", "no formula"),
        ("-t\n+1", "no formula"),
        ("\0", "no formula"),
        ("x", "unknown name 'x'"),
        ("tan", "unknown name 'tan'"),
        ("lg(t)", "unknown function 'lg'.*did you mean 'log'"),
        ("__import__('os').system('true')", "cannot stand"),
        ("__import__(t)", "unknown function '__import__'"),
        ("t.__class__", "cannot stand"),
        ("log.__globals__", "cannot stand"),
        ("log(t, 2)", "cannot stand"),
        ("log(*t)", "cannot stand"),
        ("log(t=t)", "cannot stand"),
        ("log()", "cannot stand"),
        ("[t][0]", "cannot stand"),
        ("lambda: t", "cannot stand"),
        ("(t := 1)", "cannot stand"),
        ("'t'", "cannot stand"),
        ("1j * t", "cannot stand"),
        ("True * t", "cannot stand"),
        ("t if t else 1", "cannot stand"),
        ("t // 2", "cannot stand"),
        ("~t", "cannot stand"),
        ("1e999 * t", "too large"),
        ("1" * 500 + " - t", "too large"),
        ("-t" + " - t" * 300, "at most 1000 characters"),
        ("-" * 300 + "t", "nested"),
        ("t" + "-t" * 300, "nested"),
        ("(" * 300 + "t" + ")" * 300, "no formula"),
    ],
    ids=lambda text: text[:20].encode("unicode_escape").decode(),
)
def test_what_is_no_formula_is_refused(text, said):
    with pytest.raises(UserError, match=said) as refused:
        Formula.parse(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("value", [3, None, 1.5, ["t"]])
def test_what_is_no_text_is_refused(value):
    with pytest.raises(UserError, match="must be a formula"):
        Formula.parse(value)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("9**9**9**9 - t", "cannot be computed"),  # in floats: out of range at once, no integer of endless digits
        ("2**10000 - t", "cannot be computed"),
        ("1/0 - t", "cannot be computed"),
        ("0**-1 - t", "cannot be computed"),
        ("(-1)**0.5 - t", "not real"),
        ("t", "must decrease"),
        ("1", "must decrease"),
        ("sin(20*t)", "must decrease in t; it does not at t=0"),
        ("-10*t + 0.005*sin(5000*t) * exp(-(100*(t - 0.5))**2)", "its derivative is [0-9.]+ at t=0.49"),
        ("-10*t + 0*sqrt(0.999 - t)", "its derivative is nan at t=0.999"),
        ("-5*tanh(20*(t - 0.5))", "must decrease in t; its derivative is 0 at t=0.001"),
        ("5 - 10*t**9", "nearly flat at t=0.1"),
        ("5 - 10*t**3", "nearly flat at t=0.00"),
        ("-40*(t - 0.4)**3", "nearly flat at t=0.[34]"),
        ("10 - 0.001*t", "nearly flat"),
        (lambda t: jnp.where(t < 0.7, 10 - t, 9.3 - 1e-4 * t), "nearly flat at t=0.[789]"),
        ("log(t - 0.5)", "not finite at t=0.001"),
        ("-exp(1000*t)", "not finite"),
        ("-2*log(t/(1-t)) + 0*log(0.9-t)", "not finite"),
        (lambda t: -5.0, "as many numbers"),
        (lambda t: -t[0], "as many numbers"),
        (lambda t: -jnp.stack([t, t]), "as many numbers"),
        (lambda t: -t.astype(jnp.float16), "the same type"),
        (lambda t: -float(t), "cannot be computed"),
        (lambda t, u: t, "cannot be computed"),
        (5, "cannot be computed"),
    ],
)
def test_what_is_no_log_snr_is_refused(function, said):
    with pytest.raises(UserError, match=said):
        FromLogSNR(function=Formula(function) if isinstance(function, str) else function)


@pytest.mark.parametrize(
    "function", ["5 - 10*t**2", "-1e-6*t", "-5*tanh(20*(t - 0.5)) - 0.1*t", "-40*(t - 0.5)**3 - 0.1*t", "13 - 18*t"]
)
def test_float32_gives_back_the_time_of_what_is_accepted(function):
    """To 1e-4 of T − t_min, also where log_snr is flatter than elsewhere; at times of no table."""
    sde = FromLogSNR(function=Formula(function))
    t = np.random.default_rng(0).uniform(sde.t_min, sde.T, 20_000).astype(np.float32)
    back = jax.jit(lambda t: sde.time_of_log_snr(sde.log_snr(t)))(jnp.asarray(t))
    np.testing.assert_allclose(back, t, rtol=0, atol=1e-4)


@pytest.mark.parametrize("curve", sorted(CURVES))
def test_a_process_from_any_log_snr(curve):
    """A user's function and its formula are one process, on the curve that is named, at T and t_min of their own."""
    settings = {"curve": curve, "t_min": 0.0, "T": 2.0}
    function = FromLogSNR(function=lambda t: 6 - 5 * t - jnp.sinh(t), **settings)
    formula = FromLogSNR(function=Formula("6 - 5*t - sinh(t)"), **settings)
    t = np.linspace(0, 2, 21)
    names = ["alpha", "sigma", "log_snr"]
    one, other = (compute(sde, t, "float64", names) for sde in (function, formula))
    for name in names:
        np.testing.assert_array_equal(one[name], other[name])
    np.testing.assert_allclose(2 * np.log(one["alpha"] / one["sigma"]), 6 - 5 * t - np.sinh(t), rtol=0, atol=1e-12)


def test_the_inverse_of_a_steep_and_then_flat_log_snr():
    """By table and Newton, where neither has a closed form: logarithms at both ends, and a plateau between them."""
    sde = FromLogSNR(function=lambda t: jnp.log1p(-t) - jnp.log(t) - 0.1 * (t - 0.5) ** 3, t_min=1e-5, T=1 - 1e-5)
    with jax.enable_x64(True):
        levels = jnp.linspace(11.5, -11.5, 301)
        t = jax.jit(sde.time_of_log_snr)(levels)
        np.testing.assert_allclose(sde.log_snr(t), levels, rtol=0, atol=1e-9)
        slope = jax.vmap(jax.grad(sde.time_of_log_snr))(levels[10:-10])
        direct = jax.vmap(jax.grad(sde.log_snr))(t[10:-10])
        np.testing.assert_allclose(slope, 1 / direct, rtol=1e-6)  # the inverse's derivative


def test_vp_from_its_log_snr_is_vp():
    vp = VP()
    copy = FromLogSNR(function=Formula("-log(expm1(0.1*t + 9.95*t**2))"), t_min=vp.t_min, T=vp.T)
    t = np.linspace(0.01, 1, 30)
    one, other = (compute(sde, t, "float64", ["alpha", "sigma", "drift_coefficient"]) for sde in (vp, copy))
    for name in one:
        np.testing.assert_allclose(other[name], one[name], rtol=1e-10, err_msg=name)
