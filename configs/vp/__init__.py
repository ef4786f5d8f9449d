"""score_sde's experiments; see configs/bases/score_sde.py for what they share."""
