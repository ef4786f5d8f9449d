"""Process start-up, mesh and sharding. Imports nothing here: `environment` must run before jax is imported."""
