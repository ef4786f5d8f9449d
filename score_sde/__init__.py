"""score_sde: diffusion models in continuous time, written as stochastic differential equations."""

__version__ = "0.1.0"
