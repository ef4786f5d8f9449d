"""Bad options of the solvers: one line each, that names what is wrong."""

import pytest

from score_sde.errors import UserError
from score_sde.sde import CLD
from tests.solving import SOLVERS, every_name, solver_of

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("euler_maruyama", {"eta": -0.1}, "eta"),
        ("ddim", {"eta": 1.1}, "eta"),
        ("ddim", {"eta": NAN}, "eta"),
        ("pc", {"predictor": "ancestrol"}, "did you mean 'ancestral'"),
        ("pc", {"corrector": "langevine"}, "did you mean 'langevin'"),
        ("pc", {"corrector_steps": 0}, "corrector_steps"),
        ("pc", {"snr": 0.0}, "snr"),
        ("pc", {"predictor": "none", "corrector": "none"}, "nothing would be done"),
        ("ode", {"rtol": 0.0}, "rtol"),
        ("ode", {"atol": NAN}, "atol"),
        ("ode", {"method": "tsit6"}, "did you mean 'tsit5'"),
        ("ode", {"variable": "log_sigma"}, "did you mean 'log_sigma_bar'"),
        ("adaptive_sde", {"rtol": 0.0}, "rtol"),
        ("adaptive_sde", {"max_attempts": 0}, "max_attempts"),
        ("heun", {"variable": "sigma"}, "variable"),
        ("dpm_solver", {"order": 4}, "order must be 1, 2 or 3"),
        ("dpmpp", {"r": 0.0}, "r must lie in"),
        ("dpmpp", {"form": "heun"}, "form"),
        ("dpmpp_2m", {"form": "tailor"}, "did you mean 'taylor'"),
        ("dpmpp_3m", {"start": "cheep"}, "did you mean 'cheap'"),
        ("dpmpp_3m", {"last_order": 4}, "last_order"),
        ("sde_dpmpp_1", {"eta": -1.0}, "eta"),
        ("sde_dpmpp_2m", {"eta": NAN}, "eta"),
        ("dpm2_ancestral", {"eta": 1.5}, "eta"),
        ("lms", {"order": 5}, "order"),
        ("deis", {"order": 4}, "order"),
        ("deis", {"last_order": -1}, "last_order"),
        ("unipc", {"order": 4}, "order"),
        ("unipc", {"b": "bh3"}, "b 'bh3'"),
        ("unipc", {"prediction": "v"}, "prediction"),
        ("sa_solver", {"predictor_order": 4}, "predictor_order"),
        ("sa_solver", {"corrector_order": 5}, "corrector_order"),
        ("sa_solver", {"tau": -1.0}, "tau"),
        ("sa_solver", {"low": 2.0, "high": 1.0}, "low <= high"),
        ("seeds_2", {"eta": -1.0}, "eta"),
        ("edm", {"churn": -1.0}, "churn"),
        ("edm", {"churn_min": 2.0, "churn_max": 1.0}, "churn_min <= churn_max"),
        ("edm", {"noise_scale": 0.0}, "noise_scale"),
        ("restart", {"low": (0.1, 0.2)}, "as many entries"),
        ("restart", {"low": (0.5,)}, "0 < low < high"),
        ("restart", {"restart_steps": (0,)}, "restart_steps"),
        ("restart", {"repeats": (-1,)}, "repeats"),
        ("restart", {"repeats": (1001,)}, "repeats must lie in"),
        ("restart", {"restart_steps": (1001,)}, "restart_steps must lie in"),
        ("restart", {"restart_steps": (101,), "repeats": (100,)}, "must come to 10000 at most, not 10100"),
        ("pc", {"corrector_steps": 1001}, "corrector_steps must lie in"),
    ],
)
def test_bad_options_are_refused(name, options, named):
    with pytest.raises(UserError, match=named):
        solver_of(name, options)


@every_name
def test_augmented_processes_are_for_other_solvers(solver):
    if type(solver) is SOLVERS["ode"]:
        solver.check_process(CLD())
        return
    with pytest.raises(UserError, match="is for affine processes"):
        solver.check_process(CLD())
