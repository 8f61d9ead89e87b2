"""What the projects share: the choice of engine, training, data, checks and native ops."""
