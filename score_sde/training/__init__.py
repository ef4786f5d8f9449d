"""Training: state, pure step, optimiser, moving average, and the loop."""
