"""What configs are composed of: one file a data set, one file a model."""
